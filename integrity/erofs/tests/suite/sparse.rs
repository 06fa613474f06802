//! Sparse files: as GNU tar writes them, and as nobody should.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;

use hallmark_erofs::{Compression, EntryKind, ErrorKind, Image, Limits, pack};
use proptest::prelude::*;

use crate::oracle;
use crate::tarball::{Item, Tar, pack_tar, record, show};

/// Offsets and what stands there; zeros are between.
type Regions<'a> = &'a [(u64, &'a [u8])];

/// The content of the file `name` in the image of a tar.
fn content(tar: &[u8], name: &str) -> Vec<u8> {
    let (packed, mut file) = pack_tar(tar).unwrap();
    let mut image = Image::open(&file, &Limits::default()).unwrap();
    let entries = image.entries().unwrap();
    let entry = entries.iter().find(|entry| entry.path == name.as_bytes()).unwrap();
    assert!(matches!(entry.kind, EntryKind::File { .. }));
    let mut content = Vec::new();
    image.content(entry, &mut content).unwrap();
    oracle::accept(&packed, oracle::with_path(&mut file).path());
    content
}

/// Writes a file with holes; whether its file system keeps them.
fn write(file: &mut File, len: u64, regions: Regions<'_>) -> bool {
    file.set_len(len).unwrap();
    for (offset, bytes) in regions {
        file.seek(SeekFrom::Start(*offset)).unwrap();
        file.write_all(bytes).unwrap();
    }
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512 < len
}

#[test]
fn every_form_that_gnu_tar_writes() {
    if !oracle::has("tar") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let many: Vec<(u64, Vec<u8>)> =
        (0..150).map(|n| (n * 16_384, vec![u8::try_from(n).unwrap() + 1; 4096])).collect();
    let many: Vec<(u64, &[u8])> = many.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
    let cases: [(&str, u64, Regions<'_>); 5] = [
        ("middle", 300_000, &[(0, b"start"), (131_072, &[7; 5000])]),
        ("end", 200_003, &[(200_000, b"end")]),
        ("hole", 100_000, &[]),
        ("many", 150 * 16_384 + 17, &many),
        (&"n".repeat(120), 70_000, &[(65_536, b"long name")]),
    ];
    for (name, len, regions) in cases {
        let path = dir.path().join(name);
        if !write(&mut File::create(&path).unwrap(), len, regions) {
            return oracle::skipped("a file system with holes");
        }
        let whole = std::fs::read(&path).unwrap();
        for form in ["--format=gnu", "0.0", "0.1", "1.0"] {
            let version = format!("--sparse-version={form}");
            let form =
                if form.starts_with("--") { vec![form] } else { vec!["--format=posix", &version] };
            let mut arguments: Vec<&OsStr> = form.iter().map(OsStr::new).collect();
            arguments.extend(["-S", "-C"].map(OsStr::new));
            arguments.extend([dir.path().as_os_str(), "-cf".as_ref(), "-".as_ref(), name.as_ref()]);
            let tar = oracle::run("tar", &arguments).stdout;
            assert!((tar.len() as u64) < len, "{form:?} stores {name} whole");
            assert!(content(&tar, name) == whole, "{form:?} {name}");
        }
    }
}

fn map(regions: &[(u64, u64)]) -> String {
    let numbers = regions.iter().flat_map(|(offset, length)| [offset, length]);
    numbers.map(u64::to_string).collect::<Vec<_>>().join(",")
}

/// A tar with one sparse file, in the form PAX 0.1.
fn tar(regions: &[(u64, u64)], len: u64, stored: &[u8]) -> Vec<u8> {
    let item = Item::file("made-up", stored)
        .pax("GNU.sparse.name", "f")
        .pax("GNU.sparse.size", len.to_string())
        .pax("GNU.sparse.numblocks", regions.len().to_string())
        .pax("GNU.sparse.map", map(regions));
    Tar::of([item])
}

#[test]
fn maps_that_readers_disagree_about() {
    for (regions, len, stored, message) in [
        (&[(0, 5), (3, 5)][..], 20, 10, "not in order"),
        (&[(8, 2), (0, 2)], 20, 4, "not in order"),
        (&[(0, 5)], 4, 5, "beyond the file"),
        (&[(0, 5)], 20, 6, "bytes that are stored"),
        (&[(0, 5)], 20, 4, "bytes that are stored"),
        (&[(u64::MAX, 5)], 20, 5, "beyond the file"),
        (&[(0, 0)], u64::MAX, 0, "size is too large"),
    ] {
        let error = pack_tar(&tar(regions, len, &vec![1; stored])).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
    let keys = |item: Item| item.pax("GNU.sparse.size", "9").pax("GNU.sparse.numblocks", "1");
    for (item, message) in [
        (keys(Item::dir("d")).pax("GNU.sparse.map", "0,0"), "not a regular file"),
        (keys(Item::file("f", "")).pax("GNU.sparse.map", "0,0,0,0"), "regions that it says"),
        (keys(Item::file("f", "")).pax("GNU.sparse.major", "2"), "no known form"),
        (
            keys(Item::file("f", "x")).pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0"),
            "does not end in the content",
        ),
    ] {
        let error = pack_tar(&Tar::of([item])).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

/// A header of type `S` with these regions, up to four, and what says that more follow.
fn old(regions: &[(u64, u64)], more: u8, len: u64, stored: usize) -> [u8; 512] {
    let mut tar = Tar::default();
    tar.raw(&Item { magic: *b"ustar  \0", size: Some(stored as u64), ..Item::new(b'S', "f") });
    let mut header: [u8; 512] = tar.0[..512].try_into().unwrap();
    for (n, (offset, length)) in regions.iter().enumerate() {
        header[386 + 24 * n..][..24]
            .copy_from_slice(format!("{offset:011o}\0{length:011o}\0").as_bytes());
    }
    header[482] = more;
    header[483..495].copy_from_slice(format!("{len:011o}\0").as_bytes());
    header
}

#[test]
fn the_old_form_byte_by_byte() {
    let mut good = Tar::default();
    good.header(old(&[(4, 3)], 0, 9, 3));
    good.0.extend(b"abc");
    good.0.resize(1024, 0);
    assert_eq!(show(&good.end()).unwrap()[1], "/f file \"\\0\\0\\0\\0abc\\0\\0\" 644 0:0 0.0 n1");
    for (header, message) in [
        (old(&[(0, 1)], 1, 9, 1), "goes on after its end"),
        (old(&[(0, 1); 4], 1, 9, 4), "a sparse map"),
        (old(&[(0, 2)], 0, 1, 2), "beyond the file"),
    ] {
        let mut tar = Tar::default();
        tar.header(header);
        let error = pack_tar(&tar.0).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn holes_count_like_bytes() {
    let tar = tar(&[], 5 << 20, b"");
    let limits = Limits { bytes: 4 << 20, ..Limits::default() };
    let image = tempfile::tempfile().unwrap();
    let error = pack(&tar[..], Compression::None, &image, &limits).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(image.metadata().unwrap().len() < 1 << 20, "holes were written");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any map gives the bytes that GNU tar would write, whatever form states it.
    #[test]
    fn the_file_is_what_its_map_says(
        gaps in prop::collection::vec((0u64..9000, 0u64..9000), 0..40),
        tail in 0u64..5000,
    ) {
        let (mut regions, mut whole, mut stored) = (Vec::new(), Vec::new(), Vec::new());
        for (n, (gap, length)) in gaps.iter().enumerate() {
            whole.resize(whole.len() + usize::try_from(*gap).unwrap(), 0);
            regions.push((whole.len() as u64, *length));
            let bytes = vec![u8::try_from(n).unwrap() + 1; usize::try_from(*length).unwrap()];
            whole.extend(&bytes);
            stored.extend(bytes);
        }
        whole.resize(whole.len() + usize::try_from(tail).unwrap(), 0);
        let len = whole.len() as u64;
        prop_assert!(content(&tar(&regions, len, &stored), "f") == whole);
        let mut lines = regions.iter().fold(format!("{}\n", regions.len()), |text, (at, length)| {
            format!("{text}{at}\n{length}\n")
        }).into_bytes();
        lines.resize(lines.len().next_multiple_of(512), 0);
        let item = Item::file("f", [lines, stored].concat())
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.realsize", len.to_string());
        prop_assert!(content(&Tar::of([item]), "f") == whole);
    }
}

#[test]
fn a_map_in_records_that_alternate() {
    let pairs = [(3, 2), (10, 1)];
    let mut records = record(b"GNU.sparse.size", b"12");
    records.extend(record(b"GNU.sparse.numblocks", b"2"));
    for (offset, length) in pairs {
        records.extend(record(b"GNU.sparse.offset", offset.to_string().as_bytes()));
        records.extend(record(b"GNU.sparse.numbytes", length.to_string().as_bytes()));
    }
    let mut tar = Tar::default();
    tar.raw(&Item { content: records, ..Item::new(b'x', "x") });
    tar.raw(&Item::file("f", "abc"));
    let mut found = Vec::new();
    content(&tar.end(), "f").as_slice().read_to_end(&mut found).unwrap();
    assert_eq!(found, b"\0\0\0ab\0\0\0\0\0c\0");
}
