//! Tars and images that are refused, and that nothing makes panic.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Command;

use hallmark_erofs::{Compression, EntryKind, ErrorKind, Image, Limits, pack};
use proptest::prelude::*;

use crate::oracle::has;
use crate::tarball::{Item, Tar, pack_tar, record, show};

fn refused(tar: &[u8], kind: ErrorKind, message: &str) {
    let Err(error) = pack_tar(tar) else { panic!("accepted: {message}: {:?}", show(tar)) };
    assert!(error.to_string().contains(message), "{error}, expected: {message}");
    assert_eq!(error.kind(), kind, "{error}");
}

#[test]
fn entries_that_make_no_sense() {
    use ErrorKind::{Limit, Malformed, Unsupported};
    let file = |name| Item::file(name, "");
    let deep = "d/".repeat(600) + "f";
    for (items, kind, message) in [
        (vec![file("a"), file("a/b")], Malformed, "is below what is not a directory"),
        (vec![Item::device(b'3', "a", 1, 3), file("a/b")], Malformed, "is not a directory"),
        (vec![file("./")], Malformed, "is the root"),
        (vec![Item::symlink(".", "x")], Malformed, "is the root"),
        (vec![Item::hard_link("a/..", "x")], Malformed, "is the root"),
        (vec![Item::hard_link("a", "b")], Malformed, "does not have"),
        (vec![Item::hard_link("a", "b"), file("b")], Malformed, "does not have"),
        (vec![file("a"), Item::hard_link("a", "a")], Malformed, "does not have"),
        (vec![file("a/b"), Item::hard_link("a", "a/b")], Malformed, "does not have"),
        (vec![file("a"), Item::hard_link("b", "x/../../a/c")], Malformed, "not a directory"),
        (vec![Item::dir("a"), Item::hard_link("b", "a")], Malformed, "link to a directory"),
        (vec![Item::hard_link("b", "/")], Malformed, "does not have"),
        (vec![file(".wh.a"), Item::hard_link("b", "a")], Malformed, "does not have"),
        (vec![Item::symlink("a", "")], Malformed, "symlink to nothing"),
        (vec![Item::symlink("a", "a"), file("a/b")], Malformed, "too many symlinks"),
        (
            vec![Item::symlink("a", "b"), Item::symlink("b", "/a"), file("a/x")],
            Malformed,
            "too many symlinks",
        ),
        (vec![Item::symlink("a", "t".repeat(4096))], Limit, "symlink's target"),
        (vec![Item::device(b'3', "a", 0, 0)], Unsupported, "takes for a whiteout"),
        (vec![Item::device(b'3', "a", 4096, 0)], Malformed, "device number"),
        (vec![Item::device(b'4', "a", 0, 1 << 20)], Malformed, "device number"),
        (vec![file(".wh.")], Malformed, "whiteout of anything"),
        (vec![file(".wh..")], Malformed, "whiteout of anything"),
        (vec![file(".wh...")], Malformed, "whiteout of anything"),
        (vec![file(".wh..wh.plnk")], Malformed, "whiteout of anything"),
        (vec![file("x/.wh.a/b")], Malformed, "below a whiteout"),
        (vec![file(&"n".repeat(256))], Limit, "bytes of a name"),
        (vec![Item::symlink("s", "n".repeat(300)), file("s/a")], Limit, "bytes of a name"),
        (vec![file(&"p/".repeat(2049))], Limit, "bytes of a path"),
        (vec![file(&deep)], Limit, "directories above"),
        (vec![Item::dir("a").xattr("user.k", vec![1; 65536])], Limit, "attribute's value"),
        (
            vec![file("a").xattr("user.k", vec![1; 65535]).xattr("user.l", vec![1; 65535])],
            Limit,
            "bytes of extended attributes",
        ),
        (vec![Item::dir("/").xattr("user.k", vec![1; 2900])], Unsupported, "than fit into block 0"),
    ] {
        refused(&Tar::of(items), kind, message);
    }
}

#[test]
fn headers_that_readers_disagree_about() {
    let x = |records: &[u8]| Item { content: records.to_vec(), ..Item::new(b'x', "x") };
    let path = record(b"path", b"p");
    let long = Item { content: b"long\0".to_vec(), ..Item::new(b'L', "L") };
    let global = Item { content: record(b"uid", b"1"), ..Item::new(b'g', "g") };
    let file = Item::file("f", "1");
    for (items, message) in [
        (vec![x(&path), long.clone(), file.clone()], "PAX path and a GNU long name"),
        (vec![long.clone(), x(&path), file.clone()], "PAX path and a GNU long name"),
        (vec![x(&path), x(&path), file.clone()], "two extended headers"),
        (vec![long.clone(), long.clone(), file.clone()], "two extended headers"),
        (vec![Item { size: Some(1), ..long.clone() }, file.clone()], "long name does not end"),
        (vec![x(&path), global.clone(), file.clone()], "inside an entry's headers"),
        (vec![file.clone(), x(&path)], "ends after an extended header"),
        (vec![x(b"12 path=abc"), file.clone()], "extended header is malformed"),
        (vec![x(&record(b"GNU.sparse.major", b"1")), file.clone()], "sparse file has no size"),
        (
            vec![x(&record(b"GNU.sparse.size", b"1")), file.clone()],
            "sparse file is of no known form",
        ),
        (vec![Item { content: path, ..global }, file.clone()], "global extended header has a path"),
        (vec![Item { content: b"abc".to_vec(), ..Item::dir("d") }], "has a size"),
        (vec![file.clone(), Item { size: Some(1), ..Item::hard_link("h", "f") }], "has a size"),
        (vec![Item { size: Some(9), ..Item::symlink("s", "t") }], "has a size"),
        (vec![Item::file("", "")], "no name"),
        (vec![Item { magic: *b"notar\x0000", ..file.clone() }], "no known tar format"),
        (vec![Item { uid: 1 << 32, ..file.clone() }], "owner"),
        (vec![Item { size: Some(1 << 21), ..x(b"") }], "longer than 1 MiB"),
        (vec![x(&record(b"size", b"9223372036854775808")), file.clone()], "size is too large"),
    ] {
        let mut tar = Tar::default();
        items.iter().for_each(|item| tar.raw(item));
        refused(&tar.end(), ErrorKind::Malformed, message);
    }
    for flag in [b'S', b'M', b'V', b'D', b'N', b'7', b'A', b'X', b'8', 0xff] {
        let tar = Tar::of([Item { flag, ..Item::file("f", "") }]);
        refused(&tar, ErrorKind::Unsupported, "is not supported");
    }
}

#[test]
fn damaged_headers() {
    let good = Tar::of([Item::file("f", "1"), Item::file("g", "2")]);
    for at in 0..512 {
        let mut bad = good.clone();
        bad[at] ^= 0x01;
        let error = pack_tar(&bad).map(|_| ()).expect_err(&format!("byte {at}"));
        assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
    }
    let mut lone_zero_block = good.clone();
    lone_zero_block.splice(1024..1024, [0; 512]);
    refused(&lone_zero_block, ErrorKind::Malformed, "single zero block");
    let mut negative = Tar::default();
    negative.push(Item::file("f", ""));
    negative.0[124..136].fill(0xff);
    let header = *negative.0.first_chunk::<512>().unwrap();
    let mut tar = Tar::default();
    tar.header(header);
    refused(&tar.end(), ErrorKind::Malformed, "size is negative");
}

#[test]
fn every_truncation_inside_an_entry() {
    let tar = Tar::of([Item::file("f", "x".repeat(6000)), Item::dir("d").xattr("user.a", "1")]);
    for len in (1..tar.len() - 1024).filter(|len| len % 512 != 0 || (512..6656).contains(len)) {
        let error = pack_tar(&tar[..len]).map(|_| ()).expect_err(&format!("{len} bytes"));
        assert_eq!(error.kind(), ErrorKind::Malformed, "{len}: {error}");
    }
}

#[test]
fn limits_hold() {
    let small = Limits {
        bytes: 1 << 20,
        entries: 100,
        metadata: 10_000,
        depth: 5,
        path: 50,
        xattrs: 100,
        symlink_steps: 1000,
    };
    let many = |count: usize| (0..count).map(|n| Item::file(format!("{n}"), ""));
    for (tar, what) in [
        (Tar::of([Item::file("f", vec![0; 1 << 20])]), "bytes"),
        (Tar::of(many(101)), "entries"),
        (
            Tar::of((0..90).map(|n| Item::symlink(format!("{n}"), "t".repeat(120)))),
            "bytes of names",
        ),
        (Tar::of([Item::file("1/2/3/4/5/6/f", "")]), "directories above it"),
        (Tar::of([Item::file("p".repeat(51), "")]), "bytes of a path"),
        (Tar::of([Item::file("f", "").xattr("user.a", [1; 90])]), "bytes of extended attributes"),
        (
            Tar::of(
                [Item::symlink("s", "./".repeat(600)), Item::symlink("t", "./".repeat(600))]
                    .into_iter()
                    .chain([Item::file("s/a", ""), Item::file("t/a", "")]),
            ),
            "names below symlinks",
        ),
    ] {
        let image = tempfile::tempfile().unwrap();
        let error = pack(tar.as_slice(), Compression::None, &image, &small).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.to_string().contains(what), "{error}, expected: {what}");
    }
    let image = tempfile::tempfile().unwrap();
    assert!(pack(Tar::of(many(100)).as_slice(), Compression::None, &image, &small).is_ok());
}

#[test]
fn a_name_in_a_message_is_harmless() {
    let name = format!("\x1b[31m\n{}", "x".repeat(3000));
    let tar = Tar::of([Item::file("a", ""), Item::file(format!("a/{name}"), "")]);
    let message = pack_tar(&tar).map(|_| ()).unwrap_err().to_string();
    assert!(message.len() < 400 && !message.contains(['\x1b', '\n']), "{message}");
}

#[test]
fn an_image_that_cannot_be_written_or_read_back() {
    let linked = Tar::of([Item::file("f", "1"), Item::hard_link("g", "f")]);
    let image = tempfile::NamedTempFile::new().unwrap();
    let write_only = File::options().write(true).open(image.path()).unwrap();
    let read_only = File::open(image.path()).unwrap();
    for file in [&write_only, &read_only] {
        let result = pack(linked.as_slice(), Compression::None, file, &Limits::default());
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Image);
    }
}

/// An image that uses every feature, as bytes.
fn sample_image() -> Vec<u8> {
    let tar = Tar::of([
        Item::file("f", "x".repeat(5000)).xattr("user.a", "1"),
        Item::hard_link("g", "f"),
        Item::symlink("l", "f"),
        Item::device(b'3', "c", 1, 3),
        Item::file(".wh.w", ""),
        Item::file("d/e/.wh..wh..opq", ""),
        Item::new(b'6', "d/p"),
    ]);
    let (packed, mut file) = pack_tar(&tar).unwrap();
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes.truncate(usize::try_from((packed.data_blocks().0 + 1) * 4096).unwrap());
    bytes
}

/// Reads everything an image has; bad images end in an error or in other content.
fn read_all(bytes: &[u8]) -> Result<usize, hallmark_erofs::Error> {
    let limits = Limits { metadata: 1 << 20, entries: 1000, ..Limits::default() };
    let mut image = Image::open(std::io::Cursor::new(bytes), &limits)?;
    image.volume()?;
    let entries = image.entries()?;
    for entry in &entries {
        if matches!(entry.kind, EntryKind::File { .. }) {
            image.content(entry, &mut std::io::sink().by_ref())?;
        }
    }
    Ok(entries.len())
}

#[test]
fn the_reader_survives_every_changed_byte() {
    let good = sample_image();
    assert_eq!(read_all(&good).unwrap(), 9);
    for at in 0..good.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= mask;
            // An error or not: block 0 and the superblock behind the data are wholly determined.
            let result = read_all(&bad);
            let determined = at < 4096 || at >= good.len() - 4096 && at < good.len() - 4096 + 512;
            assert!(!(determined && result.is_ok()), "byte {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_are_packed_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        compression in prop::sample::select(vec![
            Compression::None, Compression::Gzip, Compression::Zstd,
        ]),
    ) {
        let image = tempfile::tempfile().unwrap();
        drop(pack(bytes.as_slice(), compression, &image, &Limits::default()));
    }

    #[test]
    fn a_damaged_tar_is_packed_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fix_checksums in any::<bool>(),
    ) {
        let mut tar = Tar::of([
            Item::file("f", "x".repeat(700)).xattr("user.a", "1"),
            Item::hard_link("g", "f"),
            Item::symlink("l", "f"),
            Item::file("l/x", ""),
            Item::file(".wh.w", ""),
        ]);
        for (at, byte) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        if fix_checksums {
            let mut fixed = Tar::default();
            tar.as_chunks::<512>().0.iter().for_each(|block| match block {
                [0, ..] => fixed.0.extend(block),
                block => fixed.header(*block),
            });
            tar = fixed.0;
        }
        if let Ok((_, file)) = pack_tar(&tar) {
            Image::open(&file, &Limits::default()).unwrap().entries().unwrap();
        }
    }
}

/// Regular files that GNU tar finds in an archive, or `None` if it complains.
fn gnu_tar_files(tar: &[u8]) -> Option<BTreeMap<Vec<u8>, u64>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(tar).unwrap();
    let output = Command::new("tar")
        .args(["--list", "-vv", "--numeric-owner", "--full-time", "--quoting-style=escape"])
        .arg("--absolute-names")
        .arg("--file")
        .arg(file.path())
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    if !output.status.success() {
        return None;
    }
    let mut files = BTreeMap::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        // type and mode, owner, size, date, time, name
        let fields: Vec<&[u8]> = line.splitn(2, |byte| *byte == b' ').collect();
        let text = String::from_utf8_lossy(fields[1]).into_owned();
        let mut words = text.split_whitespace();
        let (owner, size) = (words.next().unwrap(), words.next().unwrap());
        let (date, time) = (words.next().unwrap(), words.next().unwrap());
        assert!(owner.contains('/') && date.contains('-'), "{text}");
        let name = text.split_once(time).unwrap().1.strip_prefix(' ').unwrap();
        let name: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        let name = name.join("/").into_bytes();
        files.remove(&name);
        if fields[0].starts_with(b"-") {
            files.insert(name, size.parse().unwrap());
        }
    }
    Some(files)
}

/// What is under a header's numeric field or in an extended header, one way or another.
fn twisted() -> impl Strategy<Value = Vec<Item>> {
    let size = prop::sample::select(vec!["0", "1", "512", "600", "1024", "1536", "2048"]);
    let flag = prop::sample::select(b"00xLg5".to_vec());
    let item = (flag, size.clone(), prop::option::of(size), prop::option::of(0u64..2048)).prop_map(
        |(flag, size, pax, stated)| {
            let inner = Tar::of([Item::file("inner", "smuggled")]);
            let mut content = inner[..size.parse::<usize>().unwrap().min(inner.len())].to_vec();
            if flag == b'x' || flag == b'g' {
                content = pax.map_or(Vec::new(), |size| record(b"size", size.as_bytes()));
            }
            Item { content, size: stated, ..Item::new(flag, format!("n{size}")) }
        },
    );
    prop::collection::vec(item, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// CVE-2025-62518 and its kind: two readers of one archive must find the same files.
    #[test]
    fn what_is_accepted_means_the_same_to_gnu_tar(items in twisted()) {
        prop_assume!(has("tar"));
        let mut tar = Tar::default();
        items.iter().for_each(|item| tar.raw(item));
        tar.push(Item::file("last", "content"));
        let tar = tar.end();
        let Ok((_, file)) = pack_tar(&tar) else { return Ok(()) };
        let mut ours = BTreeMap::new();
        for entry in Image::open(&file, &Limits::default()).unwrap().entries().unwrap() {
            if let EntryKind::File { size, .. } = entry.kind {
                ours.insert(entry.path, size);
            }
        }
        let theirs = gnu_tar_files(&tar);
        prop_assert_eq!(theirs, Some(ours));
    }
}

#[test]
fn a_pipe_that_breaks_is_an_error() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&Tar::of([Item::file("f", vec![7; 100_000])])).unwrap();
    let blob = encoder.finish().unwrap();
    writer.write_all(&blob[..blob.len() - 4]).unwrap();
    drop(writer);
    let image = tempfile::tempfile().unwrap();
    let error = pack(reader, Compression::Gzip, &image, &Limits::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Blob);
}
