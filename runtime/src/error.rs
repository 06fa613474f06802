//! The one error of this crate: a chain of objects, outermost first, and a kind for callers that act on it.

use std::fmt;

use rustix::io::Errno;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, from the operation down to the system call.
///
/// `Display` writes the whole chain as runc does: `outer: inner: cause`. Each link names an object.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<Self>>,
}

/// What a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A container of that ID is there already.
    Exists,
    /// No container of that ID.
    NotFound,
    /// The container has no running process.
    NotRunning,
    /// The gate said no: an answer, not a malfunction.
    Refused,
    /// config.json, process.json or resources.json asks for something that is wrong or not supported.
    Spec,
    /// The container is in another state than the operation needs.
    State,
    /// The kernel or the file system.
    System,
    /// The command line.
    Usage,
}

impl Error {
    /// An error with nothing beneath it.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    /// Something in a configuration file that is wrong or not supported.
    pub(crate) fn spec(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Spec, what)
    }

    /// An object of the system that is not as it must be.
    pub(crate) fn system(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::System, what)
    }

    /// The same with `what` in front; the kind stays.
    #[must_use]
    pub fn within(self, what: impl Into<String>) -> Self {
        Self { kind: self.kind, what: what.into(), source: Some(Box::new(self)) }
    }

    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            // the outermost link may be empty: the chain then starts with the next one
            Some(source) if self.what.is_empty() => write!(f, "{source}"),
            Some(source) => write!(f, "{}: {source}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for Error {}

/// Gives a failed call the name of the object it was about.
pub(crate) trait Context<T> {
    /// `what: cause`, computed only on failure.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().within(what()))
    }
}

macro_rules! system_error {
    ($($from:ty),+) => {$(
        impl From<$from> for Error {
            fn from(error: $from) -> Self {
                Self::system(error.to_string())
            }
        }
    )+};
}

system_error!(hallmark_sys::Error, std::io::Error, serde_json::Error, crate::cgroup::Error);

impl From<crate::seccomp::Error> for Error {
    fn from(error: crate::seccomp::Error) -> Self {
        Self::spec(error.to_string())
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::system(std::io::Error::from(errno).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_one_line_and_keeps_its_kind() {
        let cause: Result<()> = Err(Error::spec("it is empty"));
        let error = cause.context(|| "hostname").unwrap_err().within("config.json");
        assert_eq!(error.to_string(), "config.json: hostname: it is empty");
        assert_eq!(error.kind(), ErrorKind::Spec);
        let errno: std::result::Result<(), Errno> = Err(Errno::NOENT);
        let error = errno.context(|| "openat(rootfs, \"dev\")").unwrap_err();
        assert_eq!(
            error.to_string(),
            "openat(rootfs, \"dev\"): No such file or directory (os error 2)"
        );
        assert_eq!(error.kind(), ErrorKind::System);
    }
}
