//! What can go wrong.

use std::fmt;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with its cause as `source`.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something is no name of a host or repository.
    Name,
    /// A file of settings cannot be used.
    Settings,
    /// The server was not reached, was too slow, or broke off.
    Unreachable,
    /// The server refuses: no such repository for us, no login, or it is broken.
    Refused,
    /// The server's answer is not what it must be.
    Malformed,
}

impl Error {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn because(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn name(found: impl fmt::Display, expected: &str) -> Self {
        Self::new(ErrorKind::Name, format!("{found}: expected {expected}"))
    }

    pub(crate) fn malformed(found: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed, found)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}
