//! Sparse files: where the bytes that a tar stores go in a file, and how long the file is.
//!
//! | form | where the map is |
//! |---|---|
//! | old GNU, type `S` | in the header (4 regions), and in blocks of 21 regions behind it |
//! | PAX 0.0 | `GNU.sparse.offset` and `GNU.sparse.numbytes`, in turn |
//! | PAX 0.1 | `GNU.sparse.map`: offsets and lengths, in turn, with commas |
//! | PAX 1.0 | before the content: a count, offsets and lengths, each with a line end, padded to 512 bytes |
//!
//! What lies between the regions is zeros, and the image holds them: a layer's format has no holes. A map is refused
//! unless its regions are in order, do not overlap, end in the file, and take exactly the bytes that are stored: GNU tar
//! and Go's `archive/tar` agree on such maps and on no others.
//!
//! Source: GNU tar manual, "Storing Sparse Files"; GNU tar `src/sparse.c`; Go `archive/tar/reader.go`.

/// The most regions of a map: what 1 MiB of a PAX header can state.
pub(crate) const REGIONS_MAX: usize = 1 << 18;

/// A checked map, and how far the file was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Offset and length of each region that is not empty, in order.
    regions: Vec<(u64, u64)>,
    len: u64,
    /// The region at or before which the file was read to.
    next: usize,
    at: u64,
}

/// What comes next in a file: at least one byte of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    Zeros(usize),
    Stored(usize),
}

impl Sparse {
    /// The map of a file of `len` bytes, of which `stored` are in the tar.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn new(
        regions: Vec<(u64, u64)>,
        len: u64,
        stored: u64,
    ) -> Result<Self, &'static str> {
        let (mut end, mut sum) = (0u64, 0u64);
        for (offset, length) in &regions {
            if *offset < end {
                return Err("sparse map is not in order");
            }
            end = offset.checked_add(*length).filter(|end| *end <= len).ok_or(BEYOND)?;
            sum = sum.saturating_add(*length);
        }
        if sum != stored {
            return Err("sparse map does not take the bytes that are stored");
        }
        if len > i64::MAX.unsigned_abs() {
            return Err("size is too large");
        }
        let regions = regions.into_iter().filter(|(_, length)| *length > 0).collect();
        Ok(Self { regions, len, next: 0, at: 0 })
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What the next bytes are, at most `most` of them, which must be more than none.
    pub(crate) fn piece(&self, most: usize) -> Piece {
        let bounded = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).min(most);
        match self.regions.get(self.next) {
            None => Piece::Zeros(most),
            Some((offset, _)) if self.at < *offset => {
                Piece::Zeros(bounded(offset.saturating_sub(self.at)))
            }
            Some((offset, length)) => {
                Piece::Stored(bounded(offset.saturating_add(*length).saturating_sub(self.at)))
            }
        }
    }

    /// Moves on by bytes of the piece that is next.
    pub(crate) fn advance(&mut self, count: usize) {
        self.at = self.at.saturating_add(count as u64);
        let ended = self
            .regions
            .get(self.next)
            .is_some_and(|(offset, length)| self.at >= offset.saturating_add(*length));
        self.next = self.next.saturating_add(usize::from(ended));
    }
}

const BEYOND: &str = "sparse map goes beyond the file";

/// Adds offset and length, as long as that many are allowed.
pub(crate) fn add(
    regions: &mut Vec<(u64, u64)>,
    offset: u64,
    length: u64,
) -> Result<(), &'static str> {
    if regions.len() >= REGIONS_MAX {
        return Err("sparse map has too many regions");
    }
    regions.push((offset, length));
    Ok(())
}

/// Reads the map of PAX 1.0 line by line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Regions that the map says it has.
    count: Option<u64>,
    /// The digits so far of the number that goes on in the next block.
    digits: Option<u64>,
    offset: Option<u64>,
    pub(crate) regions: Vec<(u64, u64)>,
}

impl Lines {
    /// Takes a block; says whether the map has ended. What follows its last line in the block is padding.
    pub(crate) fn block(&mut self, block: &[u8]) -> Result<bool, &'static str> {
        for byte in block {
            if self.ended() {
                return Ok(true);
            }
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte & 15);
                    let value = self.digits.unwrap_or_default().checked_mul(10);
                    let value = value.and_then(|value| value.checked_add(digit));
                    self.digits = Some(value.ok_or(MALFORMED)?);
                }
                b'\n' => {
                    let number = self.digits.take().ok_or(MALFORMED)?;
                    self.number(number)?;
                }
                _ => return Err(MALFORMED),
            }
        }
        Ok(self.ended())
    }

    fn ended(&self) -> bool {
        self.count.is_some_and(|count| self.regions.len() as u64 >= count)
    }

    fn number(&mut self, number: u64) -> Result<(), &'static str> {
        if self.count.is_none() {
            self.count = Some(number);
        } else if let Some(offset) = self.offset.take() {
            add(&mut self.regions, offset, number)?;
        } else {
            self.offset = Some(number);
        }
        Ok(())
    }
}

const MALFORMED: &str = "sparse map is malformed";

/// The records of PAX's three forms, as they stand in one extended header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    major: Option<u64>,
    minor: Option<u64>,
    /// `GNU.sparse.name`: the file's own, where the header has one made up.
    pub(crate) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`.
    len: Option<u64>,
    count: Option<u64>,
    offset: Option<u64>,
    regions: Option<Vec<(u64, u64)>>,
}

/// Where an entry's map is, if it has one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stated {
    /// In the header: regions and the length of the file.
    Here(Vec<(u64, u64)>, u64),
    /// Before the content of a file of this length.
    BeforeContent(u64),
}

impl Keys {
    /// Takes the value of `GNU.sparse.<key>`; numbers are parsed by `decimal`.
    pub(crate) fn set(
        &mut self,
        key: &[u8],
        value: &[u8],
        decimal: impl Fn(&[u8]) -> Result<u64, &'static str>,
    ) -> Result<(), &'static str> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" if value.is_empty() || value.contains(&0) => {
                return Err("sparse file has no name, or a NUL in it");
            }
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => {
                if self.len.replace(decimal(value)?).is_some() {
                    return Err("sparse file has two sizes");
                }
            }
            b"numblocks" => self.count = Some(decimal(value)?),
            b"offset" => {
                if self.offset.replace(decimal(value)?).is_some() {
                    return Err(MALFORMED);
                }
            }
            b"numbytes" => {
                let offset = self.offset.take().ok_or(MALFORMED)?;
                add(self.regions.get_or_insert_default(), offset, decimal(value)?)?;
            }
            b"map" => {
                if self.regions.is_some() {
                    return Err("sparse file has two maps");
                }
                self.regions = Some(of_text(value, decimal)?);
            }
            _ => return Err("extended header has a GNU.sparse key that is not known"),
        }
        Ok(())
    }

    /// What the records say together.
    pub(crate) fn stated(self) -> Result<Stated, &'static str> {
        let len = self.len.ok_or("sparse file has no size")?;
        match (self.major, self.minor, self.regions) {
            (Some(1), Some(0), None) => Ok(Stated::BeforeContent(len)),
            (None, None, Some(regions)) | (Some(0), Some(0 | 1), Some(regions)) => {
                let counted = self.count == Some(regions.len() as u64);
                if !counted || self.offset.is_some() {
                    return Err("sparse map has not the regions that it says");
                }
                Ok(Stated::Here(regions, len))
            }
            _ => Err("sparse file is of no known form"),
        }
    }
}

/// `offset,length,offset,length…`
fn of_text(
    text: &[u8],
    decimal: impl Fn(&[u8]) -> Result<u64, &'static str>,
) -> Result<Vec<(u64, u64)>, &'static str> {
    let mut regions = Vec::new();
    if text.is_empty() {
        return Ok(regions);
    }
    let mut numbers = text.split(|byte| *byte == b',');
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(MALFORMED)?;
        add(&mut regions, decimal(offset)?, decimal(length)?)?;
    }
    Ok(regions)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]
mod tests {
    use super::*;

    #[test]
    fn only_maps_that_every_reader_takes_the_same_way() {
        let map = |regions: &[(u64, u64)], len, stored| Sparse::new(regions.to_vec(), len, stored);
        assert!(map(&[], 0, 0).is_ok() && map(&[], 100, 0).is_ok());
        assert!(map(&[(0, 5), (10, 5), (20, 0)], 20, 10).is_ok());
        assert!(map(&[(10, 5), (0, 5)], 20, 10).is_err(), "order");
        assert!(map(&[(0, 6), (5, 5)], 20, 11).is_err(), "overlap");
        assert!(map(&[(0, 5)], 4, 5).is_err(), "beyond");
        assert!(map(&[(u64::MAX, 5)], u64::MAX, 5).is_err(), "overflow");
        assert!(map(&[(0, 5)], 20, 6).is_err(), "bytes without a place");
        assert!(map(&[(0, 5)], 20, 4).is_err(), "a region without bytes");
    }

    #[test]
    fn pieces_cover_the_file() {
        let mut sparse = Sparse::new(vec![(0, 2), (2, 1), (7, 3)], 12, 6).unwrap();
        let mut shown = String::new();
        while shown.len() < 12 {
            let (count, letter) = match sparse.piece((12 - shown.len()).min(2)) {
                Piece::Zeros(count) => (count, "."),
                Piece::Stored(count) => (count, "x"),
            };
            assert!(count > 0);
            shown.push_str(&letter.repeat(count));
            sparse.advance(count);
        }
        assert_eq!(shown, "xxx....xxx..");
    }

    #[test]
    fn a_map_before_the_content_may_cross_blocks() {
        let text = b"2\n0\n512\n1024\n7\n";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            assert!(!lines.block(&text[..cut]).unwrap());
            let rest = [&text[cut..], &[0; 9][..]].concat();
            assert!(lines.block(&rest).unwrap());
            assert_eq!(lines.regions, [(0, 512), (1024, 7)]);
        }
        assert!(Lines::default().block(b"0\n\0\0").unwrap());
        for bad in [&b"\n"[..], b"1\n\n", b"-1\n", b"1 \n", b"99999999999999999999\n"] {
            assert!(Lines::default().block(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
