//! Invariant: an image that somebody else made is read to its end or refused, without a panic and within its limits.
#![no_main]

use std::io::{Cursor, sink};

use hallmark_erofs::{EntryKind, Image, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let limits = Limits { bytes: 1 << 20, entries: 2000, metadata: 1 << 20, ..Limits::default() };
    let Ok(mut image) = Image::open(Cursor::new(input), &limits) else { return };
    let volume = image.volume();
    drop(volume);
    let Ok(entries) = image.entries() else { return };
    for entry in &entries {
        if matches!(entry.kind, EntryKind::File { size, .. } if size < 1 << 20) {
            drop(image.content(entry, &mut sink()));
        }
    }
});
