//! What each entry of a tar becomes: the table in `layer.rs`, row by row.

use crate::tarball::{Item, Tar, record, show};

/// Asserts what an image shows, the root's line left out unless asked for.
fn becomes(items: impl IntoIterator<Item = Item>, expected: &[&str]) {
    let tar = Tar::of(items);
    let mut found = show(&tar).unwrap();
    if !expected.first().is_some_and(|line| line.starts_with("/ ")) {
        found.remove(0);
    }
    assert_eq!(found, expected);
}

#[test]
fn nothing_is_an_empty_root() {
    becomes([], &["/ dir 755 0:0 0.0 n2"]);
    assert_eq!(show(&[]).unwrap(), ["/ dir 755 0:0 0.0 n2"]);
}

#[test]
fn every_type_with_every_field() {
    let own = |item: Item| Item { mode: 0o6754, uid: 70_000, gid: 3_000_000_000, mtime: 1, ..item };
    becomes(
        [
            own(Item::dir("./")).pax("mtime", "5.25"),
            own(Item::file("f", "content")),
            own(Item::dir("d/")),
            own(Item::symlink("l", "any/../where")),
            own(Item::device(b'3', "c", 4095, 1_048_575)),
            own(Item::device(b'4', "b", 0, 0)),
            own(Item::new(b'6', "p")),
            own(Item::hard_link("h", "f")),
        ],
        &[
            "/ dir 6754 70000:3000000000 5.250000000 n3",
            "/b block 0:0 6754 70000:3000000000 1.0 n1",
            "/c char 4095:1048575 6754 70000:3000000000 1.0 n1",
            "/d dir 6754 70000:3000000000 1.0 n2",
            "/f file \"content\" 6754 70000:3000000000 1.0 n2",
            "/h file \"content\" 6754 70000:3000000000 1.0 n2",
            "/l -> any/../where 777 70000:3000000000 1.0 n1",
            "/p fifo 6754 70000:3000000000 1.0 n1",
        ],
    );
}

#[test]
fn names_are_cleaned_and_stay_inside() {
    for name in ["a", "/a", "//a", "./a", "a/", "b/../a", "../a", "/../../a", "./x/.././a/."] {
        becomes([Item::file(name, "1")], &["/a file \"1\" 644 0:0 0.0 n1"]);
    }
}

#[test]
fn names_are_bytes() {
    let long = "n".repeat(255);
    becomes(
        [
            Item::file(b"\xff\xfe", ""),
            Item::file("a\nb:c\\d e", ""),
            Item::file("-", ""),
            Item::file("...", ""),
            Item::file(&long, ""),
        ],
        &[
            "/- file \"\" 644 0:0 0.0 n1",
            "/... file \"\" 644 0:0 0.0 n1",
            "/a\\nb:c\\\\d e file \"\" 644 0:0 0.0 n1",
            &format!("/{long} file \"\" 644 0:0 0.0 n1"),
            "/\\xff\\xfe file \"\" 644 0:0 0.0 n1",
        ],
    );
}

#[test]
fn long_names_in_all_three_ways() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let mut gnu = Tar::default();
    let magic = *b"ustar  \0";
    let content = format!("{long}\0").into_bytes();
    gnu.raw(&Item { magic, content, ..Item::new(b'L', "././@LongLink") });
    gnu.raw(&Item { magic, ..Item::file(&long[..100], "1") });
    let target = "t".repeat(300);
    gnu.raw(&Item {
        magic,
        content: format!("{target}\0").into_bytes(),
        ..Item::new(b'K', "././@LongLink")
    });
    gnu.raw(&Item { magic, ..Item::symlink("l", &target[..100]) });
    let pax = Tar::of([Item::file(&long, "1"), Item::symlink("l", &target)]);
    assert_eq!(show(&gnu.end()).unwrap(), show(&pax).unwrap());

    let mut prefixed = [0; 512];
    let (prefix, name) = long.split_at(120);
    prefixed[..name.len() - 50].copy_from_slice(&name.as_bytes()[1..=name.len() - 50]);
    prefixed[100..107].copy_from_slice(b"0000644");
    prefixed[156] = b'0';
    prefixed[257..265].copy_from_slice(b"ustar\x0000");
    prefixed[345..465].copy_from_slice(prefix.as_bytes());
    let mut tar = Tar::default();
    tar.header(prefixed);
    let expected = format!("/{}/{} file \"\" 644 0:0 0.0 n1", "d".repeat(120), "f".repeat(71));
    assert_eq!(show(&tar.end()).unwrap()[2], expected);
}

#[test]
fn times_and_owners_from_everywhere() {
    let mut tar = Tar::default();
    let global = [record(b"uid", b"7"), record(b"mtime", b"-1.5"), record(b"comment", b"x")];
    tar.raw(&Item { content: global.concat(), ..Item::new(b'g', "pax_global_header") });
    tar.push(Item { mtime: -86400, ..Item::file("a", "") });
    tar.push(Item { uid: 9, ..Item::file("b", "") }.pax("uid", "8").pax("mtime", "2.000000001"));
    tar.push(Item::file("c", "").pax("uid", "").pax("gid", "4294967295"));
    assert_eq!(
        show(&tar.end()).unwrap()[1..],
        [
            "/a file \"\" 644 7:0 -2.500000000 n1",
            "/b file \"\" 644 8:0 2.1 n1",
            "/c file \"\" 644 7:4294967295 -2.500000000 n1",
        ]
    );
    becomes([Item { mtime: -1, ..Item::file("a", "") }], &["/a file \"\" 644 0:0 -1.0 n1"]);
}

#[test]
fn parents_without_entry() {
    becomes(
        [Item { uid: 5, mtime: 9, ..Item::file("a/b/c", "1") }, Item::dir("z/y")],
        &[
            "/a dir 755 0:0 0.0 n3",
            "/a/b dir 755 0:0 0.0 n2",
            "/a/b/c file \"1\" 644 5:0 9.0 n1",
            "/z dir 755 0:0 0.0 n3",
            "/z/y dir 755 0:0 0.0 n2",
        ],
    );
    // an entry that comes later describes them
    becomes(
        [Item::file("a/b", "1"), Item { mode: 0o700, uid: 3, ..Item::dir("a") }],
        &["/a dir 700 3:0 0.0 n2", "/a/b file \"1\" 644 0:0 0.0 n1"],
    );
}

#[test]
fn symlinks_of_the_layer_are_followed_inside_it() {
    becomes(
        [
            Item::dir("usr/lib"),
            Item::symlink("lib", "usr/lib"),
            Item::symlink("abs", "/lib/../lib"),
            Item::symlink("up", "../../../usr"),
            Item::file("lib/a", "a"),
            Item::file("abs/b", "b"),
            Item::file("up/lib/c", "c"),
            Item::hard_link("lib/d", "lib/a"),
            Item::hard_link("e", "lib"),
            Item::file("lib/new/f", "f"),
        ],
        &[
            "/abs -> /lib/../lib 777 0:0 0.0 n1",
            "/e -> usr/lib 777 0:0 0.0 n2",
            "/lib -> usr/lib 777 0:0 0.0 n2",
            "/up -> ../../../usr 777 0:0 0.0 n1",
            "/usr dir 755 0:0 0.0 n3",
            "/usr/lib dir 755 0:0 0.0 n3",
            "/usr/lib/a file \"a\" 644 0:0 0.0 n2",
            "/usr/lib/b file \"b\" 644 0:0 0.0 n1",
            "/usr/lib/c file \"c\" 644 0:0 0.0 n1",
            "/usr/lib/d file \"a\" 644 0:0 0.0 n2",
            "/usr/lib/new dir 755 0:0 0.0 n2",
            "/usr/lib/new/f file \"f\" 644 0:0 0.0 n1",
        ],
    );
    // a symlink to nowhere: the directories are made where it leads
    becomes(
        [Item::symlink("s", "x/y"), Item::file("s/f", "1")],
        &[
            "/s -> x/y 777 0:0 0.0 n1",
            "/x dir 755 0:0 0.0 n3",
            "/x/y dir 755 0:0 0.0 n2",
            "/x/y/f file \"1\" 644 0:0 0.0 n1",
        ],
    );
    // cleaned as text first, so the symlink does not count
    becomes(
        [Item::symlink("s", "x/y"), Item::file("s/../f", "1")],
        &["/f file \"1\" 644 0:0 0.0 n1", "/s -> x/y 777 0:0 0.0 n1"],
    );
}

#[test]
fn the_last_entry_of_a_name_wins() {
    becomes(
        [Item::file("a", "old"), Item { uid: 1, ..Item::file("a", "new") }],
        &["/a file \"new\" 644 1:0 0.0 n1"],
    );
    becomes(
        [Item::file("d/x", ""), Item::dir("d/y"), Item::symlink("d", "nowhere")],
        &["/d -> nowhere 777 0:0 0.0 n1"],
    );
    becomes(
        [Item::symlink("d", "x"), Item::dir("d"), Item::file("d/y", "")],
        &["/d dir 755 0:0 0.0 n2", "/d/y file \"\" 644 0:0 0.0 n1"],
    );
    becomes(
        [
            Item::dir("d").xattr("user.a", "1").xattr("user.b", "1"),
            Item::file("d/x", ""),
            Item { mode: 0o1777, ..Item::dir("d") }.xattr("user.b", "2"),
        ],
        &["/d dir 1777 0:0 0.0 n2 user.a=1 user.b=2", "/d/x file \"\" 644 0:0 0.0 n1"],
    );
}

#[test]
fn hard_links_count_names() {
    becomes(
        [
            Item::file("a", "1"),
            Item { uid: 9, mode: 0o777, ..Item::hard_link("b", "./a") }.xattr("user.x", "1"),
            Item::hard_link("c", "/b"),
            Item::hard_link("d", "a"),
            Item::file("a", "2"),
            Item::file("d", "3"),
        ],
        &[
            "/a file \"2\" 644 0:0 0.0 n1",
            "/b file \"1\" 644 0:0 0.0 n2",
            "/c file \"1\" 644 0:0 0.0 n2",
            "/d file \"3\" 644 0:0 0.0 n1",
        ],
    );
    // the last name but one goes with its directory
    becomes(
        [
            Item::file("a", "1"),
            Item::hard_link("x/y/b", "a"),
            Item::file("x", "2"),
            Item::device(b'3', "c", 1, 3),
            Item::hard_link("k", "c"),
        ],
        &[
            "/a file \"1\" 644 0:0 0.0 n1",
            "/c char 1:3 644 0:0 0.0 n2",
            "/k char 1:3 644 0:0 0.0 n2",
            "/x file \"2\" 644 0:0 0.0 n1",
        ],
    );
}

#[test]
fn whiteouts_and_opaque_directories() {
    becomes(
        [
            Item { uid: 4, mtime: 4, ..Item::file(".wh.gone", "") },
            Item::file("d/.wh..wh..opq", ""),
            Item::file("d/.wh.x", ""),
            Item::dir(".wh.dir"),
        ],
        &[
            "/d opaque dir 755 0:0 0.0 n2",
            "/d/x whiteout 0 0:0 0.0 n3",
            "/dir whiteout 0 0:0 0.0 n3",
            "/gone whiteout 0 0:0 0.0 n3",
        ],
    );
    becomes([Item::file(".wh..wh..opq", "")], &["/ opaque dir 755 0:0 0.0 n2"]);
}

#[test]
fn a_whiteout_of_a_name_in_the_same_layer() {
    let (wh, file, dir) = (Item::file(".wh.a", ""), Item::file("a", "1"), Item::dir("a"));
    let below = Item::file("a/b", "");
    let kept_file = ["/a file \"1\" 644 0:0 0.0 n1"];
    let kept_dir = ["/a opaque dir 755 0:0 0.0 n2"];
    becomes([wh.clone(), file.clone()], &kept_file);
    becomes([file.clone(), wh.clone()], &kept_file);
    becomes([wh.clone(), dir.clone()], &kept_dir);
    becomes([dir.clone(), wh.clone()], &kept_dir);
    becomes([wh.clone(), below], &[kept_dir[0], "/a/b file \"\" 644 0:0 0.0 n1"]);
    // in any order, through any number of changes
    becomes([file.clone(), wh.clone(), dir.clone()], &kept_dir);
    becomes([wh.clone(), file, dir.clone()], &kept_dir);
    becomes([dir.clone(), wh.clone(), Item::file("a", ""), dir], &kept_dir);
    becomes([wh.clone(), wh], &["/a whiteout 0 0:0 0.0 n1"]);
}

#[test]
fn attributes() {
    let cap = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    becomes(
        [
            Item::file("f", "")
                .xattr("security.capability", cap)
                .xattr("user.empty", "")
                .xattr("trusted.overlay.opaque", "y")
                .xattr("trusted.overlay.redirect", "/etc")
                .xattr("user.overlay.metacopy", "")
                .xattr("com.apple.thing", "x")
                .pax("LIBARCHIVE.xattr.user.other", "eA=="),
            Item::dir("d").xattr("trusted.overlay.opaque", "y").xattr("user.k", "v"),
            Item::symlink("l", "f").xattr("user.k", "v").xattr("security.selinux", "u:r:t"),
        ],
        &[
            "/d dir 755 0:0 0.0 n2 user.k=v",
            "/f file \"\" 644 0:0 0.0 n1 security.capability=\
             \\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00 \
             user.empty=",
            "/l -> f 777 0:0 0.0 n1 security.selinux=u:r:t",
        ],
    );
    let tar = Tar::of([Item::file("f", "").xattr("trusted.overlay.opaque", "y").xattr("x", "y")]);
    let (packed, _) = crate::tarball::pack_tar(&tar).unwrap();
    assert_eq!(packed.dropped_xattrs(), 2);
}

#[test]
fn attributes_longer_than_a_block() {
    let value = "v".repeat(50_000);
    becomes(
        [
            Item::file("before", "1"),
            Item::file("f", "x".repeat(5000)).xattr("user.a", &value).xattr("user.b", "1"),
            Item::dir("d").xattr("user.a", &value),
            Item::file("d/in", ""),
            Item::file("after", "2"),
        ],
        &[
            "/after file \"2\" 644 0:0 0.0 n1",
            "/before file \"1\" 644 0:0 0.0 n1",
            &format!("/d dir 755 0:0 0.0 n2 user.a={value}"),
            "/d/in file \"\" 644 0:0 0.0 n1",
            &format!("/f file of 5000, sum {} 644 0:0 0.0 n1 user.a={value} user.b=1", 5000 * 120),
        ],
    );
}

#[test]
fn content_of_every_size_around_a_block() {
    let sizes = [0, 1, 511, 512, 513, 2000, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 9000];
    let items: Vec<Item> = sizes
        .iter()
        .map(|size| {
            Item::file(format!("{size:05}"), vec![b'0' + u8::try_from(size % 9).unwrap(); *size])
        })
        .collect();
    let lines = show(&Tar::of(items.clone())).unwrap();
    assert_eq!(lines.len(), sizes.len() + 1);
    for (size, line) in sizes.iter().zip(&lines[1..]).filter(|(size, _)| **size > 40) {
        let sum = size * (48 + size % 9);
        assert_eq!(*line, format!("/{size:05} file of {size}, sum {sum} 644 0:0 0.0 n1"));
    }
}

#[test]
fn the_size_in_the_extended_header_counts() {
    // CVE-2025-62518: a header that says 0 before a PAX size must not make the content headers.
    let inner = Tar::of([Item::file("smuggled", "")]);
    let mut tar = Tar::default();
    let size = inner.len().to_string();
    tar.raw(&Item { content: record(b"size", size.as_bytes()), ..Item::new(b'x', "x") });
    tar.raw(&Item { size: Some(0), ..Item::file("outer", &inner) });
    tar.push(Item::file("next", "1"));
    let lines = show(&tar.end()).unwrap();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].starts_with("/next ") && lines[2].starts_with("/outer file of 1536"));
}

#[test]
fn many_names_in_one_directory() {
    let items = (0..3000).map(|n| Item::file(format!("d/{n:04}-{}", "x".repeat(n % 200)), "1"));
    let lines = show(&Tar::of(items)).unwrap();
    assert_eq!(lines.len(), 3002);
    assert!(lines[2].starts_with("/d/0000- file"), "{}", lines[2]);
}

#[test]
fn old_formats_and_the_ends_of_archives() {
    let v7 = Item { magic: [0; 8], ..Item::new(0, "dir/") };
    let mut tar = Tar::default();
    tar.raw(&Item { mode: 0o750, ..v7 });
    tar.raw(&Item { magic: [0; 8], ..Item { flag: 0, ..Item::file("dir/f", "1") } });
    let expected = ["/dir dir 750 0:0 0.0 n2", "/dir/f file \"1\" 644 0:0 0.0 n1"];
    assert_eq!(show(&tar.0).unwrap()[1..], expected, "no end of archive");
    assert_eq!(show(&[&tar.0[..], &[0; 512]].concat()).unwrap()[1..], expected, "one zero block");
    let after = [tar.clone().end(), Tar::of([Item::file("after", "")])].concat();
    assert_eq!(show(&after).unwrap()[1..], expected, "entries after the end");
}
