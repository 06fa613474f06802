//! Root hashes that never change, one for each feature of the format.
//!
//! `tests/vectors/features.tsv`: name, root hash, data blocks, SHA-256 of the whole image file. A
//! line that changes is a new format, not a new vector.

use std::fmt::Write as _;
use std::io::Read;

use hallmark_erofs::{Compression, Limits, pack};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::oracle;
use crate::tarball::{Item, Tar, pack_tar};

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from((n * 31 + seed + n / 251) % 256).unwrap()).collect()
}

fn own(item: Item) -> Item {
    Item { mode: 0o4751, uid: 1000, gid: 100_000, mtime: 1_700_000_000, ..item }
}

pub(crate) fn features() -> Vec<(&'static str, Vec<u8>)> {
    [contents(), names_and_attributes()].concat()
}

fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let sizes = [0, 1, 100, 4000, 4032, 4033, 4095, 4096, 4097, 6000, 8128, 8192, 20_000, 300_000];
    let files = sizes.iter().map(|size| own(Item::file(format!("f{size}"), bytes(*size, *size))));
    let many =
        (0..1500).map(|n| Item::file(format!("dir/{}-{n}", "n".repeat(n % 250)), bytes(n, n)));
    vec![
        ("empty tar", Vec::new()),
        ("end of archive alone", Tar::default().end()),
        ("root entry", Tar::of([own(Item::dir("./")).xattr("user.r", "1")])),
        ("sizes", Tar::of(files)),
        ("many names", Tar::of(many)),
        (
            "types",
            Tar::of([
                own(Item::symlink("l", "target")),
                own(Item::symlink("long", "t".repeat(4095))),
                own(Item::device(b'3', "c", 10, 229)),
                own(Item::device(b'4', "b", 259, 70_000)),
                own(Item::new(b'6', "p")),
                own(Item::dir("d")),
            ]),
        ),
    ]
}

fn names_and_attributes() -> Vec<(&'static str, Vec<u8>)> {
    let value = bytes(40_000, 3);
    vec![
        (
            "hard links",
            Tar::of([
                Item::file("a", bytes(5000, 1)),
                Item::hard_link("b", "a"),
                Item::symlink("s", "a"),
                Item::hard_link("d/s", "s"),
                Item::file("a", bytes(10, 2)),
                Item::hard_link("d/b", "b"),
            ]),
        ),
        (
            "whiteouts",
            Tar::of([
                Item::file("d/.wh.a", ""),
                Item::file(".wh.b", ""),
                Item::file("o/.wh..wh..opq", ""),
                Item::file("o/x", "1"),
                Item::file(".wh.n", ""),
                Item::dir("n"),
            ]),
        ),
        (
            "attributes",
            Tar::of([
                Item::file("f", "1").xattr("security.capability", bytes(20, 0)).xattr("user.b", ""),
                Item::dir("d").xattr("user.z", "1").xattr("trusted.a", "22").xattr("user.a", "333"),
                Item::symlink("l", "f").xattr("security.selinux", "u:object_r:t:s0\0"),
                Item::file("big", bytes(7000, 1)).xattr("user.v", &value),
                Item::dir("large").xattr("user.v", &value),
                Item::file("large/f", bytes(10, 1)),
                Item::file("acl", "").xattr("system.posix_acl_access", bytes(28, 2)),
            ]),
        ),
        (
            "times",
            Tar::of([
                Item { mtime: -5, ..Item::file("before", "") },
                Item::file("ns", "").pax("mtime", "1700000000.123456789"),
                Item::dir("far").pax("mtime", "99999999999"),
                Item::file("negative", "").pax("mtime", "-0.25"),
            ]),
        ),
        (
            "symlinked parents",
            Tar::of([
                Item::symlink("lib", "usr/lib"),
                Item::file("lib/a", "1"),
                Item::file("usr/lib/b", "2"),
            ]),
        ),
        ("data after the end", [Tar::of([Item::file("f", "1")]), bytes(700, 9)].concat()),
    ]
}

#[test]
fn root_hashes_never_change() {
    let mut table = String::new();
    for (name, tar) in features() {
        let (packed, mut image) = pack_tar(&tar).unwrap();
        let image = oracle::with_path(&mut image);
        oracle::accept(&packed, image.path());
        let sum = hex::encode(Sha256::digest(std::fs::read(image.path()).unwrap()));
        let (root, blocks) = (packed.root_hash(), packed.data_blocks());
        writeln!(table, "{name}\t{root}\t{blocks}\t{sum}").unwrap();
    }
    assert_eq!(table, include_str!("../vectors/features.tsv"), "found:\n{table}");
}

/// Gives its bytes in pieces of the sizes it is told.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: std::iter::Cycle<std::vec::IntoIter<usize>>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let size = self.sizes.next().unwrap_or(1).min(buffer.len());
        (&mut self.bytes).take(size as u64).read(buffer)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn how_the_blob_arrives_does_not_matter(
        sizes in prop::collection::vec(1usize..100_000, 1..6),
        level in 1i32..4,
    ) {
        let tar = Tar::of(
            [3, 4096, 270_000, 5000, 600_000].iter().map(|n| Item::file(format!("{n}"), bytes(*n, 7))),
        );
        let (packed, mut image) = pack_tar(&tar).unwrap();
        let whole = std::fs::read(oracle::with_path(&mut image).path()).unwrap();
        let zstd = zstd::encode_all(tar.as_slice(), level).unwrap();
        for (blob, compression) in [(&tar, Compression::None), (&zstd, Compression::Zstd)] {
            let pieces = Pieces { bytes: blob, sizes: sizes.clone().into_iter().cycle() };
            let mut image = tempfile::tempfile().unwrap();
            let again = pack(pieces, compression, &image, &Limits::default()).unwrap();
            prop_assert_eq!(again.diff_id(), packed.diff_id());
            prop_assert_eq!(again.root_hash(), packed.root_hash());
            prop_assert!(std::fs::read(oracle::with_path(&mut image).path()).unwrap() == whole);
        }
    }
}

#[test]
fn the_volume_is_where_the_image_says() {
    let (packed, image) = pack_tar(&Tar::of([Item::file("f", bytes(9000, 1))])).unwrap();
    let mut reader = hallmark_erofs::Image::open(&image, &Limits::default()).unwrap();
    let volume = reader.volume().unwrap();
    assert_eq!((volume.data_blocks, &volume.salt), (packed.data_blocks(), &packed.salt()));
    let mut data = &image;
    std::io::Seek::rewind(&mut data).unwrap();
    let root = hallmark_verity::root_of(data, &volume.salt, volume.data_blocks).unwrap();
    assert_eq!(root, packed.root_hash());
}
