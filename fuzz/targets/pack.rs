//! Invariants: a layer tar is packed or refused, without a panic; what was packed can be read back whole, has the root
//! hash that was said, and is the same when packed again. `fsck.erofs`, where there is one, agrees on a sample.
#![no_main]

use std::io::Cursor;
use std::process::Command;

use hallmark_erofs::{Compression, Error, Image, Limits, pack};
use libfuzzer_sys::fuzz_target;

/// Small enough that no input takes seconds.
fn limits() -> Limits {
    Limits { bytes: 1 << 20, entries: 2000, metadata: 1 << 20, ..Limits::default() }
}

/// Sets the checksum of every header, which no mutation would hit: the input is about all that is behind it.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut tar = input.to_vec();
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + 512) {
        at += 512;
        if header.iter().all(|byte| *byte == 0) {
            continue;
        }
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..135]).ok();
        let size = size.and_then(|octal| usize::from_str_radix(octal, 8).ok()).unwrap_or(0);
        at = at.saturating_add(size.next_multiple_of(512));
        if at > tar.len() {
            break;
        }
    }
    tar
}

fn packed(blob: &[u8], compression: Compression) -> Result<(String, u64, Vec<u8>), Error> {
    let mut image = Cursor::new(Vec::new());
    let packed = pack(blob, compression, &mut image, &limits())?;
    assert_eq!(packed.image_len(), image.get_ref().len() as u64);
    let data = image.get_ref().as_slice();
    let root = hallmark_verity::root_of(data, &packed.salt(), packed.data_blocks());
    assert_eq!(root.expect("the data is there"), packed.root_hash());
    Ok((packed.root_hash().to_hex(), packed.data_blocks().0, image.into_inner()))
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, input)) = input.split_first() else { return };
    let (blob, compression) = match kind % 4 {
        0 => (input.to_vec(), Compression::Gzip),
        1 => (input.to_vec(), Compression::Zstd),
        2 => (input.to_vec(), Compression::None),
        _ => (with_checksums(input), Compression::None),
    };
    let Ok((root, _, bytes)) = packed(&blob, compression) else { return };
    let again = packed(&blob, compression).expect("packed before");
    assert!(again.0 == root && again.2 == bytes, "packed otherwise the second time");
    let mut image = Image::open(Cursor::new(&bytes), &limits()).expect("an image of ours");
    let entries = image.entries().expect("entries of ours");
    for entry in &entries {
        let mut content = Vec::new();
        if matches!(entry.kind, hallmark_erofs::EntryKind::File { .. }) {
            image.content(entry, &mut content).expect("content of ours");
        }
    }
    if root.starts_with("00") {
        fsck(&bytes);
    }
});

fn fsck(image: &[u8]) {
    let path = std::env::temp_dir().join(format!("hallmark-fuzz-{}", std::process::id()));
    std::fs::write(&path, image).expect("write the image");
    // a machine without it is told so by hack/fuzz
    if let Ok(output) = Command::new("fsck.erofs").arg("--extract").arg(&path).output() {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_file(&path).expect("remove the image");
}
