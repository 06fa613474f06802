//! `hallmark-composefs.1`: contents beside the image.
//!
//! `tests/vectors/objects.tsv`: name, root hash, data blocks, SHA-256 of the whole image file, number of different
//! objects, SHA-256 of their digests in order. A line that changes is a new format, not a new vector.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::Path;

use hallmark_erofs::{
    Compression, EntryKind, ErrorKind, Format, Image, Limits, Objects, PackedLayer, object_path,
    pack_with_objects,
};
use hallmark_verity::{FileDigest, FileHasher};
use sha2::{Digest as _, Sha256};

use crate::kernel::{can_mount, shell};
use crate::oracle;
use crate::tarball::{Item, Tar, pack_tar};
use crate::vectors::features;

/// Objects by digest, each as often as it came.
#[derive(Default)]
struct Kept {
    open: Vec<u8>,
    whole: BTreeMap<FileDigest, Vec<u8>>,
    came: usize,
}

impl Objects for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open.extend(bytes);
        Ok(())
    }

    fn end(&mut self, digest: &FileDigest) -> io::Result<()> {
        let content = std::mem::take(&mut self.open);
        assert_eq!(FileHasher::digest_of(content.as_slice()).unwrap(), *digest);
        assert!(!content.is_empty());
        self.whole.insert(*digest, content);
        self.came += 1;
        Ok(())
    }
}

fn pack_objects(tar: &[u8]) -> (PackedLayer, File, Kept) {
    let (image, mut kept) = (tempfile::tempfile().unwrap(), Kept::default());
    let limits = Limits::default();
    let packed = pack_with_objects(tar, Compression::None, &image, &mut kept, &limits).unwrap();
    assert_eq!(image.metadata().unwrap().len(), packed.image_len());
    (packed, image, kept)
}

#[test]
fn root_hashes_never_change() {
    let mut table = String::new();
    for (name, tar) in features() {
        let (packed, mut image, kept) = pack_objects(&tar);
        let image = oracle::with_path(&mut image);
        oracle::accept(&packed, image.path());
        let sum = hex::encode(Sha256::digest(std::fs::read(image.path()).unwrap()));
        let digests: Vec<u8> = kept.whole.keys().flat_map(|digest| *digest.as_bytes()).collect();
        let (root, blocks) = (packed.root_hash(), packed.data_blocks());
        let (count, digests) = (kept.whole.len(), hex::encode(Sha256::digest(digests)));
        writeln!(table, "{name}\t{root}\t{blocks}\t{sum}\t{count}\t{digests}").unwrap();
    }
    assert_eq!(table, include_str!("../vectors/objects.tsv"), "found:\n{table}");
}

/// The reader finds in both formats the same entries with the same contents.
#[test]
fn both_formats_show_the_same() {
    for (name, tar) in features() {
        let (inside, file) = pack_tar(&tar).unwrap();
        let mut whole = Image::open(&file, &Limits::default()).unwrap();
        let (packed, file, mut kept) = pack_objects(&tar);
        let mut split = Image::open(&file, &Limits::default()).unwrap();
        assert_eq!((whole.format(), split.format()), (Format::Erofs1, Format::Composefs1));
        assert_eq!(split.volume().unwrap().salt, packed.salt());
        assert_ne!(packed.salt(), inside.salt());
        assert_eq!(packed.diff_id(), inside.diff_id());
        let (wholes, splits) = (whole.entries().unwrap(), split.entries().unwrap());
        assert_eq!(wholes.len(), splits.len(), "{name}");
        for (mut one, mut other) in wholes.into_iter().zip(splits) {
            let path = one.path.escape_ascii().to_string();
            if let EntryKind::File { size, object } = &mut other.kind {
                let mut content = Vec::new();
                whole.content(&one, &mut content).unwrap();
                assert_eq!(object.is_some(), *size > 0, "{name}: {path}");
                let found = object.take().and_then(|digest| kept.whole.get(&digest));
                assert_eq!(found.cloned().unwrap_or_default(), content, "{name}: {path}");
            }
            assert_eq!(one.kind, other.kind, "{name}: {path}");
            assert_eq!(one.xattrs, other.xattrs, "{name}: {path}");
            let fields = |entry: &hallmark_erofs::Entry| {
                (entry.permissions, entry.uid, entry.gid, entry.mtime, entry.nlink)
            };
            assert_eq!(fields(&one), fields(&other), "{name}: {path}");
            one.path.clone_from(&other.path);
        }
        kept.whole.clear();
    }
}

#[test]
fn an_image_with_objects_gives_no_content() {
    let (_, file, kept) = pack_objects(&Tar::of([Item::file("f", "1"), Item::file("g", "1")]));
    assert_eq!((kept.came, kept.whole.len()), (2, 1));
    let mut image = Image::open(&file, &Limits::default()).unwrap();
    for entry in image.entries().unwrap().iter().filter(|entry| !entry.path.is_empty()) {
        let error = image.content(entry, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format);
    }
}

/// A sink that fails at a given call.
struct Full(usize);

impl Full {
    fn step(&mut self) -> io::Result<()> {
        self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(())
    }
}

impl Objects for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        self.step()
    }

    fn end(&mut self, _: &FileDigest) -> io::Result<()> {
        self.step()
    }
}

#[test]
fn what_cannot_be_kept_ends_the_packing() {
    let tar = Tar::of([Item::file("f", "1"), Item::file("g", "2")]);
    for step in 0..4 {
        let image = tempfile::tempfile().unwrap();
        let (mut full, limits) = (Full(step), Limits::default());
        let packed =
            pack_with_objects(tar.as_slice(), Compression::None, &image, &mut full, &limits);
        let error = packed.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Image, "{error}");
    }
}

/// No byte of such an image can be changed so that the reader panics; what it then says of objects is of one that
/// somebody could have written.
#[test]
fn changed_bytes_are_survived() {
    let files = [Item::file("a", "1").xattr("user.a", "b"), Item::file("d/b", vec![3; 9000])];
    let (_, mut image, _) = pack_objects(&Tar::of(files));
    let bytes = std::fs::read(oracle::with_path(&mut image).path()).unwrap();
    let mut refused = 0;
    for (at, bit) in (0..bytes.len()).flat_map(|at| [(at, 1), (at, 0x80)]) {
        let mut bad = bytes.clone();
        bad[at] ^= bit;
        let read = Image::open(io::Cursor::new(bad), &Limits::default())
            .and_then(|mut image| image.entries());
        refused += usize::from(read.is_err());
    }
    assert!(refused > 2000, "only {refused} changes were refused");
}

const THROUGH_OVERLAYFS: &str = r#"
    for d in whole split both; do mkdir "$3/$d"; done
    mount -t erofs -o loop,ro "$1" "$3/whole"
    mount -t erofs -o loop,ro "$2" "$3/split"
    mount -t overlay -o "ro,metacopy=on,redirect_dir=follow,lowerdir=$3/split::$3/objects" overlay "$3/both"
    for d in whole both; do
        (cd "$3/$d" && find . -type f -exec sha256sum {} + | sort && find . -printf '%p %y %s %m %U %G %T@ %l\n' | sort) > "$3/$d.seen"
    done
    cmp "$3/whole.seen" "$3/both.seen"
    cat "$3/both.seen" | grep -q large
"#;

/// Linux shows through overlayfs and a data-only lower what it shows of an image that holds all.
#[test]
fn overlayfs_finds_the_objects() {
    if !can_mount() {
        return;
    }
    let owner = Item { mode: 0o4750, uid: 7, gid: 9, mtime: 1_700_000_000, ..Item::new(b'0', "x") };
    let tar = Tar::of([
        Item { name: b"bin/large".to_vec(), content: vec![5; 300_000], ..owner.clone() },
        Item { name: b"bin/small".to_vec(), content: b"#!/bin/sh\n".to_vec(), ..owner },
        Item::hard_link("other", "bin/small"),
        Item::file("copy", "#!/bin/sh\n").xattr("user.a", "b"),
        Item::file("empty", ""),
        Item::symlink("link", "bin/large"),
    ]);
    let (_, mut whole) = pack_tar(&tar).unwrap();
    let (_, mut split, kept) = pack_objects(&tar);
    assert_eq!((kept.came, kept.whole.len()), (3, 2));
    let directory = tempfile::tempdir().unwrap();
    for (digest, content) in &kept.whole {
        let path = directory.path().join("objects").join(object_path(digest));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let (whole, split) = (oracle::with_path(&mut whole), oracle::with_path(&mut split));
    shell(THROUGH_OVERLAYFS, &[whole.path(), split.path(), directory.path() as &Path]);
}
