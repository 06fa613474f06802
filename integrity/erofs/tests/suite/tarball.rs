//! Tars made byte by byte, right and wrong ones.

use std::fs::File;

use hallmark_erofs::{Compression, Error, Image, Limits, PackedLayer, pack};

/// One entry with every field of its header.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) name: Vec<u8>,
    pub(crate) flag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: i64,
    pub(crate) link: Vec<u8>,
    pub(crate) content: Vec<u8>,
    /// What the header says, if not the length of the content.
    pub(crate) size: Option<u64>,
    pub(crate) device: (u32, u32),
    pub(crate) magic: [u8; 8],
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Item {
    pub(crate) fn new(flag: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            flag,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            link: Vec::new(),
            content: Vec::new(),
            size: None,
            device: (0, 0),
            magic: *b"ustar\x0000",
            pax: Vec::new(),
        }
    }

    pub(crate) fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self { content: content.as_ref().to_vec(), ..Self::new(b'0', name) }
    }

    pub(crate) fn dir(name: impl AsRef<[u8]>) -> Self {
        Self { mode: 0o755, ..Self::new(b'5', name) }
    }

    pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), mode: 0o777, ..Self::new(b'2', name) }
    }

    pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'1', name) }
    }

    pub(crate) fn device(flag: u8, name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(flag, name) }
    }

    pub(crate) fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }
}

/// A tar under construction.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    /// A whole tar of these entries.
    pub(crate) fn of(items: impl IntoIterator<Item = Item>) -> Vec<u8> {
        let mut tar = Self::default();
        items.into_iter().for_each(|item| tar.push(item));
        tar.end()
    }

    /// Adds an entry, with an extended header if it needs one.
    pub(crate) fn push(&mut self, mut item: Item) {
        if item.name.len() > 100 {
            item.pax.push((b"path".to_vec(), item.name.clone()));
            item.name.truncate(100);
        }
        if item.link.len() > 100 {
            item.pax.push((b"linkpath".to_vec(), item.link.clone()));
            item.link.truncate(100);
        }
        if !item.pax.is_empty() {
            let records: Vec<u8> = item.pax.iter().flat_map(|(k, v)| record(k, v)).collect();
            self.raw(&Item { content: records, ..Item::new(b'x', "PaxHeaders/x") });
        }
        self.raw(&item);
    }

    /// Adds a header and content as they are.
    pub(crate) fn raw(&mut self, item: &Item) {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &item.name);
        put(100, &number(item.mode.into(), 8));
        put(108, &number(item.uid.into(), 8));
        put(116, &number(item.gid.into(), 8));
        put(124, &number(item.size.unwrap_or(item.content.len() as u64).into(), 12));
        put(136, &number(item.mtime.into(), 12));
        put(148, b"        ");
        put(156, &[item.flag]);
        put(157, &item.link);
        put(257, &item.magic);
        put(329, &number(item.device.0.into(), 8));
        put(337, &number(item.device.1.into(), 8));
        self.header(header);
        self.0.extend(&item.content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// Adds a header block with its checksum set right.
    pub(crate) fn header(&mut self, mut header: [u8; 512]) {
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
    }

    /// Adds the end of the archive.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A PAX record with its length in front.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let len = (1..).find(|len: &usize| len.to_string().len() + rest.len() == *len).unwrap();
    [len.to_string().as_bytes(), &rest].concat()
}

/// Octal if it fits, else base-256.
fn number(value: i128, len: usize) -> Vec<u8> {
    let digits = len - 1;
    if value >= 0 && value < 1 << (3 * digits) {
        return format!("{value:0digits$o}\0").into_bytes();
    }
    let mut bytes = value.to_be_bytes()[16 - len..].to_vec();
    bytes[0] |= 0x80;
    bytes
}

/// Packs a plain tar into a file that is gone when dropped.
pub(crate) fn pack_tar(tar: &[u8]) -> Result<(PackedLayer, File), Error> {
    let image = tempfile::tempfile().unwrap();
    let packed = pack(tar, Compression::None, &image, &Limits::default())?;
    assert_eq!(image.metadata().unwrap().len(), packed.image_len());
    Ok((packed, image))
}

/// What the image of a tar shows: a line for each name.
pub(crate) fn show(tar: &[u8]) -> Result<Vec<String>, Error> {
    let (_, file) = pack_tar(tar)?;
    let mut image = Image::open(&file, &Limits::default())?;
    let entries = image.entries()?;
    Ok(entries.iter().map(|entry| line(&mut image, entry)).collect())
}

fn line(image: &mut Image<&File>, entry: &hallmark_erofs::Entry) -> String {
    use hallmark_erofs::EntryKind as Kind;
    let kind = match &entry.kind {
        Kind::File { size, .. } => {
            let mut content = Vec::new();
            image.content(entry, &mut content).unwrap();
            assert_eq!(content.len() as u64, *size);
            if content.len() > 40 {
                let sum: u64 = content.iter().map(|byte| u64::from(*byte)).sum();
                format!("file of {size}, sum {sum}")
            } else {
                format!("file {:?}", String::from_utf8_lossy(&content))
            }
        }
        Kind::Directory { opaque: true } => "opaque dir".into(),
        Kind::Directory { opaque: false } => "dir".into(),
        Kind::Symlink { target } => format!("-> {}", target.escape_ascii()),
        Kind::CharDevice { major, minor } => format!("char {major}:{minor}"),
        Kind::BlockDevice { major, minor } => format!("block {major}:{minor}"),
        Kind::Fifo => "fifo".into(),
        Kind::Whiteout => "whiteout".into(),
    };
    let xattrs: Vec<String> = entry
        .xattrs
        .iter()
        .map(|(name, value)| format!(" {}={}", name.escape_ascii(), value.escape_ascii()))
        .collect();
    format!(
        "/{} {kind} {:o} {}:{} {}.{} n{}{}",
        entry.path.escape_ascii(),
        entry.permissions,
        entry.uid,
        entry.gid,
        entry.mtime.seconds,
        entry.mtime.nanoseconds,
        entry.nlink,
        xattrs.concat()
    )
}
