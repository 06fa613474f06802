//! The content of a directory: blocks of entries, each block followed by the names it holds.

use crate::error::Error;
use crate::format::{BLOCK, DIRENT, FileType, Nid};

/// What a name in a directory leads to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) nid: Nid,
    pub(crate) kind: FileType,
}

/// Bytes used of the block being filled, and of the blocks before it.
#[derive(Default)]
struct Fill {
    blocks: u64,
    used: usize,
}

impl Fill {
    /// Makes room for a name of `len` bytes; says whether that began another block.
    fn add(&mut self, len: usize) -> bool {
        let len = len.saturating_add(DIRENT);
        let next = self.used.saturating_add(len) > BLOCK;
        if next {
            self.blocks = self.blocks.saturating_add(1);
            self.used = 0;
        }
        self.used = self.used.saturating_add(len);
        next
    }
}

/// Bytes of a directory with names of these lengths, in their order.
pub(crate) fn size(names: impl Iterator<Item = usize>) -> u64 {
    let mut fill = Fill::default();
    for len in names {
        fill.add(len);
    }
    fill.blocks.saturating_mul(BLOCK as u64).saturating_add(fill.used as u64)
}

/// Gives `full` every whole block of a directory and returns what is left: less than a block.
///
/// `entries` are sorted, have names of at most 255 bytes and hold `.` and `..`.
pub(crate) fn encode<'a>(
    entries: impl Iterator<Item = (&'a [u8], Target)>,
    mut full: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<Vec<u8>, Error> {
    let mut fill = Fill::default();
    let mut block = Vec::new();
    for (name, target) in entries {
        if fill.add(name.len()) {
            let mut bytes = encode_block(&block);
            bytes.resize(BLOCK, 0);
            full(&bytes)?;
            block.clear();
        }
        block.push((name, target));
    }
    let bytes = encode_block(&block);
    if bytes.len() == BLOCK {
        full(&bytes)?;
        return Ok(Vec::new());
    }
    Ok(bytes)
}

fn encode_block(entries: &[(&[u8], Target)]) -> Vec<u8> {
    let mut at = entries.len().saturating_mul(DIRENT);
    let names = entries.iter().fold(0, |sum: usize, (name, _)| sum.saturating_add(name.len()));
    // Exactly: the tails of all directories are in memory at once.
    let mut bytes = Vec::with_capacity(at.saturating_add(names));
    for (name, target) in entries {
        bytes.extend(target.nid.0.to_le_bytes());
        bytes.extend(u16::try_from(at).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend([target.kind as u8, 0]);
        at = at.saturating_add(name.len());
    }
    entries.iter().for_each(|(name, _)| bytes.extend(*name));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_what_encode_writes() {
        for count in [0, 1, 2, 200, 300, 1000] {
            for len in [1usize, 4, 100, 255] {
                let names: Vec<Vec<u8>> = (0..count)
                    .map(|n: usize| format!("{n:0len$}").into_bytes())
                    .take_while(|name| name.len() == len)
                    .collect();
                let target = Target { nid: Nid(36), kind: FileType::Regular };
                let mut written = 0;
                let tail = encode(names.iter().map(|name| (name.as_slice(), target)), |block| {
                    assert_eq!(block.len(), BLOCK);
                    written += BLOCK;
                    Ok(())
                });
                written += tail.unwrap().len();
                assert_eq!(size(names.iter().map(Vec::len)), written as u64, "{count} of {len}");
            }
        }
    }

    #[test]
    fn a_block_that_is_exactly_full_has_no_tail() {
        // 16 × (12 + 244) = 4096
        let names: Vec<Vec<u8>> = (0..16u8).map(|n| vec![b'a' + n; 244]).collect();
        let target = Target { nid: Nid(1), kind: FileType::Fifo };
        let mut blocks = 0;
        let entries = names.iter().map(|name| (name.as_slice(), target));
        let tail = encode(entries, |_| {
            blocks += 1;
            Ok(())
        });
        assert_eq!((blocks, tail.unwrap().len()), (1, 0));
    }
}
