//! The generated gRPC services of `snapshotter/proto/`.
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
pub(crate) use containerd::services::images::v1 as images;
pub(crate) use containerd::services::namespaces::v1 as namespaces;
