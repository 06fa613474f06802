//! The root hash of a data device, without keeping its tree.
//!
//! A level needs no more memory than the digests of the hash block being filled.

use std::io::{self, Read};

use crate::volume::{DataBlocks, Salt, levels};
use crate::{BLOCK, DIGEST, FANOUT, RootHash};

use crate::hasher::Hasher;

/// Bytes asked for in one read: the calls cost little beside the hashing, and the bytes are still in the processor's cache
/// when they are hashed. A new buffer costs a page fault for each of its pages, which a small layer does not make up for.
const READ: usize = 16 * BLOCK;

/// Reads `data_blocks` blocks and says what root hash they have with this salt.
///
/// Bytes after them are not read. Memory: 1 MiB and 4 KiB a level.
///
/// # Errors
/// What `data` answers; `UnexpectedEof` when it is shorter than `data_blocks`; `InvalidInput` for no
/// data block at all.
pub fn root_of(mut data: impl Read, salt: &Salt, data_blocks: DataBlocks) -> io::Result<RootHash> {
    let hasher = Hasher::new(salt);
    let mut fold = Fold::new(&hasher, data_blocks);
    let mut left = data_blocks.0;
    let mut buffer = vec![0; READ];
    while left > 0 {
        let blocks = usize::try_from(left).unwrap_or(usize::MAX).min(READ / BLOCK);
        let part = buffer.get_mut(..blocks.saturating_mul(BLOCK)).unwrap_or_default();
        data.read_exact(part)?;
        hasher.blocks(part.as_chunks().0).for_each(|leaf| fold.push(leaf));
        left = left.saturating_sub(blocks as u64);
    }
    fold.finish().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no data blocks"))
}

/// The unfinished hash block of every level, leaf level first, and the last digest of the top.
struct Fold<'a> {
    hasher: &'a Hasher,
    open: Vec<Vec<[u8; DIGEST]>>,
    root: Option<[u8; DIGEST]>,
}

impl<'a> Fold<'a> {
    fn new(hasher: &'a Hasher, data_blocks: DataBlocks) -> Self {
        let open = levels(data_blocks).iter().map(|_| Vec::with_capacity(FANOUT)).collect();
        Self { hasher, open, root: None }
    }

    fn push(&mut self, leaf: [u8; DIGEST]) {
        let mut digest = leaf;
        for level in &mut self.open {
            level.push(digest);
            if level.len() < FANOUT {
                return;
            }
            digest = self.hasher.digests(level);
            level.clear();
        }
        self.root = Some(digest);
    }

    fn finish(mut self) -> Option<RootHash> {
        let mut carry = None;
        for level in &mut self.open {
            level.extend(carry.take());
            if !level.is_empty() {
                carry = Some(self.hasher.digests(level));
            }
        }
        carry.or(self.root).map(RootHash::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TreeBuilder;

    #[test]
    fn agrees_with_the_builder_at_every_boundary() {
        let salt = Salt::from_bytes(&[9; 32]).unwrap();
        for blocks in [1usize, 2, 3, 127, 128, 129, 255, 256, 257, 16383, 16384, 16385] {
            let mut data = vec![0u8; blocks * BLOCK];
            data.chunks_mut(BLOCK).enumerate().for_each(|(n, block)| {
                block[..8].copy_from_slice(&(n as u64 + 1).to_le_bytes());
            });
            let mut builder = TreeBuilder::new(&salt);
            data.as_chunks::<BLOCK>().0.iter().for_each(|block| builder.push(block));
            let root = root_of(data.as_slice(), &salt, DataBlocks(blocks as u64)).unwrap();
            assert_eq!(root, builder.finish().unwrap().root(), "{blocks} blocks");
        }
    }

    #[test]
    fn a_short_device_is_an_error() {
        let data = vec![0u8; 3 * BLOCK - 1];
        let error = root_of(data.as_slice(), &Salt::default(), DataBlocks(3)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = root_of(data.as_slice(), &Salt::default(), DataBlocks(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
