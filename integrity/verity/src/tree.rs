//! The hash tree of a volume, as `veritysetup` lays it out.
//!
//! A leaf is SHA-256 of the salt and a data block. A hash block holds 128 digests, the last one of
//! a level padded with zeros; its digest goes into the level above, until a level has one block,
//! whose digest is the root hash. A volume of one data block has no tree: its leaf is the root hash.
//! On disk the level of one block comes first and the leaf level last.
//!
//! Source: kernel Documentation/admin-guide/device-mapper/verity.rst; cryptsetup
//! `lib/verity/verity_hash.c`.

use std::io::{self, Write};

use crate::error::{Cause, Error};
use crate::hasher::Hasher;
use crate::volume::{DataBlocks, Salt};
use crate::{BLOCK, DIGEST, FANOUT, RootHash};

/// Collects the leaves of a volume, in order, 32 bytes of memory for each data block.
pub struct TreeBuilder {
    hasher: Hasher,
    leaves: Vec<[u8; DIGEST]>,
}

impl TreeBuilder {
    /// A builder for a volume with this salt, without data yet.
    #[must_use]
    pub fn new(salt: &Salt) -> Self {
        Self { hasher: Hasher::new(salt), leaves: Vec::new() }
    }

    /// Hashes the next data block.
    pub fn push(&mut self, block: &[u8; BLOCK]) {
        self.leaves.push(self.hasher.block(block));
    }

    /// Hashes the next data blocks, sooner than one by one.
    pub fn extend(&mut self, blocks: &[[u8; BLOCK]]) {
        self.leaves.extend(self.hasher.blocks(blocks));
    }

    /// Hashes a data block that was pushed before and has other bytes now.
    ///
    /// # Errors
    /// [`Blocks`](crate::ErrorKind::Blocks) if no block of this number was pushed.
    pub fn replace(&mut self, index: u64, block: &[u8; BLOCK]) -> Result<(), Error> {
        let no_such_block = Cause::NoSuchBlock { index, blocks: self.data_blocks().0 };
        let leaf = usize::try_from(index).ok().and_then(|index| self.leaves.get_mut(index));
        *leaf.ok_or(no_such_block)? = self.hasher.block(block);
        Ok(())
    }

    /// Whether `block` is what was pushed, or put in its place, under this number.
    #[must_use]
    pub fn holds(&self, index: u64, block: &[u8; BLOCK]) -> bool {
        let leaf = usize::try_from(index).ok().and_then(|index| self.leaves.get(index));
        leaf.is_some_and(|leaf| *leaf == self.hasher.block(block))
    }

    /// How many data blocks were pushed.
    #[must_use]
    pub fn data_blocks(&self) -> DataBlocks {
        DataBlocks(self.leaves.len() as u64)
    }

    /// The tree over what was pushed.
    ///
    /// # Errors
    /// [`Blocks`](crate::ErrorKind::Blocks) if nothing was pushed: such a volume does not exist.
    pub fn finish(self) -> Result<Tree, Error> {
        let mut levels = vec![self.leaves];
        loop {
            match levels.last().map(Vec::as_slice).unwrap_or_default() {
                [] => return Err(Cause::NoBlocks.into()),
                [root] => {
                    let root = RootHash::from_bytes(*root);
                    return Ok(Tree { levels, root });
                }
                below => {
                    let above = below.chunks(FANOUT).map(|block| self.hasher.digests(block));
                    let above = above.collect();
                    levels.push(above);
                }
            }
        }
    }
}

impl std::fmt::Debug for TreeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeBuilder").field("data_blocks", &self.data_blocks()).finish()
    }
}

/// A finished hash tree.
pub struct Tree {
    /// Digests of each level, leaves first; the last level is the root hash alone.
    levels: Vec<Vec<[u8; DIGEST]>>,
    root: RootHash,
}

impl Tree {
    /// The root hash.
    #[must_use]
    pub fn root(&self) -> RootHash {
        self.root
    }

    /// The number of data blocks it covers.
    #[must_use]
    pub fn data_blocks(&self) -> DataBlocks {
        DataBlocks(self.levels.first().map_or(0, |leaves| leaves.len() as u64))
    }

    /// Writes the hash blocks, topmost level first, and nothing for a volume of one data block.
    ///
    /// # Errors
    /// What `out` answers.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        for level in self.levels.iter().rev().skip(1) {
            let digests = level.as_flattened();
            out.write_all(digests)?;
            let padding = digests.len().next_multiple_of(BLOCK).saturating_sub(digests.len());
            out.write_all([0; BLOCK].get(..padding).unwrap_or_default())?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blocks = self.data_blocks();
        f.debug_struct("Tree").field("root", &self.root).field("data_blocks", &blocks).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, VolumeParams};

    #[test]
    fn a_replaced_block_counts_as_if_pushed() {
        let salt = Salt::from_bytes(b"salt").unwrap();
        let (mut late, mut at_once) = (TreeBuilder::new(&salt), TreeBuilder::new(&salt));
        for n in 0..200u8 {
            at_once.push(&[n; BLOCK]);
            late.push(&[if n == 130 { 0 } else { n }; BLOCK]);
        }
        assert!(late.holds(130, &[0; BLOCK]) && !late.holds(130, &[130; BLOCK]));
        late.replace(130, &[130; BLOCK]).unwrap();
        assert!(late.holds(130, &[130; BLOCK]) && !late.holds(200, &[0; BLOCK]));
        assert_eq!(late.replace(200, &[0; BLOCK]).unwrap_err().kind(), ErrorKind::Blocks);
        assert_eq!(late.finish().unwrap().root(), at_once.finish().unwrap().root());
    }

    #[test]
    fn nothing_pushed_is_no_volume() {
        let error = TreeBuilder::new(&Salt::default()).finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Blocks);
    }

    #[test]
    fn the_written_tree_has_the_length_that_the_geometry_says() {
        for blocks in [1, 2, 127, 128, 129, 300] {
            let mut builder = TreeBuilder::new(&Salt::default());
            (0..blocks).for_each(|_| builder.push(&[7; BLOCK]));
            let tree = builder.finish().unwrap();
            let mut bytes = Vec::new();
            tree.write_to(&mut bytes).unwrap();
            let volume = VolumeParams::new(Salt::default(), tree.data_blocks()).unwrap();
            assert_eq!(bytes.len() as u64, volume.tree_blocks() * 4096, "{blocks} blocks");
        }
    }
}
