//! The generated gRPC services of `proto/`.
#![allow(
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::use_self,
    clippy::wildcard_imports,
    dead_code,
    missing_docs,
    missing_debug_implementations,
    unnameable_types,
    unreachable_pub,
    reason = "generated code"
)]

tonic::include_proto!("containerd");

pub(crate) use containerd::services::content::v1 as content;
pub(crate) use containerd::services::diff::v1 as diff;
pub(crate) use containerd::services::snapshots::v1 as snapshots;
pub(crate) use containerd::types;
