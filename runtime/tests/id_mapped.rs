//! The root file system of a container with a user namespace of its own.
//!
//! Without the test harness: making a user namespace needs a process of one thread.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that has no harness to tell clippy so"
)]

#[path = "../src/gate/world.rs"]
#[allow(dead_code, reason = "the gate's own tests use the rest")]
mod world;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use hallmark_runtime::gate::{
    Access, HookRequest, Launch, MountKind, MountNamespace, MountRequest, Outcome, Processes,
    Request, Runs, launch,
};
use hallmark_runtime::{ErrorKind, Result};
use hallmark_sys::process::{Namespaces, unshare};
use world::{World, sh};

fn main() {
    if !world::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let shown = dir.path().display();
    unshare(Namespaces::NEWNS).unwrap();
    sh(&format!("mount --make-rprivate / && mount -t tmpfs tmpfs {shown}"));
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();

    let mut world = World::new(dir.path()).fresh();
    let layers = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    world.options.push_str("\"uidmap=0:100000:65536\",\"gidmap=0:200000:65536\",");
    chown(world.upper(), Some(100_000), Some(200_000)).unwrap();
    let launched = world.launch().unwrap();
    assert_eq!(launched.verdict.outcome, Outcome::Permitted);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    assert_eq!((mounts - layers, layers - before), (0, 2), "a mount was left behind");

    // the host sees the mapped owners; nothing was copied up for it
    let root = world.attach(&launched);
    let conf = root.join("etc/conf");
    assert_eq!(fs::read_to_string(&conf).unwrap(), "conf");
    let owner = fs::metadata(&conf).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));
    assert!(fs::metadata(world.upper().join("etc")).is_err());
    // a copy keeps the owner that the container sees
    fs::write(&conf, "changed").unwrap();
    let copy = fs::metadata(world.upper().join("etc/conf")).unwrap();
    assert_eq!((copy.uid(), copy.gid()), (100_000, 200_000));
    // as root of such a user namespace sees it
    sh(&format!(
        "unshare -U --map-users=0:100000:65536 --map-groups=0:200000:65536 true 2>/dev/null || exit 0; \
         [ \"$(unshare -U --map-users=0:100000:65536 --map-groups=0:200000:65536 stat -c %u:%g {})\" = 0:0 ]",
        conf.display()
    ));

    // a view of one layer through maps has nothing beside it
    let (lower, sealed) = world::layer(dir.path(), "c", "mkdir bin && touch bin/app");
    world::claim(dir.path(), &[sealed]);
    let view = World { lowers: vec![lower], args: vec!["/bin/app".to_owned()], ..world.clone() };
    let view = World {
        options: "\"uidmap=0:100000:65536\",\"gidmap=0:200000:65536\",".to_owned(),
        ..view
    };
    let root = view.attach(&view.launch().unwrap());
    assert_eq!(fs::metadata(root.join("bin/app")).unwrap().uid(), 100_000);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    assert!(fs::write(root.join("x"), "").is_err());

    // an unsealed stack is refused with maps as without
    world.lowers.reverse();
    assert!(world.refused().contains("no seal for this stack"));
    sh(&format!("umount -l {shown}"));
    println!("test id_mapped ... ok");
}
