//! A strict reader of layer tars: what two readers could take for two things is refused.
//!
//! Formats: V7, ustar, PAX and GNU (long names, base-256 numbers), as Go's `archive/tar`, GNU tar
//! and libarchive agree on them. The header checksum must be right.
//!
//! | found | here |
//! |---|---|
//! | PAX `size` and another size in the header | the PAX one counts, for the entry that follows |
//! | a size on anything but a regular file | refused: some skip content there, some do not |
//! | PAX path and GNU long name for one entry | refused |
//! | two `x`, two `L` or two `K` before one entry, or `g` between them | refused |
//! | a GNU long name without a NUL in its size | refused: GNU tar reads on behind it |
//! | `x`, `L` or `K` before the end of the archive | refused |
//! | one zero block and then an entry | refused |
//! | no zero blocks at the end | accepted, as everywhere; what truncated it the digest shows |
//! | anything after two zero blocks | not read as entries, counts for the diffID |
//! | a sparse file | read as GNU tar and Go read it: `sparse.rs` |
//! | multi-volume, label, contiguous and vendor types | refused |
//!
//! Source: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

use crate::error::{Cause, Error, Name};
use crate::format::{Meta, Timestamp};
use crate::pax::{Records, Scope};
use crate::sparse::{self, Lines, Piece, Sparse, Stated};
use crate::stream::Stream;
use crate::xattr::Xattrs;

const HEADER: usize = 512;

/// The most bytes of one extended header.
const EXTENDED_MAX: u64 = 1 << 20;

/// An entry, as the headers before it describe it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TarEntry {
    /// As in the tar: not cleaned.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: TarKind,
    pub(crate) meta: Meta,
    pub(crate) xattrs: Xattrs,
}

/// What an entry makes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TarKind {
    File,
    Directory,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Reads entry after entry, and the content of the one read last.
pub(crate) struct TarReader {
    stream: Stream,
    global: Records,
    /// Bytes of content not read yet.
    content: u64,
    padding: u64,
    /// Where the content goes, if the file has holes.
    sparse: Option<Sparse>,
}

/// Extended headers that wait for their entry.
#[derive(Default)]
struct Pending {
    pax: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Pending {
    fn any(&self) -> bool {
        self.pax.is_some() || self.name.is_some() || self.link.is_some()
    }
}

impl TarReader {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, global: Records::default(), content: 0, padding: 0, sparse: None }
    }

    /// The stream after the end of the archive.
    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }

    /// The next entry; what is left of the content before it is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<TarEntry>, Error> {
        self.skip()?;
        self.sparse = None;
        let mut pending = Pending::default();
        loop {
            let offset = self.stream.offset();
            let Some(header) = self.header()? else {
                if pending.any() {
                    return Err(header_error(offset, "archive ends after an extended header"));
                }
                return Ok(None);
            };
            let at = |what| header_error(offset, what);
            let flag = header.typeflag();
            if !matches!(flag, b'x' | b'g' | b'L' | b'K') {
                return self.entry(&header, pending, offset).map(Some);
            }
            let size = header.size().map_err(at)?;
            let bytes = self.extended(size, offset)?;
            match flag {
                b'x' => {
                    let mut records = Records::default();
                    records.add(&bytes, Scope::Entry).map_err(at)?;
                    once(&mut pending.pax, records).map_err(at)?;
                }
                b'g' if pending.any() => {
                    return Err(at("global extended header inside an entry's headers"));
                }
                b'g' => {
                    self.global.add(&bytes, Scope::Global).map_err(at)?;
                    if self.global.len() as u64 > EXTENDED_MAX {
                        return Err(at("global extended headers are too long"));
                    }
                }
                b'L' => once(&mut pending.name, long_name(&bytes).map_err(at)?).map_err(at)?,
                _ => once(&mut pending.link, long_name(&bytes).map_err(at)?).map_err(at)?,
            }
        }
    }

    /// Bytes of content not read yet.
    pub(crate) fn content_len(&self) -> u64 {
        self.content
    }

    /// The length of the entry's file, if it is sparse: then [`expand`](Self::expand) reads it.
    pub(crate) fn sparse_len(&self) -> Option<u64> {
        self.sparse.as_ref().map(Sparse::len)
    }

    /// Fills `out` with the next bytes of a sparse file, zeros where nothing is stored.
    pub(crate) fn expand(&mut self, mut out: &mut [u8]) -> Result<(), Error> {
        while !out.is_empty() {
            let piece = self.sparse.as_ref().map(|sparse| sparse.piece(out.len()));
            let count = match piece {
                None => return Err(Cause::Unplaced.into()),
                Some(Piece::Zeros(count)) => {
                    out.get_mut(..count).unwrap_or_default().fill(0);
                    count
                }
                Some(Piece::Stored(count)) => {
                    let bytes = self.content()?;
                    let count = count.min(bytes.len());
                    if let (Some(out), Some(bytes)) = (out.get_mut(..count), bytes.get(..count)) {
                        out.copy_from_slice(bytes);
                    }
                    self.consume(count);
                    count
                }
            };
            // the map takes exactly what is stored, so a piece is never empty
            if count == 0 {
                return Err(Cause::Unplaced.into());
            }
            if let Some(sparse) = &mut self.sparse {
                sparse.advance(count);
            }
            out = std::mem::take(&mut out).get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// The next bytes of content: whole blocks of 4096 bytes at least, unless less is left. Empty
    /// at the end of the content.
    pub(crate) fn content(&mut self) -> Result<&[u8], Error> {
        let want = usize::try_from(self.content).unwrap_or(usize::MAX).min(crate::stream::WINDOW);
        let offset = self.stream.offset();
        let left = usize::try_from(self.content).unwrap_or(usize::MAX);
        let bytes = self.stream.fill(want)?;
        if bytes.len() < want {
            return Err(Cause::Truncated { offset, what: "a file's content" }.into());
        }
        Ok(bytes.get(..left).unwrap_or(bytes))
    }

    /// Moves on by `count` bytes that [`content`](Self::content) returned.
    pub(crate) fn consume(&mut self, count: usize) {
        self.stream.consume(count);
        self.content = self.content.saturating_sub(count as u64);
    }

    fn skip(&mut self) -> Result<(), Error> {
        self.content = self.content.saturating_add(std::mem::take(&mut self.padding));
        loop {
            let count = self.content()?.len();
            if count == 0 {
                return Ok(());
            }
            self.consume(count);
        }
    }

    /// The next header, or `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let offset = self.stream.offset();
        let Some(first) = self.block()? else { return Ok(None) };
        if first != [0; HEADER] {
            let header = Header(first);
            header.checksum().map_err(|what| header_error(offset, what))?;
            return Ok(Some(header));
        }
        match self.block()? {
            Some(second) if second != [0; HEADER] => {
                Err(header_error(offset, "a single zero block inside the archive"))
            }
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; HEADER]>, Error> {
        let offset = self.stream.offset();
        let bytes = self.stream.fill(HEADER)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let Some(block) = bytes.first_chunk().copied() else {
            return Err(Cause::Truncated { offset, what: "a header" }.into());
        };
        self.stream.consume(HEADER);
        Ok(Some(block))
    }

    /// The content of an extended header of `size` bytes.
    fn extended(&mut self, size: u64, offset: u64) -> Result<Vec<u8>, Error> {
        if size > EXTENDED_MAX {
            return Err(header_error(offset, "extended header is longer than 1 MiB"));
        }
        self.begin_content(size);
        let mut bytes = Vec::new();
        loop {
            let part = self.content()?;
            if part.is_empty() {
                break;
            }
            bytes.extend_from_slice(part);
            let count = part.len();
            self.consume(count);
        }
        self.skip()?;
        Ok(bytes)
    }

    fn begin_content(&mut self, size: u64) {
        self.content = size;
        self.padding = size.next_multiple_of(HEADER as u64).saturating_sub(size);
    }

    fn entry(&mut self, header: &Header, pending: Pending, offset: u64) -> Result<TarEntry, Error> {
        let at = |what| header_error(offset, what);
        let mut records = pending.pax.unwrap_or_default().or(&self.global);
        let name = either(records.path, pending.name).map_err(at)?;
        let name = name.map_or_else(|| header.name(), Ok).map_err(at)?;
        let name = records.sparse.as_mut().and_then(|keys| keys.name.take()).unwrap_or(name);
        let link = either(records.linkpath, pending.link).map_err(at)?;
        let link = link.unwrap_or_else(|| header.link().to_vec());
        if name.is_empty() {
            return Err(at("entry has no name"));
        }
        // A size that counts in the header's own field must be readable even if PAX overrides it.
        let own_size = header.size().map_err(at)?;
        let size = records.size.unwrap_or(own_size);
        if size > i64::MAX.unsigned_abs() {
            return Err(at("size is too large"));
        }
        let kind = header.kind(&name, link, offset)?;
        if size > 0 && !matches!(kind, TarKind::File) {
            let what = "has a size, and is not a regular file";
            return Err(Cause::Entry { name: Name::new(&name), what }.into());
        }
        self.begin_content(size);
        self.sparse = self.sparse_map(header, records.sparse, &kind, offset)?;
        let meta = Meta {
            permissions: header.permissions().map_err(at)?,
            uid: records.uid.map_or_else(|| header.id(108), Ok).map_err(at)?,
            gid: records.gid.map_or_else(|| header.id(116), Ok).map_err(at)?,
            mtime: records.mtime.map_or_else(|| header.mtime(), Ok).map_err(at)?,
        };
        Ok(TarEntry { name, kind, meta, xattrs: records.xattrs })
    }
}

impl TarReader {
    /// The map of an entry's content, which has begun: from its header, or from the content's start.
    fn sparse_map(
        &mut self,
        header: &Header,
        keys: Option<sparse::Keys>,
        kind: &TarKind,
        offset: u64,
    ) -> Result<Option<Sparse>, Error> {
        let at = |what| header_error(offset, what);
        let (regions, len) = match (header.typeflag(), keys) {
            (b'S', Some(_)) => return Err(at("sparse file has two maps")),
            (b'S', None) => self.old_map(header, offset)?,
            (_, None) => return Ok(None),
            (_, Some(_)) if *kind != TarKind::File => {
                return Err(at("sparse map on what is not a regular file"));
            }
            (_, Some(keys)) => match keys.stated().map_err(at)? {
                Stated::Here(regions, len) => (regions, len),
                Stated::BeforeContent(len) => (self.map_before_content(offset)?, len),
            },
        };
        Sparse::new(regions, len, self.content).map_err(at).map(Some)
    }

    /// The map of type `S`: it stands between the header and the content, and is not counted in the size.
    fn old_map(&mut self, header: &Header, offset: u64) -> Result<(Vec<(u64, u64)>, u64), Error> {
        let at = |what| header_error(offset, what);
        let len = u64::try_from(number(header.field(483, 12)).map_err(at)?);
        let len = len.ok().ok_or_else(|| at("size is negative"))?;
        let mut regions = Vec::new();
        let mut more = header.regions(386, 4, 482, &mut regions).map_err(at)?;
        let content = std::mem::take(&mut self.content);
        while more {
            let block = self.block()?;
            let block = block.ok_or(Cause::Truncated { offset, what: "a sparse map" })?;
            more = Header(block).regions(0, 21, 504, &mut regions).map_err(at)?;
        }
        self.content = content;
        Ok((regions, len))
    }

    fn map_before_content(&mut self, offset: u64) -> Result<Vec<(u64, u64)>, Error> {
        let at = |what| header_error(offset, what);
        let mut lines = Lines::default();
        loop {
            let block = self.content()?.first_chunk::<HEADER>().copied();
            let block = block.ok_or_else(|| at("sparse map does not end in the content"))?;
            self.consume(HEADER);
            if lines.block(&block).map_err(at)? {
                return Ok(lines.regions);
            }
        }
    }
}

/// One header block.
///
/// | offset | bytes | field | | offset | bytes | field |
/// |---:|---:|---|---|---:|---:|---|
/// | 0 | 100 | name | | 156 | 1 | typeflag |
/// | 100 | 8 | mode | | 157 | 100 | linkname |
/// | 108 | 8 | uid | | 257 | 8 | magic and version |
/// | 116 | 8 | gid | | 329 | 8 | devmajor |
/// | 124 | 12 | size | | 337 | 8 | devminor |
/// | 136 | 12 | mtime | | 345 | 155 | prefix (ustar), 131 bytes of it (star), other fields (GNU) |
/// | 148 | 8 | chksum | | | | |
struct Header([u8; HEADER]);

impl Header {
    fn field(&self, start: usize, len: usize) -> &[u8] {
        self.0.get(start..start.saturating_add(len)).unwrap_or_default()
    }

    fn typeflag(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or_default()
    }

    /// The sum of all bytes, those of the field itself taken as spaces.
    fn checksum(&self) -> Result<(), &'static str> {
        let stated = number(self.field(148, 8))?;
        let body = || self.field(0, 148).iter().chain(self.field(156, 356));
        let spaces = 8 * 0x20;
        let unsigned = body().fold(spaces, |sum: i64, byte| sum.wrapping_add(i64::from(*byte)));
        // Some old tars summed signed bytes; every reader accepts both.
        let signed = body()
            .fold(spaces, |sum: i64, byte| sum.wrapping_add(i64::from(i8::from_ne_bytes([*byte]))));
        if stated != unsigned && stated != signed {
            return Err("header checksum is wrong");
        }
        Ok(())
    }

    fn permissions(&self) -> Result<u16, &'static str> {
        let mode = number(self.field(100, 8))?;
        u16::try_from(mode & 0o7777).ok().ok_or("mode is malformed")
    }

    fn id(&self, start: usize) -> Result<u32, &'static str> {
        let id = number(self.field(start, 8))?;
        u32::try_from(id).ok().ok_or("owner is negative or has more than 32 bits")
    }

    fn size(&self) -> Result<u64, &'static str> {
        u64::try_from(number(self.field(124, 12))?).ok().ok_or("size is negative")
    }

    fn mtime(&self) -> Result<Timestamp, &'static str> {
        Ok(Timestamp { seconds: number(self.field(136, 12))?, nanoseconds: 0 })
    }

    fn link(&self) -> &[u8] {
        until_nul(self.field(157, 100))
    }

    /// The name, with the prefix where the format has one.
    fn name(&self) -> Result<Vec<u8>, &'static str> {
        let name = until_nul(self.field(0, 100));
        let prefix = match self.field(257, 8) {
            [b'u', b's', b't', b'a', b'r', 0, ..] if self.field(508, 4) == b"tar\0" => {
                self.field(345, 131)
            }
            [b'u', b's', b't', b'a', b'r', 0, ..] => self.field(345, 155),
            b"ustar  \0" => {
                // Where GNU has times Go before 1.8 could write a prefix, which others ignore.
                number(self.field(345, 12)).and(number(self.field(357, 12)))?;
                &[]
            }
            [0, ..] => &[],
            _ => return Err("header is of no known tar format"),
        };
        Ok(match until_nul(prefix) {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        })
    }

    /// Adds `count` regions of 12 bytes each for offset and length, from `start` on, and says whether the flag at `flag`
    /// announces more. A region whose offset begins with a NUL ends the map.
    fn regions(
        &self,
        start: usize,
        count: usize,
        flag: usize,
        regions: &mut Vec<(u64, u64)>,
    ) -> Result<bool, &'static str> {
        let more = self.field(flag, 1) != [0];
        for region in self.field(start, count.saturating_mul(24)).as_chunks::<24>().0 {
            let (offset, length) = region.split_at_checked(12).unwrap_or_default();
            match (offset.first(), length.first()) {
                (Some(0), Some(0)) if more => return Err("sparse map goes on after its end"),
                (Some(0), Some(0)) => return Ok(false),
                (Some(0), _) | (_, Some(0)) => return Err("sparse map is malformed"),
                _ => {}
            }
            let positive = |field| u64::try_from(number(field)?).ok().ok_or("size is negative");
            sparse::add(regions, positive(offset)?, positive(length)?)?;
        }
        Ok(more)
    }

    fn kind(&self, name: &[u8], target: Vec<u8>, offset: u64) -> Result<TarKind, Error> {
        let at = |what| header_error(offset, what);
        let device = || {
            let major = number(self.field(329, 8)).and_then(major).map_err(at)?;
            let minor = number(self.field(337, 8)).and_then(minor).map_err(at)?;
            Ok::<_, Error>((major, minor))
        };
        Ok(match self.typeflag() {
            // V7 has no type for directories.
            0 if name.ends_with(b"/") => TarKind::Directory,
            0 | b'0' => TarKind::File,
            b'S' if self.field(257, 8) == b"ustar  \0" => TarKind::File,
            b'1' => TarKind::HardLink { target },
            b'2' => TarKind::Symlink { target },
            b'3' => device().map(|(major, minor)| TarKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| TarKind::BlockDevice { major, minor })?,
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            flag => return Err(Cause::EntryType { offset, flag }.into()),
        })
    }
}

/// Linux's `new_encode_dev` has 12 bits for the major number and 20 for the minor.
fn major(number: i64) -> Result<u32, &'static str> {
    u32::try_from(number).ok().filter(|n| *n < 1 << 12).ok_or("device number is too large")
}

fn minor(number: i64) -> Result<u32, &'static str> {
    u32::try_from(number).ok().filter(|n| *n < 1 << 20).ok_or("device number is too large")
}

/// Fills a slot that must be empty.
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("two extended headers of one type before an entry"),
    }
}

fn either(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, &'static str> {
    match (pax, gnu) {
        (Some(_), Some(_)) => Err("entry has a PAX path and a GNU long name"),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

fn long_name(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    if !bytes.contains(&0) {
        return Err("GNU long name does not end");
    }
    Ok(until_nul(bytes).to_vec())
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A numeric field: octal with spaces or NULs around, or base-256 (first bit set, two's complement).
fn number(field: &[u8]) -> Result<i64, &'static str> {
    let bad = "numeric field is malformed";
    let Some((first, rest)) = field.split_first() else { return Err(bad) };
    if first & 0x80 != 0 {
        // The second bit is the sign; the first belongs to no number.
        let sign = if first & 0x40 != 0 { -1i128 } else { 0 };
        let first = i128::from(first & 0x3f) | (sign << 6);
        let value = rest.iter().try_fold(first, |value, byte| {
            // 16 bytes of which one has 6 bits would fit; a field has at most 12.
            value.checked_mul(256)?.checked_add(i128::from(*byte))
        });
        return value.and_then(|value| i64::try_from(value).ok()).ok_or("number is too large");
    }
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let (_, field) = field.split_at_checked(start).unwrap_or_default();
    let end = field.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(field.len());
    let (digits, padding) = field.split_at_checked(end).unwrap_or_default();
    if !padding.iter().all(|byte| matches!(byte, b' ' | 0)) {
        return Err(bad);
    }
    // At most 12 octal digits: 36 bits.
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value.wrapping_mul(8).wrapping_add(i64::from(digit & 7))),
        _ => Err(bad),
    })
}

fn header_error(offset: u64, what: &'static str) -> Error {
    Cause::Header { offset, what }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"00000000", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"\x80\0\0\0\0\0\0\x01", Some(1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"00006 44", None),
            (b"0000x44\0", None),
            (b"0000684\0", None),
            (b"-000644\0", None),
            (b"\x00000644\0", None),
        ] {
            assert_eq!(number(field).ok(), expected, "{}", field.escape_ascii());
        }
    }
}
