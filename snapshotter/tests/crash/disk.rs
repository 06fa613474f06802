//! A disk that is full, read-only or returns something else than was written: a clear error, and no loss.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::Counts;
use crate::node::{CHAIN, Layer, Node, below, names};
use crate::operation::Operation;

/// The small disk: the image fits, and another layer.
const OPTIONS: &str = "size=16m,mode=700";
/// Places in the database where a byte is flipped.
const FLIPS: usize = 64;

/// The table.
pub(crate) fn all(counts: &mut Counts) {
    counts.add("a full disk is told, and forgotten when there is room", full);
    counts.add("a read-only disk is told, and forgotten when it is writable", read_only);
    counts.add("a database that is none is not touched", not_a_database);
    counts.add("a database that is missing beside snapshots is not made anew", missing);
    counts.add("a database with a flipped byte is refused, or is as it was", flipped);
    counts.add("a layer image that was cut short is packed again", cut_short);
}

/// A node whose root is a small disk of its own.
struct Small {
    node: Node,
    root: PathBuf,
    _directory: tempfile::TempDir,
}

impl Small {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let options = CString::new(OPTIONS).unwrap();
        mount("tmpfs", &root, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        let mut node = Node::new(directory.path());
        node.start();
        node.unpack_chain();
        Self { node, root, _directory: directory }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        self.node.kill();
        unmount(&self.root, UnmountFlags::DETACH).ok();
    }
}

fn full() {
    let small = Small::new();
    let (node, extra) = (&small.node, Layer::new(CHAIN));
    node.run(node.client().prepare(extra.key(), below(&extra))).unwrap();
    let rest = small.root.join("rest");
    let mut file = std::fs::File::create(&rest).unwrap();
    let filled = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    drop(file);
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    let apply = || node.run(Operation::Apply.call(node.client()));
    let refused = apply().unwrap_err();
    assert!(refused.message().contains("No space left"), "{refused}");
    assert_eq!(names(&small.root.join("layers")).len(), CHAIN, "nothing half done stays");
    // what is there is served all the same
    node.run(node.client().stat(extra.key())).unwrap();
    std::fs::remove_file(&rest).unwrap();
    apply().unwrap();
    node.run(node.client().remove(extra.key())).unwrap();
    node.expect_rest(CHAIN);
}

/// A disk that turns read-only under way answers EROFS to each call: that is among the failing file calls.
fn read_only() {
    let mut small = Small::new();
    small.node.kill();
    mount_remount(&small.root, MountFlags::RDONLY, "").unwrap();
    let words = small.node.start_refused();
    assert!(words.contains("Read-only") && words.contains("/root"), "{words}");
    mount_remount(&small.root, MountFlags::empty(), "").unwrap();
    small.node.start();
    small.node.expect_rest(CHAIN);
}

/// A stopped node with the image and a container's snapshot, and its database.
fn stopped() -> (tempfile::TempDir, Node, PathBuf) {
    let (directory, mut node) = crate::at_rest();
    Operation::Remove.arrange(&mut node);
    node.kill();
    let database = node.root().join("hallmark.redb");
    (directory, node, database)
}

/// Everything in the root but the database itself.
fn kept(root: &Path) -> Vec<(String, Vec<String>)> {
    let inside = |name: &str| (name.to_owned(), names(&root.join(name)));
    ["layers", "snapshots"].map(inside).to_vec()
}

/// A start with this database is refused with its name, and nothing is removed.
fn expect_refusal(node: &mut Node, bytes: Option<&[u8]>) {
    let database = node.root().join("hallmark.redb");
    let before = kept(&node.root());
    match bytes {
        Some(bytes) => std::fs::write(&database, bytes).unwrap(),
        None => std::fs::remove_file(&database).unwrap(),
    }
    let words = node.start_refused();
    assert!(words.contains("hallmark.redb") && !words.contains("panicked"), "{words}");
    assert_eq!(kept(&node.root()), before);
}

fn not_a_database() {
    let (_directory, mut node, database) = stopped();
    let good = std::fs::read(&database).unwrap();
    expect_refusal(&mut node, Some(b"something else"));
    expect_refusal(&mut node, Some(&good[..good.len() / 3]));
    std::fs::write(&database, good).unwrap();
    node.start();
    Operation::Remove.judge(&node, false);
    node.expect_rest(CHAIN);
}

fn missing() {
    let (_directory, mut node, database) = stopped();
    let good = std::fs::read(&database).unwrap();
    expect_refusal(&mut node, Some(b""));
    expect_refusal(&mut node, None);
    std::fs::write(&database, good).unwrap();
    node.start();
    Operation::Remove.judge(&node, false);
    node.expect_rest(CHAIN);
}

/// After an orderly end. After a crash redb goes back to the transaction before the last when the last is not whole,
/// which a flipped byte in it looks like.
fn flipped() {
    let (_directory, mut node, database) = stopped();
    node.start();
    node.stop();
    let good = std::fs::read(&database).unwrap();
    let (before, mut refused) = (kept(&node.root()), 0);
    for place in (0..FLIPS).map(|number| number * good.len() / FLIPS + number % 97) {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        std::fs::write(&database, &bad).unwrap();
        std::fs::write(node.directory.join("log"), "").unwrap();
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| node.start())) {
            Ok(_) => {
                let found = node.run(node.client().names()).unwrap();
                assert_eq!(found.len(), CHAIN + 1, "byte {place} flipped");
            }
            Err(_) => {
                let words = node.last_words();
                assert!(words.contains("hallmark.redb") && !words.contains("panicked"), "{words}");
                refused += 1;
            }
        }
        node.kill();
        assert_eq!(kept(&node.root()), before, "byte {place} flipped");
    }
    println!("      of {FLIPS} flipped bytes of the database {refused} were refused");
    std::fs::write(&database, good).unwrap();
    node.start();
    Operation::Remove.judge(&node, false);
    node.expect_rest(CHAIN);
}

fn cut_short() {
    let (_directory, mut node) = crate::at_rest();
    Operation::RemoveLayer.arrange(&mut node);
    node.kill();
    let layers = node.root().join("layers");
    for name in names(&layers) {
        std::fs::File::options().write(true).open(layers.join(name)).unwrap().set_len(0).unwrap();
    }
    node.start();
    // the same image pulled into another namespace brings the bytes again
    for layer in (0..=CHAIN).map(Layer::new) {
        let key = format!("other/2/extract-1-x sha256:{}", layer.number);
        let mounts = node.run(node.client().prepare(key.clone(), String::new())).unwrap();
        node.run(node.client().apply(layer, mounts)).unwrap();
        node.run(node.client().remove(key)).unwrap();
    }
    Operation::RemoveLayer.judge(&node, false);
    node.expect_rest(CHAIN);
}
