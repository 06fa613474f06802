//! A reader of images of these formats, and of no other EROFS.
//!
//! Every number is checked before use, memory and time are bounded by [`Limits`], and nothing
//! panics: the bytes may be anybody's. What it reads is what the kernel would show, names included
//! that only overlayfs gives a meaning.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};

use hallmark_verity::{
    DataBlocks, FileDigest, SUPERBLOCK_LEN, Superblock as VeritySuperblock, VolumeParams,
};

use crate::error::{Cause, Error};
use crate::format::{
    BLOCK, DIRENT, Data, FileType, Format, INODE, Inode, NAME_MAX, NO_BLOCK, Nid, OPAQUE, ROOT,
    SYMLINK_MAX, Superblock, Take, Timestamp, holes, take_object,
};
use crate::image::blocks_and_tail;
use crate::limits::Limits;
use crate::xattr;

/// A layer image that is being read.
#[derive(Debug)]
pub struct Image<R> {
    data: R,
    superblock: Superblock,
    limits: Limits,
}

/// A name in an image and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Components joined by `/`, without one in front; empty for the root.
    pub path: Vec<u8>,
    /// Type, with what belongs to it.
    pub kind: EntryKind,
    /// The lowest twelve bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Number of names.
    pub nlink: u32,
    /// Full name and value, sorted by name; those of overlayfs are not among them.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    nid: Nid,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Bytes of content.
        size: u64,
        /// Where they are, if not in the image; always so in a non-empty file of
        /// [`Composefs1`](Format::Composefs1).
        object: Option<FileDigest>,
    },
    /// A directory.
    Directory {
        /// Hides what lower layers have in it.
        opaque: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads: any bytes.
        target: Vec<u8>,
    },
    /// A character device, never 0:0.
    CharDevice {
        /// Major number, below 2^12.
        major: u32,
        /// Minor number, below 2^20.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number, below 2^12.
        major: u32,
        /// Minor number, below 2^20.
        minor: u32,
    },
    /// A FIFO.
    Fifo,
    /// Hides what lower layers have under this name: for the kernel a character device 0:0.
    Whiteout,
}

impl Entry {
    /// The position of the inode: names with the same number are hard links of each other.
    #[must_use]
    pub fn nid(&self) -> u64 {
        self.nid.0
    }
}

impl<R: Read + Seek> Image<R> {
    /// Reads the superblock.
    ///
    /// Nothing is hashed: whether the image is the one that was signed is not this reader's to say.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) for an image of another format;
    /// [`Image`](crate::ErrorKind::Image) for what `data` answers.
    pub fn open(mut data: R, limits: &Limits) -> Result<Self, Error> {
        let mut block = [0; BLOCK];
        read_at(&mut data, 0, &mut block)?;
        let superblock = Superblock::parse(&block).map_err(|what| format_error(1024, what))?;
        if superblock.blocks == 0 || superblock.blocks == NO_BLOCK {
            return Err(format_error(1024, "superblock has an impossible number of blocks"));
        }
        Ok(Self { data, superblock, limits: limits.clone() })
    }

    /// The format of the image.
    #[must_use]
    pub fn format(&self) -> Format {
        self.superblock.format
    }

    /// The volume over the image, as the superblocks at its start and its end state it.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) if the superblock behind the data is missing or
    /// disagrees.
    pub fn volume(&mut self) -> Result<VolumeParams, Error> {
        let blocks = DataBlocks(self.superblock.blocks.into());
        let params = VolumeParams::new(self.format().salt(), blocks).map_err(Cause::Verity)?;
        let at = params.data_len();
        let mut bytes = [0; SUPERBLOCK_LEN];
        read_at(&mut self.data, at, &mut bytes)?;
        match VeritySuperblock::parse(&bytes) {
            Ok(found) if found.params == params && found.uuid == self.superblock.uuid => Ok(params),
            _ => Err(format_error(at, "dm-verity superblock is not that of this image")),
        }
    }

    /// Gives `visit` every name, parents first and siblings sorted, beginning with the root.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) and [`Limit`](crate::ErrorKind::Limit), or what `visit`
    /// returns.
    pub fn walk<E: From<Error>>(
        &mut self,
        mut visit: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut todo = vec![(Vec::new(), ROOT, FileType::Directory, 0usize)];
        let mut directories = BTreeSet::new();
        let (mut count, mut held) = (0u64, 0u64);
        while let Some((path, nid, kind, depth)) = todo.pop() {
            count = count.saturating_add(1);
            if count > self.limits.entries {
                return Err(limit("entries", self.limits.entries).into());
            }
            held = held.saturating_sub(path.len() as u64);
            if kind == FileType::Directory {
                if !directories.insert(nid) {
                    return Err(format_error(nid.offset(), "directory has two names").into());
                }
                if depth > self.limits.depth {
                    return Err(
                        limit("directories above an entry", self.limits.depth as u64).into()
                    );
                }
                let children = self.directory(nid)?;
                for (name, child, kind) in children.into_iter().rev() {
                    let path = match &path[..] {
                        b"" => name,
                        parent => [parent, b"/", &name].concat(),
                    };
                    held = held.saturating_add(path.len() as u64);
                    todo.push((path, child, kind, depth.saturating_add(1)));
                }
                if held > self.limits.metadata {
                    return Err(limit("bytes of names", self.limits.metadata).into());
                }
            }
            let entry = self.entry(path, nid, kind)?;
            visit(entry)?;
        }
        Ok(())
    }

    /// All names, as [`walk`](Self::walk) visits them.
    ///
    /// # Errors
    /// As [`walk`](Self::walk).
    pub fn entries(&mut self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        self.walk(|entry| {
            entries.push(entry);
            Ok::<_, Error>(())
        })?;
        Ok(entries)
    }

    /// Writes the content of a regular file to `out`.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) if the entry is no regular file of this image, or one
    /// whose content is an object;
    /// [`Image`](crate::ErrorKind::Image) for what the image or `out` answer.
    pub fn content(&mut self, entry: &Entry, out: &mut impl Write) -> Result<(), Error> {
        let inode = self.inode(entry.nid)?;
        if inode.kind != FileType::Regular {
            return Err(format_error(entry.nid.offset(), "is not a regular file"));
        }
        let mut at = 0;
        let mut buffer = vec![0; 64 * BLOCK];
        while at < inode.size {
            let left = usize::try_from(inode.size.saturating_sub(at)).unwrap_or(usize::MAX);
            let wanted = left.min(buffer.len());
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            self.read_content(entry.nid, &inode, at, part)?;
            out.write_all(part).map_err(Cause::Image)?;
            at = at.saturating_add(wanted as u64);
        }
        Ok(())
    }

    /// Reads an inode and checks that it lies in the data.
    fn inode(&mut self, nid: Nid) -> Result<Inode, Error> {
        let mut bytes = [0; INODE];
        self.read_data(nid.offset(), &mut bytes)?;
        let inode = Inode::parse(&bytes).map_err(|what| format_error(nid.offset(), what))?;
        if inode.data == Data::Empty && inode.kind == FileType::Directory {
            return Err(format_error(nid.offset(), "directory is empty"));
        }
        let is_content = inode.kind == FileType::Regular && inode.size > 0;
        let outside = is_content && self.format() == Format::Composefs1;
        if outside != (inode.data == Data::Object) {
            return Err(format_error(nid.offset(), "content is not where this format has it"));
        }
        Ok(inode)
    }

    /// Reads content from byte `at` on; `part` ends inside it.
    fn read_content(
        &mut self,
        nid: Nid,
        inode: &Inode,
        at: u64,
        part: &mut [u8],
    ) -> Result<(), Error> {
        let bad = || format_error(nid.offset(), "inode has a layout that this format has not");
        let (start, in_blocks) = match inode.data {
            Data::Plain(start) => (start, inode.size),
            Data::Inline(start) => {
                (start, blocks_and_tail(inode.size).0.saturating_mul(BLOCK as u64))
            }
            Data::Empty | Data::Device(_) | Data::Object => return Err(bad()),
        };
        let head = in_blocks.saturating_sub(at).min(part.len() as u64);
        let (head, tail) = part
            .split_at_mut_checked(usize::try_from(head).unwrap_or(usize::MAX))
            .ok_or_else(bad)?;
        let blocks = u64::from(start).saturating_mul(BLOCK as u64);
        if !head.is_empty() {
            self.read_data(blocks.saturating_add(at), head)?;
        }
        if !tail.is_empty() {
            let behind = INODE.saturating_add(inode.xattrs) as u64;
            let tail_at = nid.offset().saturating_add(behind);
            let in_tail = at.saturating_add(head.len() as u64).saturating_sub(in_blocks);
            let from = tail_at.saturating_add(in_tail);
            let to = from.saturating_add(tail.len() as u64);
            if blocks_and_tail(tail_at).0 != blocks_and_tail(to.saturating_sub(1)).0 {
                return Err(format_error(nid.offset(), "tail is not in one block"));
            }
            self.read_data(from, tail)?;
        }
        Ok(())
    }

    /// Reads all of a content that is small by its nature.
    fn small_content(&mut self, nid: Nid, inode: &Inode, max: u64) -> Result<Vec<u8>, Error> {
        if inode.size > max {
            return Err(format_error(nid.offset(), "content is larger than it can be"));
        }
        let mut content = vec![0; usize::try_from(inode.size).unwrap_or_default()];
        self.read_content(nid, inode, 0, &mut content)?;
        Ok(content)
    }

    fn entry(&mut self, path: Vec<u8>, nid: Nid, kind: FileType) -> Result<Entry, Error> {
        let inode = self.inode(nid)?;
        let bad = |what| format_error(nid.offset(), what);
        if inode.kind != kind {
            return Err(bad("directory entry and inode are of different types"));
        }
        if inode.xattrs > self.limits.xattrs.saturating_add(BLOCK) {
            return Err(limit("bytes of extended attributes", self.limits.xattrs as u64));
        }
        let mut bytes = vec![0; inode.xattrs];
        self.read_data(nid.offset().saturating_add(INODE as u64), &mut bytes)?;
        let mut xattrs = xattr::parse(&bytes).map_err(bad)?;
        let opaque = xattrs.remove(OPAQUE).is_some();
        let object = match inode.data {
            Data::Object => Some(self.object(nid, &inode, &mut xattrs)?),
            _ => None,
        };
        let kind = match (inode.kind, inode.data) {
            (FileType::Directory, _) => EntryKind::Directory { opaque },
            _ if opaque => return Err(bad("is opaque and not a directory")),
            (FileType::Regular, _) => EntryKind::File { size: inode.size, object },
            (FileType::Symlink, _) => {
                EntryKind::Symlink { target: self.small_content(nid, &inode, SYMLINK_MAX as u64)? }
            }
            (FileType::CharDevice, Data::Device(0)) => EntryKind::Whiteout,
            (FileType::CharDevice, Data::Device(dev)) => {
                EntryKind::CharDevice { major: major(dev), minor: minor(dev) }
            }
            (FileType::BlockDevice, Data::Device(dev)) => {
                EntryKind::BlockDevice { major: major(dev), minor: minor(dev) }
            }
            (FileType::Fifo, _) => EntryKind::Fifo,
            (FileType::CharDevice | FileType::BlockDevice, _) => {
                return Err(bad("device has a layout that this format has not"));
            }
        };
        Ok(Entry {
            path,
            kind,
            permissions: inode.meta.permissions,
            uid: inode.meta.uid,
            gid: inode.meta.gid,
            mtime: inode.meta.mtime,
            nlink: inode.nlink,
            xattrs: xattrs.into_iter().collect(),
            nid,
        })
    }

    /// Which object a file's content is, and that nothing else is said of it.
    fn object(
        &mut self,
        nid: Nid,
        inode: &Inode,
        xattrs: &mut xattr::Xattrs,
    ) -> Result<FileDigest, Error> {
        // What is not in the image takes no room in it: any size can be stated.
        if inode.size > self.limits.bytes {
            return Err(limit("bytes", self.limits.bytes));
        }
        let expected = holes(inode.size);
        let mut found = vec![0; expected.len()];
        let behind = INODE.saturating_add(inode.xattrs) as u64;
        self.read_data(nid.offset().saturating_add(behind), &mut found)?;
        if found != expected {
            return Err(format_error(nid.offset(), "file has content beside its object"));
        }
        take_object(xattrs).map_err(|what| format_error(nid.offset(), what))
    }

    /// Names, positions and types in a directory, without `.` and `..`.
    fn directory(&mut self, nid: Nid) -> Result<Vec<Named>, Error> {
        let inode = self.inode(nid)?;
        if inode.kind != FileType::Directory {
            return Err(format_error(nid.offset(), "directory entry leads to something else"));
        }
        let mut entries: Vec<Named> = Vec::new();
        let content = self.small_content(nid, &inode, self.limits.metadata)?;
        for block in content.chunks(BLOCK) {
            let bad = |what| format_error(nid.offset(), what);
            for (name, target, kind) in parse_block(block).map_err(bad)? {
                if entries.last().is_some_and(|(last, ..)| *last >= name) {
                    return Err(bad("directory is not sorted"));
                }
                entries.push((name, target, kind));
            }
        }
        let all = entries.len();
        entries.retain(|(name, ..)| name != b"." && name != b"..");
        if all != entries.len().saturating_add(2) {
            return Err(format_error(nid.offset(), "directory has no \".\" or no \"..\""));
        }
        Ok(entries)
    }

    /// Reads bytes that must lie in the data blocks.
    fn read_data(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let end = at.saturating_add(bytes.len() as u64);
        if end > u64::from(self.superblock.blocks).saturating_mul(BLOCK as u64) {
            return Err(format_error(at, "lies behind the data"));
        }
        read_at(&mut self.data, at, bytes)
    }
}

/// A name, position and type in a directory.
type Named = (Vec<u8>, Nid, FileType);

/// The entries of one block of a directory.
fn parse_block(block: &[u8]) -> Result<Vec<Named>, &'static str> {
    let bad = "directory block is malformed";
    let first = Take(block.get(8..).unwrap_or_default()).take();
    let names = usize::from(u16::from_le_bytes(first));
    if names == 0 || names % DIRENT != 0 || names > block.len() {
        return Err(bad);
    }
    let (heads, _) = block.split_at_checked(names).ok_or(bad)?;
    let starts = heads.chunks(DIRENT).map(|head| {
        let start = Take(head.get(8..).unwrap_or_default()).take();
        usize::from(u16::from_le_bytes(start))
    });
    let ends = starts.clone().skip(1).map(Some).chain([None]);
    let mut entries = Vec::new();
    for ((head, start), end) in heads.chunks(DIRENT).zip(starts).zip(ends) {
        let name = match end {
            Some(end) => block.get(start..end).ok_or(bad)?,
            // The last name ends with the block, or before its padding.
            None => {
                let rest = block.get(start..).ok_or(bad)?;
                let len = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
                rest.get(..len).unwrap_or_default()
            }
        };
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) || name.contains(&b'/') {
            return Err("directory has a name that is none");
        }
        let mut head = Take(head);
        let nid = Nid(u64::from_le_bytes(head.take()));
        let [_, _, kind, _] = head.take::<4>();
        let kind = KINDS.into_iter().find(|known| *known as u8 == kind);
        entries.push((name.to_vec(), nid, kind.ok_or("directory has an unknown file type")?));
    }
    Ok(entries)
}

const KINDS: [FileType; 6] = [
    FileType::Regular,
    FileType::Directory,
    FileType::CharDevice,
    FileType::BlockDevice,
    FileType::Fifo,
    FileType::Symlink,
];

fn major(device: u32) -> u32 {
    (device >> 8) & 0xfff
}

fn minor(device: u32) -> u32 {
    (device & 0xff) | ((device >> 12) & 0xf_ff00)
}

fn read_at(data: &mut (impl Read + Seek), at: u64, bytes: &mut [u8]) -> Result<(), Error> {
    data.seek(SeekFrom::Start(at)).map_err(Cause::Image)?;
    data.read_exact(bytes).map_err(Cause::Image)?;
    Ok(())
}

fn format_error(offset: u64, what: &'static str) -> Error {
    Cause::Format { offset, what }.into()
}

fn limit(what: &'static str, limit: u64) -> Error {
    Cause::Limit { what, limit }.into()
}
