//! Writes blocks and inodes in order, and hashes each block as it goes.

use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use hallmark_verity::{Superblock as VeritySuperblock, Tree, TreeBuilder, VolumeParams};

use crate::error::{Cause, Error};
use crate::format::{
    BLOCK, Data, Format, INODE, Inode, NLINK_OFFSET, NO_BLOCK, Nid, ROOT_ROOM, SLOT, SUPERBLOCK,
    SUPERBLOCK_LEN, Superblock,
};

/// Bytes collected before they are handed to the image file. Runs of blocks that are longer go there without a copy.
const WRITE: usize = 64 << 10;

const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Where the next `len` bytes start in an open block with `used` bytes, or `None` if they do not
/// fit into what is left of it.
pub(crate) fn fit(used: usize, len: usize) -> Option<usize> {
    let start = used.next_multiple_of(SLOT);
    (start.saturating_add(len) <= BLOCK).then_some(start)
}

/// Splits a size into full blocks and the bytes after them.
pub(crate) fn blocks_and_tail(size: u64) -> (u64, usize) {
    const LEN: u64 = BLOCK as u64;
    let full = size.checked_div(LEN).unwrap_or_default();
    let tail = size.saturating_sub(full.saturating_mul(LEN));
    (full, usize::try_from(tail).unwrap_or_default())
}

/// An inode that was written, or is in the open block: its number, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ino(pub(crate) u32);

/// An image being written.
pub(crate) struct ImageWriter<W: Write> {
    format: Format,
    out: BufWriter<W>,
    tree: TreeBuilder,
    /// The open block, without its trailing zeros.
    open: Vec<u8>,
    /// Inodes in the open block.
    waiting: Vec<(Ino, usize)>,
    /// The position of each inode that was written, by number − 1.
    nids: Vec<Nid>,
}

impl<W: Read + Write + Seek> ImageWriter<W> {
    /// Begins at the start of `image`, with block 0 still empty.
    pub(crate) fn new(mut image: W, format: Format) -> Result<Self, Error> {
        image.seek(SeekFrom::Start(0)).map_err(Cause::Image)?;
        let mut writer = Self {
            format,
            out: BufWriter::with_capacity(WRITE, image),
            tree: TreeBuilder::new(&format.salt()),
            open: Vec::with_capacity(BLOCK),
            waiting: Vec::new(),
            nids: Vec::new(),
        };
        writer.blocks(&ZEROS)?;
        Ok(writer)
    }

    /// The number of the next block to be written.
    pub(crate) fn next_block(&self) -> Result<u32, Error> {
        // A superblock counts blocks in 32 bits, and the last value means "no block".
        let next = u32::try_from(self.tree.data_blocks().0).ok().filter(|next| *next < NO_BLOCK);
        next.ok_or_else(|| Cause::Limit { what: "blocks", limit: u64::from(NO_BLOCK) }.into())
    }

    /// Bytes in the open block.
    pub(crate) fn open_len(&self) -> usize {
        self.open.len()
    }

    /// The number of the next inode.
    pub(crate) fn next_ino(&self) -> Result<u32, Error> {
        u32::try_from(self.nids.len())
            .ok()
            .and_then(|count| count.checked_add(1))
            .ok_or_else(|| Cause::Limit { what: "inodes", limit: u64::from(u32::MAX) }.into())
    }

    /// Where an inode is; only inodes in the open block are not known yet.
    pub(crate) fn nid(&self, ino: Ino) -> Option<Nid> {
        self.nids.get(usize::try_from(ino.0).ok()?.checked_sub(1)?).copied()
    }

    /// Writes whole blocks.
    pub(crate) fn blocks(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.tree.extend(bytes.as_chunks::<BLOCK>().0);
        self.out.write_all(bytes).map_err(Cause::Image)?;
        Ok(())
    }

    /// Writes bytes and zeros to the end of their last block.
    pub(crate) fn padded(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(BLOCK), 0);
        self.blocks(&padded)
    }

    /// Writes an inode whose full blocks were written from block `start` on, with its attributes
    /// and tail, by the rules of the format.
    pub(crate) fn inode(
        &mut self,
        mut inode: Inode,
        start: u32,
        xattrs: &[u8],
        tail: &[u8],
    ) -> Result<Ino, Error> {
        let len = INODE.saturating_add(xattrs.len());
        if inode.size > 0 {
            let inlined = !tail.is_empty() && self.inlines(len, tail.len());
            let only_tail = inode.size == tail.len() as u64;
            inode.data = match (inlined, only_tail) {
                (true, true) => Data::Inline(NO_BLOCK),
                (true, false) => Data::Inline(start),
                (false, _) => Data::Plain(start),
            };
            if inlined {
                return self.place(&inode, &[xattrs, tail]);
            }
            if !tail.is_empty() {
                self.padded(tail)?;
            }
        }
        self.place(&inode, &[xattrs])
    }

    /// Whether a tail goes behind its inode of `len` bytes: cases (1) and (3) of the format.
    fn inlines(&self, len: usize, tail: usize) -> bool {
        let both = len.saturating_add(tail);
        let room = BLOCK.saturating_sub(self.open.len().next_multiple_of(SLOT));
        let wasted = BLOCK.saturating_sub(tail);
        both <= room || !(len <= room && wasted < room) && both <= BLOCK
    }

    /// Writes an inode and what follows it into the open block, or into blocks of its own.
    pub(crate) fn place(&mut self, inode: &Inode, parts: &[&[u8]]) -> Result<Ino, Error> {
        let ino = Ino(self.next_ino()?);
        let mut bytes = inode.encode().to_vec();
        parts.iter().for_each(|part| bytes.extend(*part));
        if bytes.len() > BLOCK {
            self.nids.push(Nid::at(self.next_block()?.into(), 0));
            self.padded(&bytes)?;
            return Ok(ino);
        }
        if fit(self.open.len(), bytes.len()).is_none() {
            self.close()?;
        }
        let at = fit(self.open.len(), bytes.len()).unwrap_or_default();
        self.open.resize(at, 0);
        self.open.append(&mut bytes);
        self.waiting.push((ino, at));
        self.nids.push(Nid(0));
        Ok(ino)
    }

    /// Says which number the open block will have, so that its inodes can be named before it is
    /// written.
    pub(crate) fn announce(&mut self, block: u32) {
        for (ino, at) in &self.waiting {
            let index = usize::try_from(ino.0).ok().and_then(|ino| ino.checked_sub(1));
            if let Some(nid) = index.and_then(|index| self.nids.get_mut(index)) {
                *nid = Nid::at(block.into(), *at);
            }
        }
    }

    /// Writes the open block, and begins another.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        if self.open.is_empty() {
            return Ok(());
        }
        self.announce(self.next_block()?);
        self.waiting.clear();
        let mut open = std::mem::take(&mut self.open);
        open.resize(BLOCK, 0);
        self.blocks(&open)?;
        open.clear();
        self.open = open;
        Ok(())
    }

    /// Sets the number of names of inodes, all of them written; sorted by position.
    pub(crate) fn patch_nlinks(&mut self, links: &[(Nid, u32)]) -> Result<(), Error> {
        for same_block in links.chunk_by(|(a, _), (b, _)| block_of(*a) == block_of(*b)) {
            let Some((first, _)) = same_block.first() else { continue };
            let index = block_of(*first);
            let mut block = self.read_back(index)?;
            for (nid, nlink) in same_block {
                let (_, at) = blocks_and_tail(nid.offset());
                let field = at.saturating_add(NLINK_OFFSET);
                let field = block.get_mut(field..).and_then(|rest| rest.first_chunk_mut());
                if let Some(field) = field {
                    *field = nlink.to_le_bytes();
                }
            }
            self.rewrite(index, &block)?;
        }
        Ok(())
    }

    /// Writes block 0 and everything after the data, and gives the tree back.
    pub(crate) fn finish(
        mut self,
        root: &Inode,
        parts: &[&[u8]],
        inos: u64,
        uuid: [u8; 16],
    ) -> Result<Tree, Error> {
        let mut block =
            ZEROS.get(..SUPERBLOCK.saturating_add(SUPERBLOCK_LEN)).unwrap_or_default().to_vec();
        block.extend(root.encode());
        parts.iter().for_each(|part| block.extend(*part));
        block.resize(BLOCK, 0);
        if let Some(block) = block.first_chunk_mut::<BLOCK>() {
            let blocks = self.next_block()?;
            Superblock { format: self.format, inos, blocks, uuid }.encode_into(block);
            self.rewrite(0, block)?;
        }
        let tree = self.tree.finish().map_err(Cause::Verity)?;
        let params =
            VolumeParams::new(self.format.salt(), tree.data_blocks()).map_err(Cause::Verity)?;
        let data_len = params.data_len();
        let superblock = VeritySuperblock { uuid, params }.encode();
        let padding = ZEROS.get(superblock.len()..).unwrap_or_default();
        let mut write = || -> io::Result<()> {
            self.out.seek(SeekFrom::Start(data_len))?;
            self.out.write_all(&superblock)?;
            self.out.write_all(padding)?;
            tree.write_to(&mut self.out)?;
            self.out.flush()
        };
        write().map_err(Cause::Image)?;
        Ok(tree)
    }

    /// Reads a block that was written before.
    fn read_back(&mut self, index: u64) -> Result<[u8; BLOCK], Error> {
        let mut block = ZEROS;
        let at = SeekFrom::Start(index.saturating_mul(BLOCK as u64));
        self.out.seek(at).map_err(Cause::Image)?;
        self.out.get_mut().read_exact(&mut block).map_err(Cause::Image)?;
        if !self.tree.holds(index, &block) {
            return Err(Cause::Changed(index).into());
        }
        Ok(block)
    }

    fn rewrite(&mut self, index: u64, block: &[u8; BLOCK]) -> Result<(), Error> {
        let at = SeekFrom::Start(index.saturating_mul(BLOCK as u64));
        self.out.seek(at).map_err(Cause::Image)?;
        self.out.write_all(block).map_err(Cause::Image)?;
        self.tree.replace(index, block).map_err(Cause::Verity)?;
        Ok(())
    }
}

/// Whether the root's inode, attributes included, fits into block 0, and its tail with it.
pub(crate) fn root_fits(xattrs: usize, tail: usize) -> bool {
    INODE.saturating_add(xattrs).saturating_add(tail) <= ROOT_ROOM
}

fn block_of(nid: Nid) -> u64 {
    blocks_and_tail(nid.offset()).0
}
