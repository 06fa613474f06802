//! What can go wrong, and whose turn it is then. gRPC codes are `service`'s business.

use std::path::PathBuf;
use std::sync::Arc;

use hallmark_verity::{DiffId, LayerDigest, RootHash};

use crate::store::Kind;

/// A result of this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A failure of one call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("layer {expected}: the blob read from containerd hashes to {found}")]
    BlobDigest { expected: LayerDigest, found: LayerDigest },
    #[error("containerd at {socket}: {call}: {answer}", socket = socket.display(), answer = status.message())]
    Containerd { socket: PathBuf, call: &'static str, status: Box<tonic::Status> },
    #[error("containerd at {socket}: {call} took longer than {milliseconds} ms", socket = socket.display())]
    ContainerdSlow { socket: PathBuf, call: &'static str, milliseconds: u128 },
    #[error("the thread that packed the layer crashed")]
    Crashed,
    #[error("snapshot {name:?} exists")]
    Exists { name: String },
    #[error("filter {text:?}: {why}")]
    Filter { text: String, why: &'static str },
    #[error("the mounts are not of a snapshot of this snapshotter")]
    ForeignMounts,
    #[error("snapshot {name:?} has children")]
    HasChildren { name: String },
    #[error("field {field:?} of a snapshot cannot be changed")]
    Immutable { field: String },
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
    #[error("logins for registries")]
    Logins(#[source] hallmark_trust::strict_file::StrictFileError),
    #[error("layer {diff_id} is not in the store")]
    LayerMissing { diff_id: DiffId },
    #[error(
        "layer {root_hash}: no signature that the kernel accepts, and layer_signature = \"required\""
    )]
    LayerSignature { root_hash: RootHash, source: Option<hallmark_sys::Error> },
    #[error("snapshot {name:?} holds layer {held}, and layer {applied} was applied to it as well")]
    LayerTwice { name: String, held: DiffId, applied: DiffId },
    #[error(
        "layer {digest}: media type {found:?}, expected a tar, plain or compressed by gzip or zstd"
    )]
    MediaType { digest: String, found: String },
    #[error("snapshot {name:?} is {found}, expected {expected}")]
    NotA { name: String, found: Kind, expected: Kind },
    #[error("snapshot {name:?} is not there")]
    NotFound { name: String },
    #[error(
        "snapshot {name:?}: no layer was applied to it by hallmark-diff, so another differ unpacked it; \
         in containerd's configuration set differ = \"hallmark-diff\" in the entry of \
         [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]] whose snapshotter is this one, \
         and default = [\"hallmark-diff\", \"walking\"] in \
         [plugins.\"io.containerd.service.v1.diff-service\"]"
    )]
    NotPacked { name: String },
    #[error("layer {digest}")]
    Pack { digest: String, source: hallmark_erofs::Error },
    #[error("{0}")]
    Proto(&'static str),
    #[error("registry")]
    Registry(#[from] hallmark_registry::Error),
    #[error("record {what}")]
    Record { what: String, source: serde_json::Error },
    #[error(transparent)]
    Seal(#[from] hallmark_seal::Error),
    /// The same failure, told to every caller that waited for the same packing.
    #[error(transparent)]
    Shared(#[from] Arc<Self>),
    #[error("database {path}", path = path.display())]
    Store { path: PathBuf, source: Box<redb::Error> },
    #[error(
        "database {path}: it is damaged: whoever reads it crashes ({status}); put it back from a backup, or move it, \
         snapshots and layers away to begin anew", path = path.display()
    )]
    StoreBroken { path: PathBuf, status: std::process::ExitStatus },
    #[error(
        "database {path}: it is missing or empty, and there are snapshots or layers beside it; put it back from a \
         backup, or move snapshots and layers away to begin anew", path = path.display()
    )]
    StoreMissing { path: PathBuf },
    #[error(transparent)]
    Sys(#[from] hallmark_sys::Error),
    #[error("background task")]
    Task(#[from] tokio::task::JoinError),
    #[error("{path}: {found}; it cannot be told in a layer tar", path = path.display())]
    Untarable { path: PathBuf, found: &'static str },
    #[error("digest")]
    Verity(#[from] hallmark_verity::Error),
    #[error(
        "snapshot {name:?}: a layer was applied to it, and files were written to its directory as well"
    )]
    Written { name: String },
}

/// Whose fault a failure is: what a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// Something of that name is there already.
    AlreadyExists,
    /// The request, or the layer it names, cannot be served as things are.
    FailedPrecondition,
    /// We, the kernel or the disk.
    Internal,
    /// The request makes no sense.
    InvalidArgument,
    /// Nothing of that name.
    NotFound,
    /// containerd itself did not answer.
    Unavailable,
    /// Not ours: another plugin may take it.
    Unimplemented,
}

impl ErrorKind {
    /// As metrics call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AlreadyExists => "already exists",
            Self::FailedPrecondition => "failed precondition",
            Self::Internal => "internal",
            Self::InvalidArgument => "invalid argument",
            Self::NotFound => "not found",
            Self::Unavailable => "unavailable",
            Self::Unimplemented => "unimplemented",
        }
    }
}

impl Error {
    /// Whose fault it is.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::BlobDigest { .. }
            | Self::HasChildren { .. }
            | Self::LayerSignature { .. }
            | Self::LayerTwice { .. }
            | Self::MediaType { .. }
            | Self::NotPacked { .. }
            | Self::Untarable { .. }
            | Self::Written { .. } => ErrorKind::FailedPrecondition,
            Self::NotA { expected: Kind::Committed, .. }
            | Self::Filter { .. }
            | Self::Immutable { .. }
            | Self::Proto(_)
            | Self::Verity(_) => ErrorKind::InvalidArgument,
            Self::NotA { .. } => ErrorKind::FailedPrecondition,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::ForeignMounts => ErrorKind::Unimplemented,
            Self::Containerd { status, .. } => match status.code() {
                tonic::Code::NotFound => ErrorKind::FailedPrecondition,
                _ => ErrorKind::Unavailable,
            },
            Self::ContainerdSlow { .. } => ErrorKind::Unavailable,
            Self::Pack { source, .. } => pack_kind(source),
            Self::Shared(error) => error.kind(),
            Self::Crashed
            | Self::Io { .. }
            | Self::LayerMissing { .. }
            | Self::Logins(_)
            | Self::Registry(_)
            | Self::Record { .. }
            | Self::Seal(_)
            | Self::Store { .. }
            | Self::StoreBroken { .. }
            | Self::StoreMissing { .. }
            | Self::Sys(_)
            | Self::Task(_) => ErrorKind::Internal,
        }
    }

    /// An I/O error of `what`, written as the call or the object it happened to.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The same for system calls made through rustix.
    pub(crate) fn errno(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let what = what.into();
        move |errno| Self::Io { what, source: errno.into() }
    }
}

/// A layer that cannot be packed is the layer's fault; a disk or a stream that fails is not.
fn pack_kind(error: &hallmark_erofs::Error) -> ErrorKind {
    match error.kind() {
        hallmark_erofs::ErrorKind::Image => ErrorKind::Internal,
        _ => ErrorKind::FailedPrecondition,
    }
}

/// An error and its sources, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line.push_str(": ");
        line.push_str(&source.to_string());
        next = source.source();
    }
    line
}
