//! The layer image formats: an EROFS image and the dm-verity volume over it.
//!
//! This comment and the vectors in `tests/` are the formats. They never change: one byte laid out
//! differently would void every signature, and is a new format name. Numbers are little endian,
//! blocks have 4096 bytes, unused bytes are zero. The same tar gives the same bytes.
//!
//! `hallmark-erofs.1` holds everything; all below is said of it. `hallmark-composefs.1` is the same
//! but for what the last section says.
//!
//! # Blocks
//!
//! | block | what |
//! |---|---|
//! | 0 | 1024 zero bytes, superblock, root inode (nid 36) with its attributes and perhaps its tail |
//! | 1 … | contents and inodes as the tar brings them, then the directories |
//! | `data_blocks` | dm-verity superblock (`hallmark-verity`), UUID as below |
//! | `data_blocks` + 1 … | hash tree over blocks 0 to `data_blocks` − 1, with [`salt`] |
//!
//! The salt is the 32 bytes of SHA-256 of `hallmark-erofs.1`. The UUID of both superblocks is the
//! first 16 bytes of the diffID with the version (8) and variant bits of RFC 9562.
//!
//! # Superblock, at byte 1024
//!
//! | offset | bytes | field | here |
//! |-------:|------:|---|---|
//! |   0 |  4 | magic | 0xE0F5E1E2 |
//! |   4 |  4 | checksum | CRC-32C, seed ~0, not inverted, of bytes 1024 to 4095 with this field zero |
//! |   8 |  4 | feature_compat | 3: checksum, mtime |
//! |  12 |  1 | blkszbits | 12 |
//! |  13 |  1 | sb_extslots | 0 |
//! |  14 |  2 | root_nid | 36 |
//! |  16 |  8 | inos | inodes that have a name, the root included |
//! |  24 | 12 | build_time, nsec | 0 |
//! |  36 |  4 | blocks | `data_blocks` |
//! |  40 |  8 | meta_blkaddr, xattr_blkaddr | 0: a nid is the image offset divided by 32 |
//! |  48 | 16 | uuid | see above |
//! |  64 | 16 | volume_name | `hallmark.1` |
//! |  80 | 48 | feature_incompat and the rest | 0 |
//!
//! # Inode, 64 bytes, extended, at a multiple of 32
//!
//! | offset | bytes | field | here |
//! |-------:|------:|---|---|
//! |  0 |  2 | format | 1 (plain) or 5 (inline tail) |
//! |  2 |  2 | xattr_icount | 0, or 1 + (bytes of attributes − 12) / 4 |
//! |  4 |  2 | mode | |
//! |  6 |  2 | reserved | |
//! |  8 |  8 | size | bytes; 0 for devices and FIFOs |
//! | 16 |  4 | startblk, rdev | first block, 0xffffffff if all is in the tail, 0 if empty; device number as `new_encode_dev` |
//! | 20 |  4 | ino | from 1: what the tar brings in its order, the whiteouts' inode, directories longer than a block, the others, last the root |
//! | 24 |  8 | uid, gid | |
//! | 32 | 12 | mtime, nsec | seconds since 1970, two's complement |
//! | 44 |  4 | nlink | 2 and one for each subdirectory; otherwise the number of names |
//! | 48 | 16 | reserved | |
//!
//! Attributes follow the inode, all inline: a header of 12 zero bytes, then, sorted by full name,
//! name length (1 byte, without prefix), prefix index (1), value length (2), name, value, and zeros
//! to a multiple of 4. Prefixes: 1 `user.`, 2 `system.posix_acl_access`,
//! 3 `system.posix_acl_default`, 4 `trusted.`, 6 `security.`.
//!
//! # Where inodes and tails go
//!
//! There is one *open block*, at first empty, that collects inodes; when it is closed it takes the
//! next block number. An inode with its attributes (and its tail) starts at the next multiple of 32
//! in the open block, and closes it first if it does not fit. An inode that with its attributes
//! alone is longer than a block takes blocks of its own at once, and the open block stays.
//!
//! Content of a regular file: its full blocks take the next block numbers as they arrive; then the
//! *tail*, the last `size % 4096` bytes, and the inode: (1) behind the inode in the open block, if
//! both fit; else (2) in a block of its own (format 1), if the inode alone fits in the open block
//! and the tail leaves less of a block unused than the open block has; else (3) behind the inode in
//! a new open block, if both fit in one; else (4) in a block of its own. A symlink's target is laid
//! out like a content. All whiteouts of a layer are one inode (character device 0:0, mode 0,
//! owner 0:0, mtime 0), after everything that the tar brought.
//!
//! Last come the directories, in preorder, children sorted bytewise: first the full blocks of all
//! of them (with a tail's block where the tail does not fit behind the inode, and inodes longer
//! than a block before the blocks of the same directory), then the open block goes on with their
//! inodes and tails. The root's inode and tail are in block 0; its attributes must fit there.
//!
//! A directory block holds 12 bytes for each name (nid 8, name offset 2, file type 1, reserved 1)
//! and then the names, as many as fit, sorted bytewise over all blocks, `.` and `..` included.
//!
//! # What is patched late
//!
//! Block 0, and the `nlink` of inodes with other than one name. An inode that lost all its names
//! (the tar replaced it) stays where it is, with no name and `nlink` as written.
//!
//! # `hallmark-composefs.1`
//!
//! The content of every regular file that is not empty is an *object*: a file of its own, named by
//! its fs-verity digest (SHA-256, blocks of 4096 bytes, no salt) as [`object_path`] says. overlayfs
//! finds it in a data-only lower, and with `verity=require` compares the digest at each open.
//!
//! | what | here |
//! |---|---|
//! | salt | SHA-256 of `hallmark-composefs.1` |
//! | superblock | volume_name `hallmark.c1`, feature_incompat 4: chunked files |
//! | inode of such a file | format 9 (chunks), startblk 19 (chunks of 2^31 bytes); behind the attributes 0xffffffff for each chunk: holes |
//! | its attributes | two more, which no tar can bring: `trusted.overlay.metacopy`: bytes 0, 36, 0, 1 and the digest; `trusted.overlay.redirect`: `/` and the object's path |
//! | where it goes | the inode, its attributes and holes as one, by the rules of an inode without a tail |
//!
//! All else (empty files, symlinks, directories, whiteouts) is as in `hallmark-erofs.1`.
//!
//! Source: kernel `fs/erofs/erofs_fs.h`, Documentation/filesystems/erofs.rst; `struct ovl_metacopy`
//! of `fs/overlayfs/overlayfs.h`.

use hallmark_verity::{DiffId, FileDigest, Salt};

use crate::xattr::Xattrs;

/// A format of layer images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `hallmark-erofs.1`: the image holds all.
    Erofs1,
    /// `hallmark-composefs.1`: the image holds names and attributes, objects hold the contents.
    Composefs1,
}

impl Format {
    const ALL: [Self; 2] = [Self::Erofs1, Self::Composefs1];

    /// Its name, as a seal states it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs1 => "hallmark-erofs.1",
            Self::Composefs1 => "hallmark-composefs.1",
        }
    }

    /// The salt of every volume of this format: SHA-256 of its name.
    ///
    /// One salt, because blocks are hashed as they fly by, before anything about the whole is
    /// known; and not none, so that a root hash of one format is one of no other.
    #[must_use]
    pub fn salt(self) -> Salt {
        // Only a salt longer than 256 bytes is refused.
        Salt::from_bytes(DiffId::of(self.name().as_bytes()).as_bytes()).unwrap_or_default()
    }

    fn volume_name(self) -> &'static [u8; 16] {
        match self {
            Self::Erofs1 => b"hallmark.1\0\0\0\0\0\0",
            Self::Composefs1 => b"hallmark.c1\0\0\0\0\0",
        }
    }

    fn feature_incompat(self) -> u32 {
        match self {
            Self::Erofs1 => 0,
            Self::Composefs1 => CHUNKED_FILE,
        }
    }
}

/// Where an object is below the directory of objects: two hex digits of its digest, `/`, the other
/// 62.
#[must_use]
pub fn object_path(digest: &FileDigest) -> String {
    let hex = digest.to_hex();
    let (fan, rest) = hex.split_at_checked(2).unwrap_or_default();
    format!("{fan}/{rest}")
}

/// The attributes by which overlayfs finds and proves an object.
pub(crate) fn object_xattrs(digest: &FileDigest) -> [(Vec<u8>, Vec<u8>); 2] {
    let metacopy = [&METACOPY[..], digest.as_bytes()].concat();
    let redirect = format!("/{}", object_path(digest)).into_bytes();
    [(b"trusted.overlay.metacopy".to_vec(), metacopy), (REDIRECT.to_vec(), redirect)]
}

/// Takes the digest out of attributes that have what [`object_xattrs`] gives, and nothing else of
/// the kind.
pub(crate) fn take_object(xattrs: &mut Xattrs) -> Result<FileDigest, &'static str> {
    let bad = "attributes name no object";
    let found = xattrs.get(&b"trusted.overlay.metacopy"[..]).ok_or(bad)?;
    let digest = found.strip_prefix(&METACOPY).and_then(|digest| digest.try_into().ok());
    let digest = FileDigest::from_bytes(digest.ok_or(bad)?);
    for (name, value) in object_xattrs(&digest) {
        if xattrs.remove(&name) != Some(value) {
            return Err(bad);
        }
    }
    Ok(digest)
}

/// `struct ovl_metacopy` before the digest: version, length, flags, SHA-256.
const METACOPY: [u8; 4] = [0, 36, 0, 1];
const REDIRECT: &[u8] = b"trusted.overlay.redirect";

pub(crate) const BLOCK: usize = hallmark_verity::BLOCK;
pub(crate) const SUPERBLOCK: usize = 1024;
pub(crate) const SUPERBLOCK_LEN: usize = 128;
pub(crate) const INODE: usize = 64;
pub(crate) const SLOT: usize = 32;
pub(crate) const ROOT: Nid = Nid(36);
/// Bytes of block 0 from the root inode on.
pub(crate) const ROOT_ROOM: usize = BLOCK - SUPERBLOCK - SUPERBLOCK_LEN;
pub(crate) const DIRENT: usize = 12;
pub(crate) const NAME_MAX: usize = 255;
pub(crate) const SYMLINK_MAX: usize = 4095;
pub(crate) const NLINK_OFFSET: usize = 44;
pub(crate) const NO_BLOCK: u32 = u32::MAX;
pub(crate) const OPAQUE: &[u8] = b"trusted.overlay.opaque";

const MAGIC: u32 = 0xE0F5_E1E2;
const FEATURE_COMPAT: u32 = 3;
const CHUNKED_FILE: u32 = 4;
/// Chunks of 2^(12 + 19) bytes: one is enough for nearly every file.
const CHUNK: u32 = 19;
const CHUNK_LEN: u64 = 1 << 31;

pub(crate) const S_IFMT: u16 = 0o170_000;
pub(crate) const S_IFDIR: u16 = 0o040_000;
pub(crate) const S_IFREG: u16 = 0o100_000;
pub(crate) const S_IFLNK: u16 = 0o120_000;
pub(crate) const S_IFCHR: u16 = 0o020_000;
pub(crate) const S_IFBLK: u16 = 0o060_000;
pub(crate) const S_IFIFO: u16 = 0o010_000;

/// The position of an inode: its offset in the image divided by 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nid(pub(crate) u64);

impl Nid {
    /// The inode at byte `offset` of block `block`.
    pub(crate) fn at(block: u64, offset: usize) -> Self {
        const SLOTS: u64 = (BLOCK / SLOT) as u64;
        Self(block.saturating_mul(SLOTS).saturating_add((offset / SLOT) as u64))
    }

    pub(crate) fn offset(self) -> u64 {
        self.0.saturating_mul(SLOT as u64)
    }
}

/// A moment: seconds since 1970, negative before it, and nanoseconds after that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// 0 to 999 999 999.
    pub nanoseconds: u32,
}

/// Owner, permissions and time of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The lowest twelve bits of the mode.
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
}

impl Meta {
    /// What a directory has that no entry describes; containerd's default, at a fixed time.
    pub(crate) const IMPLIED: Self = Self {
        permissions: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds: 0, nanoseconds: 0 },
    };

    pub(crate) const WHITEOUT: Self = Self { permissions: 0, ..Self::IMPLIED };
}

/// The type field of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    pub(crate) fn of_mode(mode: u16) -> Option<Self> {
        match mode & S_IFMT {
            S_IFREG => Some(Self::Regular),
            S_IFDIR => Some(Self::Directory),
            S_IFCHR => Some(Self::CharDevice),
            S_IFBLK => Some(Self::BlockDevice),
            S_IFIFO => Some(Self::Fifo),
            S_IFLNK => Some(Self::Symlink),
            _ => None,
        }
    }

    pub(crate) fn mode(self) -> u16 {
        match self {
            Self::Regular => S_IFREG,
            Self::Directory => S_IFDIR,
            Self::CharDevice => S_IFCHR,
            Self::BlockDevice => S_IFBLK,
            Self::Fifo => S_IFIFO,
            Self::Symlink => S_IFLNK,
        }
    }
}

/// Where the content of an inode is; fields `format` and `startblk` or `rdev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    Empty,
    Device(u32),
    /// All of it in blocks from this one on.
    Plain(u32),
    /// Full blocks from this one on, the rest behind the inode.
    Inline(u32),
    /// In an object.
    Object,
}

/// An inode as it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) kind: FileType,
    pub(crate) meta: Meta,
    pub(crate) size: u64,
    pub(crate) data: Data,
    pub(crate) ino: u32,
    pub(crate) nlink: u32,
    /// Bytes of its attributes, header included; 0 or 12 and more.
    pub(crate) xattrs: usize,
}

/// What stands behind the attributes of a file of `size` bytes whose content is an object.
pub(crate) fn holes(size: u64) -> Vec<u8> {
    let chunks = usize::try_from(size.div_ceil(CHUNK_LEN)).unwrap_or(usize::MAX);
    vec![0xff; chunks.saturating_mul(4)]
}

impl Inode {
    pub(crate) fn encode(&self) -> [u8; INODE] {
        let (format, pointer) = match self.data {
            Data::Empty => (1u16, 0),
            Data::Device(number) => (1, number),
            Data::Plain(start) => (1, start),
            Data::Inline(start) => (5, start),
            Data::Object => (9, CHUNK),
        };
        let icount = match self.xattrs {
            0 => 0,
            len => u16::try_from(len.saturating_sub(8) / 4).unwrap_or(u16::MAX),
        };
        let mtime = self.meta.mtime;
        let mut bytes = [0; INODE];
        let mut out = Put(&mut bytes);
        out.put(&format.to_le_bytes());
        out.put(&icount.to_le_bytes());
        out.put(&(self.kind.mode() | self.meta.permissions).to_le_bytes());
        out.put(&[0; 2]);
        out.put(&self.size.to_le_bytes());
        out.put(&pointer.to_le_bytes());
        out.put(&self.ino.to_le_bytes());
        out.put(&self.meta.uid.to_le_bytes());
        out.put(&self.meta.gid.to_le_bytes());
        out.put(&mtime.seconds.to_le_bytes());
        out.put(&mtime.nanoseconds.to_le_bytes());
        out.put(&self.nlink.to_le_bytes());
        bytes
    }

    /// Reads an inode that [`encode`](Self::encode) can have written, and no other.
    pub(crate) fn parse(bytes: &[u8; INODE]) -> Result<Self, &'static str> {
        let mut rest = Take(bytes);
        let format = u16::from_le_bytes(rest.take());
        let icount = usize::from(u16::from_le_bytes(rest.take()));
        let mode = u16::from_le_bytes(rest.take());
        let reserved = u16::from_le_bytes(rest.take());
        let size = u64::from_le_bytes(rest.take());
        let pointer = u32::from_le_bytes(rest.take());
        let ino = u32::from_le_bytes(rest.take());
        let (uid, gid) = (u32::from_le_bytes(rest.take()), u32::from_le_bytes(rest.take()));
        let mtime = Timestamp {
            seconds: i64::from_le_bytes(rest.take()),
            nanoseconds: u32::from_le_bytes(rest.take()),
        };
        let nlink = u32::from_le_bytes(rest.take());
        let kind = FileType::of_mode(mode).ok_or("inode has an unknown file type")?;
        if reserved != 0 || rest.0.iter().any(|byte| *byte != 0) {
            return Err("inode has bits set that this format has not");
        }
        if mtime.nanoseconds > 999_999_999 {
            return Err("inode has a second of more than 10^9 nanoseconds");
        }
        let device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
        let data = match (format, size) {
            (1, 0) if device => Data::Device(pointer),
            (1, 0) if pointer == 0 => Data::Empty,
            (1, 1..) if !device && kind != FileType::Fifo => Data::Plain(pointer),
            (5, 1..) if !device && kind != FileType::Fifo => Data::Inline(pointer),
            (9, 1..) if kind == FileType::Regular && pointer == CHUNK => Data::Object,
            _ => return Err("inode has a layout that this format has not"),
        };
        let xattrs = match icount {
            0 => 0,
            count => count.saturating_sub(1).saturating_mul(4).saturating_add(12),
        };
        let meta = Meta { permissions: mode & !S_IFMT, uid, gid, mtime };
        Ok(Self { kind, meta, size, data, ino, nlink, xattrs })
    }
}

/// The free fields of the EROFS superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) format: Format,
    pub(crate) inos: u64,
    pub(crate) blocks: u32,
    pub(crate) uuid: [u8; 16],
}

impl Superblock {
    /// Writes the superblock into block 0, whose other bytes are complete.
    pub(crate) fn encode_into(&self, block: &mut [u8; BLOCK]) {
        let Some(area) = block.get_mut(SUPERBLOCK..) else { return };
        let mut out = Put(area);
        out.put(&MAGIC.to_le_bytes());
        out.put(&[0; 4]);
        out.put(&FEATURE_COMPAT.to_le_bytes());
        out.put(&[12, 0]);
        out.put(&u16::try_from(ROOT.0).unwrap_or_default().to_le_bytes());
        out.put(&self.inos.to_le_bytes());
        out.put(&[0; 12]);
        out.put(&self.blocks.to_le_bytes());
        out.put(&[0; 8]);
        out.put(&self.uuid);
        out.put(self.format.volume_name());
        out.put(&self.format.feature_incompat().to_le_bytes());
        out.put(&[0; 44]);
        let checksum = crc32c(area);
        if let Some(field) = area.get_mut(4..8) {
            field.copy_from_slice(&checksum.to_le_bytes());
        }
    }

    /// Reads the superblock of a block 0 that [`encode_into`](Self::encode_into) can have made.
    pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let mut rest = Take(block.get(SUPERBLOCK..).unwrap_or_default());
        if u32::from_le_bytes(rest.take()) != MAGIC {
            return Err("superblock has no EROFS magic");
        }
        let mut rest = Take(rest.0.get(12..).unwrap_or_default());
        let inos = u64::from_le_bytes(rest.take());
        let mut rest = Take(rest.0.get(12..).unwrap_or_default());
        let blocks = u32::from_le_bytes(rest.take());
        let mut rest = Take(rest.0.get(8..).unwrap_or_default());
        let (uuid, name) = (rest.take(), rest.take());
        let format = Format::ALL.into_iter().find(|format| *format.volume_name() == name);
        let format = format.ok_or("superblock is not one of a known format")?;
        let superblock = Self { format, inos, blocks, uuid };
        let mut again = *block;
        if let Some(area) = again.get_mut(..SUPERBLOCK) {
            area.fill(0);
        }
        superblock.encode_into(&mut again);
        if again != *block {
            return Err("superblock is not one of this format, or its checksum is wrong");
        }
        Ok(superblock)
    }
}

/// The UUID of an image: RFC 9562 version 8 over the diffID.
pub(crate) fn uuid(diff_id: &DiffId) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.iter_mut().zip(diff_id.as_bytes()).for_each(|(to, from)| *to = *from);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// Fills a field after a field; what does not fit is not written.
struct Put<'a>(&'a mut [u8]);

impl Put<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let area = std::mem::take(&mut self.0);
        if let Some((head, tail)) = area.split_at_mut_checked(bytes.len()) {
            head.copy_from_slice(bytes);
            self.0 = tail;
        }
    }
}

/// Takes field after field; zeros after the end.
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl Take<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((head, tail)) => {
                self.0 = tail;
                *head
            }
            None => [0; N],
        }
    }
}

/// CRC-32C (Castagnoli) with seed ~0 and without the final inversion, as the kernel computes it.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        let [low, ..] = (crc ^ u32::from(*byte)).to_le_bytes();
        let row = CRC32C.get(usize::from(low)).copied().unwrap_or_default();
        row ^ (crc >> 8)
    })
}

const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let (mut row, mut rest): (u32, &mut [u32]) = (0, &mut table);
    while let Some((head, tail)) = rest.split_first_mut() {
        let (mut crc, mut bits) = (row, 8u32);
        while let Some(left) = bits.checked_sub(1) {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            bits = left;
        }
        *head = crc;
        row = row.wrapping_add(1);
        rest = tail;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn the_salt_is_the_hash_of_the_name() {
        // printf hallmark-erofs.1 | sha256sum
        let hex = "5f788159610d33007b120afc73f39a46687c8f9d04a661c58e92c4335d49ea8c";
        assert_eq!(Format::Erofs1.salt().to_string(), hex);
        // printf hallmark-composefs.1 | sha256sum
        let hex = "054cc5a989adffdbd6fb457f99f51bb52f4a1bdc651a3a43537eb5ea2a2fae82";
        assert_eq!(Format::Composefs1.salt().to_string(), hex);
    }

    #[test]
    fn an_object_is_named_in_one_way_only() {
        let digest = FileDigest::from_bytes([0xab; 32]);
        let named = || Xattrs::from(object_xattrs(&digest));
        assert_eq!(object_path(&digest), format!("ab/{}", "ab".repeat(31)));
        let mut xattrs = named();
        xattrs.insert(b"user.a".to_vec(), Vec::new());
        assert_eq!(take_object(&mut xattrs), Ok(digest));
        assert_eq!(xattrs.len(), 1);
        for (name, at) in
            [(&b"trusted.overlay.metacopy"[..], 3), (b"trusted.overlay.metacopy", 9), (REDIRECT, 5)]
        {
            let mut xattrs = named();
            xattrs.get_mut(name).unwrap()[at] ^= 1;
            assert!(take_object(&mut xattrs).is_err(), "{} {at}", name.escape_ascii());
        }
        for name in [&b"trusted.overlay.metacopy"[..], REDIRECT] {
            let mut xattrs = named();
            xattrs.remove(name);
            assert!(take_object(&mut xattrs).is_err());
        }
    }

    #[test]
    fn a_hole_for_each_chunk() {
        for (size, len) in [(1, 4), (1 << 31, 4), ((1 << 31) + 1, 8), (1 << 40, 4 * 512)] {
            assert_eq!(holes(size), vec![0xff; len], "{size} bytes");
        }
    }

    #[test]
    fn inodes_survive_encoding() {
        let mtime = Timestamp { seconds: -2, nanoseconds: 999_999_999 };
        let meta = Meta { permissions: 0o6755, uid: u32::MAX, gid: 7, mtime };
        let inode = Inode {
            kind: FileType::Regular,
            meta,
            size: 5000,
            data: Data::Inline(9),
            ino: 3,
            nlink: 2,
            xattrs: 28,
        };
        assert_eq!(Inode::parse(&inode.encode()), Ok(inode));
        let device =
            Inode { kind: FileType::CharDevice, size: 0, data: Data::Device(0x103), ..inode };
        assert_eq!(Inode::parse(&device.encode()), Ok(device));
        let object = Inode { data: Data::Object, ..inode };
        assert_eq!(Inode::parse(&object.encode()), Ok(object));
        let directory = Inode { kind: FileType::Directory, ..object };
        assert!(Inode::parse(&directory.encode()).is_err());
        for at in [0, 6, 16, 48, 63] {
            let mut bytes = Inode { data: Data::Empty, size: 0, ..inode }.encode();
            bytes[at] ^= 2;
            assert!(Inode::parse(&bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn every_changed_byte_of_block_0_is_seen() {
        for format in Format::ALL {
            let superblock = Superblock { format, inos: 3, blocks: 12, uuid: [5; 16] };
            let mut block = [0; BLOCK];
            block[2000] = 1;
            superblock.encode_into(&mut block);
            assert_eq!(Superblock::parse(&block), Ok(superblock));
            for at in 0..BLOCK {
                let mut bad = block;
                bad[at] ^= 0x10;
                assert!(Superblock::parse(&bad).is_err(), "{format:?}, byte {at}");
            }
        }
    }
}
