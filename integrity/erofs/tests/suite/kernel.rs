//! What Linux shows of an image equals what GNU tar extracts from the same layer.
//!
//! Both trees are packed again by one GNU tar, sorted, with nanoseconds and attributes: the two
//! archives must be equal byte for byte. They hold type, mode, owner, time, attributes, content and
//! which names are hard links; link counts are compared by `find`.

use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::oracle::{accept, has, run, skipped, with_path};
use crate::tarball::{Item, Tar, pack_tar};

/// Mounts $1 on $2, and writes what it holds to $3.
const SHOW_IMAGE: &str =
    r#"mount -t erofs -o loop,ro,nodev "$1" "$2" && cd "$2" && exec sh -c "$SHOW" - "$3""#;

/// Extracts $1 into $2, and writes what it holds to $3.
const SHOW_TAR: &str = r#"tar --extract --file="$1" --directory="$2" --same-permissions \
    --same-owner --numeric-owner --xattrs --xattrs-include='*' --no-selinux --no-acls \
    --delay-directory-restore && cd "$2" && exec sh -c "$SHOW" - "$3""#;

/// Writes what the working directory holds to $1.tar and $1.nlink.
const SHOW: &str = r#"
    tar --create --file="$1.tar" --sort=name --numeric-owner --format=posix --no-selinux \
        --no-acls --pax-option=exthdr.name=x,delete=atime,delete=ctime \
        --xattrs --xattrs-include='*' . &&
    find . -printf '%P\0%n\0' | sort -z > "$1.nlink"
"#;

/// Whether a loop device with an EROFS image can be mounted here, and a line that says so if not.
pub(crate) fn can_mount() -> bool {
    let (packed, mut image) = pack_tar(&[]).unwrap();
    let image = with_path(&mut image);
    assert_eq!(packed.data_blocks().0, 1);
    let directory = TempDir::new().unwrap();
    let mounted = Command::new("unshare")
        .args(["--mount", "mount", "-t", "erofs", "-o", "loop,ro"])
        .args([image.path(), directory.path()])
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        skipped("root, loop devices and EROFS");
    }
    mounted && has("tar") && has("find")
}

pub(crate) fn shell(script: &str, arguments: &[&Path]) {
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec", script, "-"])
        .args(arguments)
        .env("SHOW", SHOW)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {error}");
}

/// Compares an image of `tar` with its extraction.
fn compare(tar: &[u8]) {
    let (packed, mut image) = pack_tar(tar).unwrap();
    let image = with_path(&mut image);
    accept(&packed, image.path());
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    let (archive, mount, extracted) = (path("layer.tar"), path("mount"), path("extracted"));
    std::fs::create_dir(&mount).unwrap();
    std::fs::create_dir(&extracted).unwrap();
    std::fs::write(&archive, tar).unwrap();
    shell(SHOW_IMAGE, &[image.path(), &mount, &path("found")]);
    shell(SHOW_TAR, &[&archive, &extracted, &path("expected")]);
    for kind in ["tar", "nlink"] {
        let read = |name: &str| std::fs::read(path(&format!("{name}.{kind}"))).unwrap();
        let (mut found, mut expected) = (read("found"), read("expected"));
        if kind == "tar" {
            sort_extended_headers(&mut found);
            sort_extended_headers(&mut expected);
        }
        if found != expected {
            let list = |name: &str| {
                let file = path(name);
                let arguments =
                    ["--list".as_ref(), "-vv".as_ref(), "--file".as_ref(), file.as_os_str()];
                let output = run("tar", &arguments);
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let (found, expected) = (list("found.tar"), list("expected.tar"));
            let differ: Vec<_> =
                found.lines().zip(expected.lines()).filter(|(f, e)| f != e).take(5).collect();
            panic!("{kind}: image and extraction differ: {differ:#?}");
        }
    }
}

/// Sorts the records of each extended header: file systems list attributes in their own order.
fn sort_extended_headers(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = tar[at..].first_chunk::<512>() {
        let (flag, octal) = (header[156], header[124..135].to_vec());
        let octal = String::from_utf8(octal).unwrap();
        let size = usize::from_str_radix(&octal, 8).unwrap_or_default();
        at += 512;
        if flag == b'x' {
            let content = &mut tar[at..at + size];
            let mut records = Vec::new();
            let mut rest = &*content;
            while !rest.is_empty() {
                let digits = rest.split(|byte| *byte == b' ').next().unwrap();
                let len: usize = std::str::from_utf8(digits).unwrap().parse().unwrap();
                records.push(rest[..len].to_vec());
                rest = &rest[len..];
            }
            records.sort();
            content.copy_from_slice(&records.concat());
        }
        at += size.next_multiple_of(512);
    }
}

#[test]
fn a_real_tree_is_the_same() {
    if !can_mount() {
        return;
    }
    // Hard links, symlinks, long names and thousands of small files.
    let roots = ["usr/share/zoneinfo", "usr/share/perl", "usr/share/doc", "usr/lib/python3"];
    let present = roots.iter().filter(|root| Path::new("/").join(root).is_dir());
    let tar = Command::new("tar")
        .args(["--create", "--directory=/", "--format=posix", "--xattrs", "--sort=name", "etc"])
        .args(present)
        .output()
        .unwrap();
    assert!(tar.stdout.len() > 1 << 20, "{}", String::from_utf8_lossy(&tar.stderr));
    compare(&with_root(tar.stdout));
}

/// Puts an entry for the root in front, so that GNU tar sets what we would set.
fn with_root(tar: Vec<u8>) -> Vec<u8> {
    let mut whole = Tar::default();
    whole.push(Item { mtime: 77, ..Item::dir("./") });
    for directory in ["usr", "usr/share", "usr/lib"] {
        whole.push(Item { mtime: 78, ..Item::dir(directory) });
    }
    whole.0.extend(tar);
    whole.0
}

/// A directory entry for each of `count` names, and entries below them.
#[derive(Debug, Clone)]
enum Kind {
    File(usize),
    Symlink(Vec<u8>),
    HardLink(prop::sample::Index),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Directory,
}

fn kind() -> impl Strategy<Value = Kind> {
    let sizes = prop::sample::select(vec![0, 1, 511, 4031, 4032, 4033, 4095, 4096, 4097, 8192]);
    prop_oneof![
        4 => sizes.prop_map(Kind::File),
        4 => (0usize..20_000).prop_map(Kind::File),
        2 => prop::collection::vec(1u8..=255, 1..300).prop_map(Kind::Symlink),
        2 => any::<prop::sample::Index>().prop_map(Kind::HardLink),
        1 => (0u32..4096, 1u32..1 << 20).prop_map(|(major, minor)| Kind::Char(major, minor)),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::Block(major, minor)),
        1 => Just(Kind::Fifo),
        3 => Just(Kind::Directory),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = (1u8..=255).prop_filter("no slash", |byte| *byte != b'/');
    let any = prop::collection::vec(byte, 1..60);
    let long = (b'a'..=b'z', 200usize..=255).prop_map(|(letter, len)| vec![letter; len]);
    let names =
        prop_oneof![3 => any, 1 => long, 1 => Just(b"-".to_vec()), 1 => Just(b"..x".to_vec())];
    names
        .prop_filter("reserved", |name| !name.starts_with(b".wh.") && name != b"." && name != b"..")
}

fn xattrs() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let names =
        prop_oneof!["trusted\\.[a-z]{1,9}", "security\\.[a-z]{1,9}x", "user\\.[a-z.]{1,20}",];
    // ext4 keeps at most about one block of them for a file.
    let values = prop::collection::vec(any::<u8>(), 0..200);
    prop::collection::btree_map(names, values, 0..4).prop_map(|map| map.into_iter().collect())
}

#[derive(Debug, Clone)]
struct Made {
    parent: prop::sample::Index,
    name: Vec<u8>,
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    time: (i64, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

fn made() -> impl Strategy<Value = Made> {
    let owner = (any::<u16>(), 0..u32::MAX).prop_map(|(uid, gid)| (uid.into(), gid));
    // What ext4 can hold: 1901 to 2446.
    let time = (-2_000_000_000i64..15_000_000_000, 0..1_000_000_000u32);
    (any::<prop::sample::Index>(), name(), kind(), 0..0o10000u32, owner, time, xattrs()).prop_map(
        |(parent, name, kind, mode, owner, time, xattrs)| Made {
            parent,
            name,
            kind,
            mode,
            owner,
            time,
            xattrs,
        },
    )
}

/// A layer that GNU tar and containerd extract alike: parents first, every name once.
fn layer(entries: Vec<Made>) -> Vec<Item> {
    let mut items = vec![Item { mtime: 5, ..Item::dir("./") }];
    let mut directories = vec![b"./".to_vec()];
    let mut links: Vec<Vec<u8>> = Vec::new();
    let mut taken = std::collections::BTreeSet::new();
    for made in entries {
        let path = [&made.parent.get(&directories)[..], &made.name].concat();
        if path.len() > 1000 || !taken.insert(path.clone()) {
            continue;
        }
        let (flag, linkable) = match &made.kind {
            Kind::File(_) => (b'0', true),
            Kind::Symlink(_) => (b'2', true),
            Kind::HardLink(_) => (b'1', false),
            Kind::Char(..) => (b'3', true),
            Kind::Block(..) => (b'4', true),
            Kind::Fifo => (b'6', true),
            Kind::Directory => (b'5', false),
        };
        let mut item = Item::new(flag, &path);
        match made.kind {
            Kind::File(size) => {
                let byte = |n: usize| u8::try_from((n * 7 + size + n / 509) % 256).unwrap();
                item.content = (0..size).map(byte).collect();
            }
            Kind::Symlink(target) => item.link = target,
            Kind::HardLink(_) if links.is_empty() => continue,
            Kind::HardLink(index) => item.link.clone_from(index.get(&links)),
            Kind::Char(major, minor) | Kind::Block(major, minor) => item.device = (major, minor),
            Kind::Fifo => {}
            Kind::Directory => directories.push([&path[..], b"/"].concat()),
        }
        item.mode = made.mode;
        (item.uid, item.gid) = (made.owner.0.into(), made.owner.1.into());
        if flag != b'1' {
            for (name, value) in made.xattrs {
                // Linux gives user attributes to files and directories only.
                if matches!(flag, b'0' | b'5') || !name.starts_with("user.") {
                    item = item.xattr(&name, value);
                }
            }
            item = item.pax("mtime", decimal(made.time));
        }
        if linkable {
            links.push(path);
        }
        items.push(item);
    }
    items
}

/// A time as PAX writes it: the fraction counts away from zero.
fn decimal((seconds, nanoseconds): (i64, u32)) -> String {
    match nanoseconds {
        0 => seconds.to_string(),
        n if seconds < 0 => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - n),
        n => format!("{seconds}.{n:09}"),
    }
}

#[test]
fn generated_layers_are_the_same() {
    if !can_mount() {
        return;
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 24,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let layers = prop::collection::vec(made(), 0..80);
    let outcome = runner.run(&layers, |entries| {
        compare(&Tar::of(layer(entries)));
        Ok(())
    });
    outcome.unwrap();
}

/// Mounts $1, and writes attributes and contents to files in $2.
const SHOW_LONG: &str = r#"
    mkdir "$2/mount"
    mount -t erofs -o loop,ro "$1" "$2/mount"
    cd "$2/mount"
    for name in file dir; do
        getfattr --only-values -n user.first $name > "$2/$name.first"
        getfattr --only-values -n user.long $name > "$2/$name.long"
        getfattr --only-values -n user.tail $name > "$2/$name.tail"
    done
    cat file > "$2/content"
    ls dir > "$2/names"
"#;

#[test]
fn attributes_longer_than_a_block_are_read_back() {
    if !can_mount() || !has("getfattr") {
        return;
    }
    // More than ext4 holds, so nothing extracts this.
    let long: Vec<u8> =
        (0..65_535u32).map(|n| u8::try_from((n * 7 + n / 253) % 256).unwrap()).collect();
    let with = |item: Item| {
        item.xattr("user.first", "1").xattr("user.long", &long).xattr("user.tail", "2")
    };
    let content = vec![b'c'; 9000];
    let tar = Tar::of([
        Item::file("before", "1"),
        with(Item::file("file", &content)),
        Item::file("between", "2"),
        with(Item::dir("dir")),
        Item::file("dir/name", ""),
    ]);
    let (packed, mut image) = pack_tar(&tar).unwrap();
    let image = with_path(&mut image);
    accept(&packed, image.path());
    let directory = TempDir::new().unwrap();
    shell(SHOW_LONG, &[image.path(), directory.path()]);
    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    for name in ["file", "dir"] {
        assert_eq!(read(&format!("{name}.first")), b"1");
        assert!(read(&format!("{name}.long")) == long, "{name}");
        assert_eq!(read(&format!("{name}.tail")), b"2");
    }
    assert!(read("content") == content);
    assert_eq!(read("names"), b"name\n");
}

/// Mounts the images $1 (lower) and $2 (upper) and an overlay of them, and lists that.
const SHOW_OVERLAY: &str = r#"
    mkdir "$3/lower" "$3/upper" "$3/merged"
    mount -t erofs -o loop,ro "$1" "$3/lower"
    mount -t erofs -o loop,ro "$2" "$3/upper"
    mount -t overlay -o "ro,lowerdir=$3/upper:$3/lower" overlay "$3/merged"
    cd "$3/merged" && find . -mindepth 1 -printf '%P %y %m ' \( -type f -exec cat {} \; \
        -o -true \) -printf '\n' | sort > "$3/list"
"#;

/// What overlayfs makes of two layers.
fn overlaid(lower: Vec<Item>, upper: Vec<Item>) -> Vec<String> {
    let images = [lower, upper].map(|items| with_path(&mut pack_tar(&Tar::of(items)).unwrap().1));
    let directory = TempDir::new().unwrap();
    shell(SHOW_OVERLAY, &[images[0].path(), images[1].path(), directory.path()]);
    let list = std::fs::read_to_string(directory.path().join("list")).unwrap();
    list.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn overlayfs_understands_whiteouts_and_opaque_directories() {
    if !can_mount() {
        return;
    }
    let lower = vec![
        Item::file("file", "lower"),
        Item::file("kept", "lower"),
        Item::file("dir/a", "lower"),
        Item::file("dir/b", "lower"),
        Item::file("opaque/old", "lower"),
        Item::file("replaced/old", "lower"),
        Item::file("gone/deep/old", "lower"),
    ];
    let upper = vec![
        Item::file(".wh.file", ""),
        Item::file("dir/.wh.a", ""),
        Item::file("dir/c", "upper"),
        Item::file("opaque/new", "upper"),
        Item::file("opaque/.wh..wh..opq", ""),
        Item::file(".wh.replaced", ""),
        Item { mode: 0o700, ..Item::dir("replaced") },
        Item::file("replaced/new", "upper"),
        Item::file(".wh.gone", ""),
        Item::file(".wh.never", ""),
    ];
    assert_eq!(
        overlaid(lower, upper),
        [
            "dir d 755",
            "dir/b f 644 lower",
            "dir/c f 644 upper",
            "kept f 644 lower",
            "opaque d 755",
            "opaque/new f 644 upper",
            "replaced d 700",
            "replaced/new f 644 upper",
        ]
    );
}

#[test]
fn overlayfs_sees_no_attributes_from_a_tar() {
    if !can_mount() {
        return;
    }
    let lower = vec![Item::file("secret", "lower"), Item::file("dir/old", "lower")];
    let upper = vec![
        Item::file("graft", "upper")
            .xattr("trusted.overlay.metacopy", "")
            .xattr("trusted.overlay.redirect", "/secret"),
        Item::dir("dir").xattr("trusted.overlay.opaque", "y"),
        Item::dir("other").xattr("trusted.overlay.redirect", "/dir"),
        Item::file("white", "upper").xattr("trusted.overlay.whiteout", ""),
    ];
    assert_eq!(
        overlaid(lower, upper),
        [
            "dir d 755",
            "dir/old f 644 lower",
            "graft f 644 upper",
            "other d 755",
            "secret f 644 lower",
            "white f 644 upper",
        ]
    );
}
