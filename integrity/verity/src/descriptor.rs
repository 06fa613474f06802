//! The fs-verity digest of a file: SHA-256 of a descriptor of 256 bytes, little endian.
//!
//! | offset | bytes | field          | here |
//! |-------:|------:|----------------|------|
//! |      0 |     1 | version        | 1 |
//! |      1 |     1 | hash_algorithm | 1: SHA-256 |
//! |      2 |     1 | log_blocksize  | 12 |
//! |      3 |     1 | salt_size      | 0 |
//! |      4 |     4 | reserved       | zero |
//! |      8 |     8 | data_size      | bytes |
//! |     16 |    64 | root_hash      | 32 bytes, zero padded |
//! |     80 |    32 | salt           | zero |
//! |    112 |   144 | reserved       | zero |
//!
//! The root hash is that of a dm-verity volume without salt over the file padded with zeros to
//! whole blocks, and 32 zero bytes for an empty file. Only the content is covered: not the name,
//! the mode, the owner or the extended attributes.
//!
//! Source: kernel Documentation/filesystems/fsverity.rst, `struct fsverity_descriptor`.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::tree::TreeBuilder;
use crate::volume::Salt;
use crate::{BLOCK, DIGEST, FileDigest};

const VERSION: u8 = 1;
const SHA256: u8 = 1;
const LOG_BLOCK: u8 = 12;

/// Computes the [`FileDigest`] of bytes that arrive in pieces of any size.
#[derive(Debug)]
pub struct FileHasher {
    tree: TreeBuilder,
    /// The block being filled, `filled` bytes of it.
    block: Box<[u8; BLOCK]>,
    filled: usize,
    len: u64,
}

impl Default for FileHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl FileHasher {
    /// A hasher that has seen nothing: an empty file.
    #[must_use]
    pub fn new() -> Self {
        let tree = TreeBuilder::new(&Salt::default());
        Self { tree, block: Box::new([0; BLOCK]), filled: 0, len: 0 }
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.len = self.len.saturating_add(bytes.len() as u64);
        while !bytes.is_empty() {
            let (blocks, rest) = bytes.as_chunks::<BLOCK>();
            if self.filled == 0 && !blocks.is_empty() {
                self.tree.extend(blocks);
                bytes = rest;
                continue;
            }
            let room = self.block.get_mut(self.filled..).unwrap_or_default();
            let count = room.len().min(bytes.len());
            let (head, rest) = bytes.split_at(count);
            room.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
            self.filled = self.filled.saturating_add(count);
            bytes = rest;
            if self.filled == BLOCK {
                self.tree.push(&self.block);
                self.filled = 0;
            }
        }
    }

    /// The file digest of all bytes taken.
    #[must_use]
    pub fn finish(mut self) -> FileDigest {
        if self.filled > 0 {
            self.block.get_mut(self.filled..).unwrap_or_default().fill(0);
            self.tree.push(&self.block);
        }
        // An empty file has no tree, and fs-verity then leaves the root hash zero.
        let root = self.tree.finish().map_or([0; DIGEST], |tree| *tree.root().as_bytes());
        let descriptor = Sha256::new()
            .chain_update([VERSION, SHA256, LOG_BLOCK, 0, 0, 0, 0, 0])
            .chain_update(self.len.to_le_bytes())
            .chain_update(root)
            .chain_update([0; 208]);
        FileDigest::from_bytes(descriptor.finalize().into())
    }

    /// The file digest of what `file` holds from here to its end.
    ///
    /// # Errors
    /// What `file` answers.
    pub fn digest_of(mut file: impl Read) -> io::Result<FileDigest> {
        let mut hasher = Self::new();
        let mut buffer = vec![0; 64 * BLOCK];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => hasher.update(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_points_do_not_matter() {
        let data: Vec<u8> = (0..3 * BLOCK + 17).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let whole = FileHasher::digest_of(data.as_slice()).unwrap();
        for step in [1, 7, 4095, 4096, 4097, 9000] {
            let mut hasher = FileHasher::new();
            data.chunks(step).for_each(|part| hasher.update(part));
            assert_eq!(hasher.finish(), whole, "steps of {step}");
        }
    }
}
