//! What can be wrong with bytes or text handed to this crate.

/// Why a value was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] pub(crate) Cause);

/// The kinds of [`Error`] a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The text is not a digest or root hash in its only accepted form.
    Digest,
    /// The salt is too long or not lowercase hex.
    Salt,
    /// The superblock is not one that this project writes.
    Superblock,
    /// A number of blocks, or the number of one, that no volume has.
    Blocks,
}

impl Error {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.0 {
            Cause::Digest { .. } | Cause::Hex { .. } => ErrorKind::Digest,
            Cause::SaltHex | Cause::SaltLen(_) => ErrorKind::Salt,
            Cause::SuperblockLen(_) | Cause::Field { .. } | Cause::Padding(_) => {
                ErrorKind::Superblock
            }
            Cause::NoBlocks | Cause::NoSuchBlock { .. } | Cause::TooManyBlocks(_) => {
                ErrorKind::Blocks
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    #[error("{what} {found:?} is not \"sha256:\" and 64 lowercase hex characters")]
    Digest { what: &'static str, found: String },
    #[error("{what} {found:?} is not 64 lowercase hex characters")]
    Hex { what: &'static str, found: String },
    #[error("salt is not an even number of lowercase hex characters")]
    SaltHex,
    #[error("salt has {0} bytes, at most 256 are allowed")]
    SaltLen(usize),
    #[error("superblock has {0} bytes, expected 512")]
    SuperblockLen(usize),
    #[error("superblock field {field} is {found}, expected {expected}")]
    Field { field: &'static str, found: String, expected: &'static str },
    #[error("superblock padding after {0} is not zero")]
    Padding(&'static str),
    #[error("a volume has at least one data block, found none")]
    NoBlocks,
    #[error("data block {index} does not exist, the volume has {blocks}")]
    NoSuchBlock { index: u64, blocks: u64 },
    #[error("a volume of {0} data blocks is larger than a file can be")]
    TooManyBlocks(u64),
}
