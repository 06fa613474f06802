//! The contents of files beside an image of the format `hallmark-composefs.1`.

use std::io;

use hallmark_verity::FileDigest;

/// Takes the contents of files, one file after the other.
pub trait Objects {
    /// The next bytes of the file that is being taken.
    ///
    /// # Errors
    /// What keeps them from being taken: the packing ends with it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The file is whole and has this digest; what is written next is another's. Never for an empty
    /// file.
    ///
    /// # Errors
    /// As of [`write`](Self::write).
    fn end(&mut self, digest: &FileDigest) -> io::Result<()>;
}
