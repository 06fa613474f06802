//! Why a layer was not packed, or an image not read.

use std::fmt;
use std::io;

/// Why a layer was not packed, or an image not read.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] pub(crate) Cause);

/// The kinds of [`Error`] a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The blob could not be read or decompressed: truncated, corrupt, or not of its media type.
    Blob,
    /// The image file could not be written or read back.
    Image,
    /// The tar breaks the format, or says something that readers of tars disagree about.
    Malformed,
    /// The tar is well formed and holds something that a layer image cannot.
    Unsupported,
    /// The layer is larger than [`Limits`](crate::Limits) allow.
    Limit,
    /// The image is not one of `hallmark-erofs.1`.
    Format,
}

impl Error {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &self.0 {
            Cause::Blob(_) => ErrorKind::Blob,
            Cause::Image(_) | Cause::Object(_) | Cause::Changed(_) | Cause::Unplaced => {
                ErrorKind::Image
            }
            Cause::Header { .. } | Cause::Entry { .. } | Cause::Truncated { .. } => {
                ErrorKind::Malformed
            }
            Cause::Unsupported { .. } | Cause::EntryType { .. } | Cause::Verity(_) => {
                ErrorKind::Unsupported
            }
            Cause::Limit { .. } | Cause::EntryLimit { .. } => ErrorKind::Limit,
            Cause::Format { .. } => ErrorKind::Format,
        }
    }
}

/// A name from a tar or an image as a message shows it: escaped, and not endless.
#[derive(Debug)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        const SHOWN: usize = 200;
        let shown = bytes.get(..SHOWN).unwrap_or(bytes).escape_ascii().to_string();
        Self(if bytes.len() > SHOWN { shown + "…" } else { shown })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error("layer blob cannot be read")]
    Blob(#[source] io::Error),
    #[error("layer image cannot be written")]
    Image(#[source] io::Error),
    #[error("the content of a file cannot be kept")]
    Object(#[source] io::Error),
    #[error("layer image: block {0} is not what was written to it")]
    Changed(u64),
    #[error("layer image: a name leads to no inode")]
    Unplaced,
    #[error("tar header at byte {offset}: {what}")]
    Header { offset: u64, what: &'static str },
    #[error("tar ends at byte {offset}, inside {what}")]
    Truncated { offset: u64, what: &'static str },
    #[error("tar entry {name}: {what}")]
    Entry { name: Name, what: &'static str },
    #[error("tar entry {name}: {what}")]
    Unsupported { name: Name, what: &'static str },
    #[error("tar header at byte {offset}: entry type {:?} is not supported", char::from(*flag))]
    EntryType { offset: u64, flag: u8 },
    #[error("layer has more than {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    #[error("tar entry {name}: more than {limit} {what}")]
    EntryLimit { name: Name, what: &'static str, limit: u64 },
    #[error("layer image at byte {offset}: {what}")]
    Format { offset: u64, what: &'static str },
    #[error("layer has no volume")]
    Verity(#[source] hallmark_verity::Error),
}

impl Cause {
    pub(crate) fn entry(name: &[u8], what: &'static str) -> Error {
        Error(Self::Entry { name: Name::new(name), what })
    }

    pub(crate) fn unsupported(name: &[u8], what: &'static str) -> Error {
        Error(Self::Unsupported { name: Name::new(name), what })
    }

    pub(crate) fn entry_limit(name: &[u8], what: &'static str, limit: usize) -> Error {
        Error(Self::EntryLimit { name: Name::new(name), what, limit: limit as u64 })
    }
}
