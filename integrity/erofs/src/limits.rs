//! How much a hostile layer may cost.

/// The most that [`pack`](fn@crate::pack) and [`Image`](crate::Image) accept of a layer.
///
/// The defaults are above what real images hold and low enough that the worst layer ends with an
/// error before it exhausts a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar. Each 4 KiB of content cost 32 bytes of memory.
    pub bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of names, symlink targets and directories' extended attributes kept in memory.
    pub metadata: u64,
    /// Directories above an entry.
    pub depth: usize,
    /// Bytes of a path; Linux resolves none of more than 4095.
    pub path: usize,
    /// Bytes of all extended attributes of one file.
    pub xattrs: usize,
    /// Path components walked through symlinks of the layer, all entries together.
    pub symlink_steps: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2 << 20,
            metadata: 256 << 20,
            depth: 512,
            path: 4095,
            xattrs: 128 << 10,
            symlink_steps: 4 << 20,
        }
    }
}
