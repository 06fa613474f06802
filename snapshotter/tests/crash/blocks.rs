//! The log of a disk's writes that dm-log-writes keeps, and what may be on the disk when its power goes.
//!
//! | sector | what |
//! |---|---|
//! | 0 | magic, version 1, number of entries (64 bits each), bytes of a sector (32 bits); little endian |
//! | next | an entry: sector, number of sectors, flags, bytes of a mark's text (64 bits each), the text |
//! | next | the data that was written, unless it is a mark or a discard |
//!
//! A write is logged when it is durable: with the flush after it, or when it was forced (FUA). So all entries up to a
//! flush or a forced write are on the disk, and of the plain writes up to the next flush any may be, whole or in part.
//!
//! Source: Linux drivers/md/dm-log-writes.c.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x6a_7366_7773_6872;
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// What a disk writes at once or not at all.
const ATOM: usize = 512;

/// One entry.
#[derive(Debug)]
struct Entry {
    /// Byte on the disk.
    at: u64,
    data: Vec<u8>,
    flags: u64,
    mark: String,
}

impl Entry {
    fn is_barrier(&self) -> bool {
        self.flags & (FLUSH | FORCED) != 0
    }
}

/// What was written to a disk, in order.
#[derive(Debug)]
pub(crate) struct Log(Vec<Entry>);

/// A moment at which the power goes.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Entries that are on the disk.
    pub(crate) whole: usize,
    /// Of later ones, these sectors of [`ATOM`] bytes.
    parts: BTreeMap<usize, Vec<bool>>,
    /// Whether the mark asked for was set by then.
    pub(crate) marked: bool,
}

impl Cut {
    /// How many later writes are there, in part at least.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The same moment, with what is not true of it: that the mark was set.
    pub(crate) fn misjudged(&self) -> Self {
        Self { whole: self.whole, parts: self.parts.clone(), marked: true }
    }
}

impl Log {
    /// Reads the log device.
    pub(crate) fn read(device: &Path) -> Self {
        let log = File::open(device).unwrap();
        let word = |at: u64| {
            let mut bytes = [0; 8];
            log.read_exact_at(&mut bytes, at).unwrap();
            u64::from_le_bytes(bytes)
        };
        assert_eq!((word(0), word(8)), (MAGIC, 1), "no log of dm-log-writes");
        let (count, sector) = (word(16), word(24) & u64::from(u32::MAX));
        let mut entries = Vec::new();
        let mut at = sector;
        for _ in 0..count {
            let (first, sectors, flags, text) =
                (word(at), word(at + 8), word(at + 16), word(at + 24));
            let mut mark = vec![0; usize::try_from(text).unwrap()];
            log.read_exact_at(&mut mark, at + 32).unwrap();
            at += sector;
            let mut data = vec![0; usize::try_from(sectors * sector).unwrap()];
            if flags & DISCARD == 0 {
                log.read_exact_at(&mut data, at).unwrap();
                at += sectors * sector;
            }
            let mark = String::from_utf8(mark).unwrap();
            entries.push(Entry { at: first * sector, data, flags, mark });
        }
        Self(entries)
    }

    /// How many writes there are between two marks.
    pub(crate) fn writes(&self, marks: Range<&str>) -> usize {
        let between = self.place(marks.start)..self.place(marks.end);
        self.0[between].iter().filter(|entry| !entry.data.is_empty()).count()
    }

    fn place(&self, mark: &str) -> usize {
        let is = |entry: &Entry| entry.flags & MARK != 0 && entry.mark == mark;
        self.0.iter().position(is).unwrap_or_else(|| panic!("no mark {mark}"))
    }

    /// Every barrier between two marks as a moment, and after each `shuffles` more with some of the writes that
    /// follow. `told` is the mark that each is asked about.
    pub(crate) fn cuts(
        &self,
        marks: Range<&str>,
        told: &str,
        shuffles: usize,
        chance: &mut Chance,
    ) -> Vec<Cut> {
        let (start, end) = (self.place(marks.start), self.place(marks.end));
        let told = self.place(told);
        let is_moment = |place: &usize| *place == start || self.0[*place].is_barrier();
        let mut cuts = Vec::new();
        for whole in (start..end).filter(is_moment).map(|place| place + 1) {
            let rest = self.0[whole..end].iter();
            let stretch = whole..whole + rest.take_while(|entry| !entry.is_barrier()).count();
            // what is on the disk stays so until the next barrier: it may have been told by then
            let marked = told < stretch.end;
            let plain: Vec<usize> =
                stretch.filter(|place| !self.0[*place].data.is_empty()).collect();
            cuts.push(Cut { whole, parts: BTreeMap::new(), marked });
            let shuffles = if plain.is_empty() { 0 } else { shuffles };
            cuts.extend((0..shuffles).map(|_| {
                let kept = plain.iter().filter(|_| chance.one_in(2)).copied().collect::<Vec<_>>();
                let parts = kept.into_iter().map(|place| (place, self.torn(place, chance)));
                Cut { whole, parts: parts.collect(), marked }
            }));
        }
        cuts
    }

    /// One write in four is there in part.
    fn torn(&self, place: usize, chance: &mut Chance) -> Vec<bool> {
        let torn = chance.one_in(4);
        let atoms = self.0[place].data.len().div_ceil(ATOM);
        (0..atoms).map(|_| !torn || chance.one_in(2)).collect()
    }

    /// Writes entries to a disk.
    pub(crate) fn replay(&self, entries: Range<usize>, disk: &File) {
        for entry in &self.0[entries] {
            disk.write_all_at(&entry.data, entry.at).unwrap();
        }
    }

    /// Writes those later parts that a cut has.
    pub(crate) fn replay_parts(&self, cut: &Cut, disk: &File) {
        for (place, kept) in &cut.parts {
            let entry = &self.0[*place];
            let mut at = entry.at;
            for (atom, kept) in entry.data.chunks(ATOM).zip(kept) {
                if *kept {
                    disk.write_all_at(atom, at).unwrap();
                }
                at += u64::try_from(atom.len()).unwrap();
            }
        }
    }
}

/// Chance that is the same in every run: a failure can be met again.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn one_in(&mut self, n: u64) -> bool {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32).is_multiple_of(n)
    }
}
