//! What can go wrong in the shim, and which ttrpc status containerd hears for it.

use std::path::{Path, PathBuf};

use containerd_shim_protos::ttrpc::{self, Code};

/// Result of everything that answers containerd.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A failed request. The message is what a person reads on the terminal of `nerdctl` or `ctr`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The last `level=error` line the runtime logged, word for word: the gate's refusal arrives here.
    #[error("{message}")]
    Runtime { message: String },
    /// The runtime went away without leaving a reason in its log.
    #[error("hallmark-runtime {verb}: exit status {status}{detail}")]
    RuntimeSilent { verb: &'static str, status: u32, detail: String },
    #[error("container {container}: no such container")]
    NoContainer { container: String },
    #[error("container {container}: process {exec}: no such process")]
    NoProcess { container: String, exec: String },
    #[error("{what} {name} exists")]
    Exists { what: &'static str, name: String },
    /// The process is gone; containerd's clients look for these very words.
    #[error("process already finished")]
    Finished,
    #[error("{subject}: cannot {verb} while {state}")]
    State { subject: String, verb: &'static str, state: &'static str },
    #[error("{what} {value:?}: {reason}")]
    Invalid { what: &'static str, value: String, reason: String },
    #[error("{what} is not supported")]
    Unsupported { what: &'static str },
    #[error("container {container}: no cgroup")]
    NoCgroup { container: String },
    #[error("{call} {path}")]
    Io { call: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{what}")]
    Decode { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("container {container}: deleted while it was being made")]
    Cancelled { container: String },
    #[error("{what} took longer than {seconds} s")]
    Timeout { what: &'static str, seconds: u64 },
}

impl Error {
    /// Names the call and the path of a failed file operation: `map_err(Error::io("open", path))`.
    pub(crate) fn io<E: Into<std::io::Error>>(
        call: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { call, path, source: source.into() }
    }

    /// Names the thing that could not be decoded.
    pub(crate) fn decode<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Decode { what, source: source.into() }
    }

    /// The status code: a refusal of the gate is a failed precondition, not a malfunction.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Runtime { message } if message.starts_with(REFUSAL) => Code::FAILED_PRECONDITION,
            Self::NoContainer { .. }
            | Self::NoProcess { .. }
            | Self::Finished
            | Self::NoCgroup { .. } => Code::NOT_FOUND,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::State { .. } => Code::FAILED_PRECONDITION,
            Self::Invalid { .. } | Self::Decode { .. } => Code::INVALID_ARGUMENT,
            Self::Unsupported { .. } => Code::UNIMPLEMENTED,
            Self::Cancelled { .. } => Code::CANCELLED,
            Self::Timeout { .. } => Code::DEADLINE_EXCEEDED,
            Self::Runtime { .. } | Self::RuntimeSilent { .. } | Self::Io { .. } => Code::UNKNOWN,
        }
    }

    /// The message with its causes, outermost first.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// How every refusal of the gate begins (DESIGN.md, "Exit codes and messages").
const REFUSAL: &str = "hallmark: refused:";

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.chain()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_malfunction() {
        let refusal = Error::Runtime { message: "hallmark: refused: container a: no seal".into() };
        assert_eq!(refusal.code(), Code::FAILED_PRECONDITION);
        assert_eq!(refusal.chain(), "hallmark: refused: container a: no seal");
        let broken = Error::Runtime { message: "mount overlay: EINVAL".into() };
        assert_eq!(broken.code(), Code::UNKNOWN);
    }

    #[test]
    fn the_cause_is_in_the_message() {
        let missing = std::io::Error::from_raw_os_error(2);
        let error = Error::io::<std::io::Error>("open", "/b/config.json")(missing);
        assert_eq!(error.chain(), "open /b/config.json: No such file or directory (os error 2)");
    }
}
