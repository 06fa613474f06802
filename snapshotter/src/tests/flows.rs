//! What containerd does, in the order in which it does it (traced), and what must be left afterwards: nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use hallmark_seal::referrer::Bundle;
use hallmark_verity::{DiffId, LayerDigest};

use super::{Node, claim};
use crate::error::{Error, ErrorKind};
use crate::proto::types::{Descriptor, Mount};
use crate::snapshotter::Snapshotter;
use crate::store::{Kind, Labels};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer tar with one file, and its descriptor; the blob is put into the content store.
pub(super) fn layer(node: &Node, name: &str) -> Descriptor {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(name), name).unwrap();
    // the same bytes each time it is asked for
    let time = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    for path in [directory.path().join(name), directory.path().to_owned()] {
        std::fs::File::open(path).unwrap().set_times(time).unwrap();
    }
    let mut tar = Vec::new();
    crate::directory::write_tar(directory.path(), &mut tar).unwrap();
    let digest = LayerDigest::of(&tar).to_string();
    node.content.put(&digest, &tar);
    let size = i64::try_from(tar.len()).unwrap();
    Descriptor { media_type: TAR.to_owned(), digest, size, annotations: [].into() }
}

fn name(layers: &[&Descriptor]) -> String {
    let digests: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    format!("default/1/{}", DiffId::of(digests.join(" ").as_bytes()))
}

/// Prepare, Apply and Commit of each layer. Returns the top's name.
pub(super) fn unpack(snapshotter: &Snapshotter, layers: &[&Descriptor]) -> String {
    let mut parent: Option<String> = None;
    for count in 1..=layers.len() {
        let name = name(&layers[..count]);
        let key = format!("default/2/extract-1-{count} {name}");
        let mounts =
            snapshotter.create(&key, Kind::Active, parent.as_deref(), Labels::new()).unwrap();
        // read-only would make containerd skip the layer
        assert_eq!(mounts[0].options, ["rw", "rbind"]);
        let applied = snapshotter.apply("default", layers[count - 1], &mounts).unwrap();
        assert_eq!(applied.digest, layers[count - 1].digest, "a plain tar is its own diffID");
        snapshotter.commit(&key, &name, Labels::new(), None).unwrap();
        parent = Some(name);
    }
    parent.unwrap()
}

/// Mounts a reply as a client would, by mount(8), and looks.
fn with_mounted<T>(mounts: &[Mount], look: impl FnOnce(&Path) -> T) -> T {
    let [mount] = mounts else { panic!("{mounts:?}") };
    let point = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("mount");
    if mount.r#type == "bind" {
        command.args(["--bind", &mount.source]);
    } else {
        command.args(["-t", &mount.r#type, &mount.source, "-o", &mount.options.join(",")]);
    }
    assert!(command.arg(point.path()).status().unwrap().success(), "{mount:?}");
    let seen = look(point.path());
    rustix::mount::unmount(point.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    seen
}

fn names(directory: &Path) -> Vec<String> {
    let mut names = crate::layout::names_in(directory).unwrap();
    names.sort();
    names
}

#[test]
fn a_blob_is_read_from_its_file_only_where_containerd_has_it() {
    let node = Node::new();
    let snapshotter = node.start();
    std::fs::create_dir(node.blobs()).unwrap();
    let file = |digest: &str| node.blobs().join(digest.strip_prefix("sha256:").unwrap());
    let apply = |layer: &Descriptor| {
        let key = format!("default/2/extract-{} sha256:x", layer.digest);
        let mounts = snapshotter.create(&key, Kind::Active, None, Labels::new()).unwrap();
        snapshotter.apply("default", layer, &mounts)
    };
    let spoilt = |bytes: &[u8]| [&bytes[..bytes.len() - 1], &[1]].concat();
    // what containerd would send is damaged: only the file has the layer
    let beside = layer(&node, "beside");
    let bytes = node.content.get(&beside.digest);
    std::fs::write(file(&beside.digest), &bytes).unwrap();
    node.content.put(&beside.digest, &spoilt(&bytes));
    assert_eq!(apply(&beside).unwrap().digest, beside.digest);
    // half written, or a link: not the blob's file, so containerd is asked
    let short = layer(&node, "short");
    std::fs::write(file(&short.digest), b"short").unwrap();
    apply(&short).unwrap();
    let linked = layer(&node, "linked");
    let elsewhere = spoilt(&node.content.get(&linked.digest));
    std::fs::write(node.blobs().join("elsewhere"), elsewhere).unwrap();
    std::os::unix::fs::symlink("elsewhere", file(&linked.digest)).unwrap();
    apply(&linked).unwrap();
    // the right size and other bytes: found by the digest, as anywhere
    let changed = layer(&node, "changed");
    std::fs::write(file(&changed.digest), spoilt(&node.content.get(&changed.digest))).unwrap();
    apply(&changed).unwrap_err();
    // a namespace without the blob does not get it from the directory
    let absent = Descriptor { digest: LayerDigest::of(b"absent").to_string(), ..beside };
    std::fs::write(file(&absent.digest), b"absent").unwrap();
    apply(&absent).unwrap_err();
}

#[test]
fn an_image_is_unpacked_run_and_removed() {
    let node = Node::new();
    let snapshotter = node.start();
    let (a, b) = (layer(&node, "a"), layer(&node, "b"));
    // a layer twice: overlayfs takes each superblock once
    let layers = [&a, &b, &a];
    let top = unpack(&snapshotter, &layers);
    assert!(node.lowers().is_empty(), "unpacking activates nothing");

    let mounts =
        snapshotter.create("default/9/box", Kind::Active, Some(&top), Labels::new()).unwrap();
    assert_eq!(node.lowers().len(), 2);
    assert_eq!(snapshotter.mounts("default/9/box").unwrap(), mounts);
    with_mounted(&mounts, |root| {
        assert_eq!(names(root), ["a", "b"]);
        std::fs::remove_file(root.join("a")).unwrap();
        std::fs::write(root.join("new"), "new").unwrap();
    });
    let view = snapshotter.create("default/9/view", Kind::View, Some(&top), Labels::new()).unwrap();
    with_mounted(&view, |root| {
        assert_eq!(names(root), ["a", "b"]);
        assert!(std::fs::write(root.join("x"), "").is_err());
    });
    assert_eq!(node.lowers().len(), 2, "shared");

    snapshotter.remove("default/9/view").unwrap();
    assert_eq!(node.lowers().len(), 2);
    snapshotter.remove("default/9/box").unwrap();
    assert!(node.lowers().is_empty());
    assert_eq!(node.loops(), 0);
    for count in (1..=layers.len()).rev() {
        snapshotter.remove(&name(&layers[..count])).unwrap();
    }
    let layout = node.layout();
    for directory in [layout.layers(), layout.snapshots(), layout.devices(), layout.lowers()] {
        assert!(names(&directory).is_empty(), "{}", directory.display());
    }
}

#[test]
fn a_view_of_one_layer_is_a_bind_of_it() {
    let node = Node::new();
    let snapshotter = node.start();
    let top = unpack(&snapshotter, &[&layer(&node, "a")]);
    let view = snapshotter.create("default/9/view", Kind::View, Some(&top), Labels::new()).unwrap();
    assert_eq!(
        (view[0].r#type.as_str(), view[0].options.join(",")),
        ("bind", "ro,rbind".to_owned())
    );
    with_mounted(&view, |root| assert_eq!(names(root), ["a"]));
    snapshotter.remove("default/9/view").unwrap();
    assert!(node.lowers().is_empty());
}

#[test]
fn what_was_written_can_be_committed() {
    let node = Node::new();
    let snapshotter = node.start();
    let (a, b) = (layer(&node, "a"), layer(&node, "b"));
    let top = unpack(&snapshotter, &[&a, &b]);
    let mounts =
        snapshotter.create("default/9/k", Kind::Active, Some(&top), Labels::new()).unwrap();
    with_mounted(&mounts, |root| {
        std::fs::remove_file(root.join("a")).unwrap();
        std::fs::write(root.join("c"), "c").unwrap();
    });
    snapshotter.commit("default/9/k", "default/9/new", Labels::new(), None).unwrap();
    let view = snapshotter
        .create("default/9/v", Kind::View, Some("default/9/new"), Labels::new())
        .unwrap();
    with_mounted(&view, |root| assert_eq!(names(root), ["b", "c"]));
    snapshotter.remove("default/9/v").unwrap();
}

#[test]
fn parallel_unpacking_gives_the_parent_at_commit() {
    let node = Node::new();
    let snapshotter = node.start();
    let (a, b) = (layer(&node, "a"), layer(&node, "b"));
    let keys = ["default/2/extract-1-x 1", "default/3/extract-1-y 2"];
    for (key, layer) in keys.iter().zip([&a, &b]) {
        let mounts = snapshotter.create(key, Kind::Active, None, Labels::new()).unwrap();
        snapshotter.apply("default", layer, &mounts).unwrap();
    }
    snapshotter.commit(keys[0], "default/4/sha256:1", Labels::new(), None).unwrap();
    snapshotter
        .commit(keys[1], "default/5/sha256:2", Labels::new(), Some("default/4/sha256:1"))
        .unwrap();
    let parent = Some("default/5/sha256:2");
    let view = snapshotter.create("default/9/v", Kind::View, parent, Labels::new()).unwrap();
    with_mounted(&view, |root| assert_eq!(names(root), ["a", "b"]));
    snapshotter.remove("default/9/v").unwrap();
}

#[test]
fn a_layer_is_packed_once_whoever_asks() {
    let node = Node::new();
    let snapshotter = node.start();
    let a = layer(&node, "a");
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (snapshotter, a) = (&snapshotter, &a);
            scope.spawn(move || {
                let key = format!("ns{number}/2/extract-1-x 1");
                let mounts = snapshotter.create(&key, Kind::Active, None, Labels::new()).unwrap();
                snapshotter.apply(&format!("ns{number}"), a, &mounts).unwrap();
            });
        }
    });
    // a look for claims reads it once for each namespace, being small; packing, once
    let looks = 4;
    assert_eq!(node.content.reads_of(&a.digest), looks + 1);
}

#[test]
fn another_differ_is_found_out_at_commit() {
    let node = Node::new();
    let snapshotter = node.start();
    let key = "default/2/extract-1-x sha256:aa";
    let mounts = snapshotter.create(key, Kind::Active, None, Labels::new()).unwrap();
    std::fs::write(Path::new(&mounts[0].source).join("untarred"), "").unwrap();
    let refused = snapshotter.commit(key, "default/3/sha256:aa", Labels::new(), None).unwrap_err();
    assert!(matches!(refused, Error::NotPacked { .. }), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.to_string().contains("unpack_config"), "{refused}");
    // nerdctl commit: neither prefix nor label, but the key ends in the name
    let key = "default/4/1700-abcd-sha256:bb";
    snapshotter.create(key, Kind::Active, None, Labels::new()).unwrap();
    let refused = snapshotter.commit(key, "default/5/sha256:bb", Labels::new(), None).unwrap_err();
    assert!(matches!(refused, Error::NotPacked { .. }), "{refused}");
    // userns remap: no Apply by design, the client wrote into it
    let key = "default/6/sha256:cc-remap";
    snapshotter.create(key, Kind::Active, None, Labels::new()).unwrap();
    snapshotter.commit(key, "default/7/sha256:cc", Labels::new(), None).unwrap();
}

#[test]
fn bad_layers_and_foreign_mounts_are_refused_and_leave_nothing() {
    let node = Node::new();
    let snapshotter = node.start();
    let key = "default/2/extract-1-x 1";
    let mounts = snapshotter.create(key, Kind::Active, None, Labels::new()).unwrap();
    let good = layer(&node, "a");
    let refused = |descriptor: &Descriptor, mounts: &[Mount]| {
        snapshotter.apply("default", descriptor, mounts).unwrap_err().kind()
    };
    let mut foreign = mounts.clone();
    foreign[0].source = "/var/lib/containerd/snapshots/1/fs".to_owned();
    assert_eq!(refused(&good, &foreign), ErrorKind::Unimplemented);
    let odd =
        Descriptor { media_type: "application/vnd.erofs.layer.v1".to_owned(), ..good.clone() };
    assert_eq!(refused(&odd, &mounts), ErrorKind::FailedPrecondition);
    let missing = Descriptor { digest: LayerDigest::of(b"missing").to_string(), ..good.clone() };
    assert_eq!(refused(&missing, &mounts), ErrorKind::FailedPrecondition);
    let lie = Descriptor { digest: LayerDigest::of(b"lie").to_string(), ..good.clone() };
    node.content.put(&lie.digest, &[0; 1024]);
    assert_eq!(refused(&lie, &mounts), ErrorKind::FailedPrecondition);
    let torn = Descriptor { digest: LayerDigest::of(&[1; 700]).to_string(), ..good.clone() };
    node.content.put(&torn.digest, &[1; 700]);
    assert_eq!(refused(&torn, &mounts), ErrorKind::FailedPrecondition);
    assert!(names(&node.layout().layers()).is_empty());
    // and the next good one works
    snapshotter.apply("default", &good, &mounts).unwrap();
}

#[test]
fn a_claim_that_came_with_the_image_is_kept() {
    let node = Node::new();
    let snapshotter = node.start();
    let a = layer(&node, "a");
    let top = unpack(&snapshotter, &[&a]);
    let roots: Vec<_> = snapshotter
        .store
        .layers_of(&snapshotter.store.snapshot(&top).unwrap())
        .unwrap()
        .iter()
        .map(|layer| layer.root_hash)
        .collect();
    assert!(!snapshotter.claims.any(&roots));
    // loaded after the image was unpacked: only the next Prepare can find it
    let bundle = Bundle::of(&claim(&roots, b"p7s")).unwrap();
    node.content.put(&bundle.digest.to_string(), &bundle.manifest);
    for blob in &bundle.blobs {
        node.content.put(&blob.descriptor.digest.to_string(), &blob.bytes);
    }
    snapshotter.create("default/9/box", Kind::Active, Some(&top), Labels::new()).unwrap();
    assert!(snapshotter.claims.any(&roots));
    assert_eq!(snapshotter.claims.signatures(&roots).unwrap()[&roots[0]], [b"p7s".to_vec()]);
    // a directory that was emptied fills again, as long as containerd has the referrer
    for name in names(&node.layout().claims) {
        std::fs::remove_file(node.layout().claims.join(name)).unwrap();
    }
    snapshotter.mounts("default/9/box").unwrap();
    assert!(snapshotter.claims.any(&roots));
    snapshotter.remove("default/9/box").unwrap();
}

#[test]
fn a_slow_containerd_holds_up_one_look_and_no_other() {
    let node = Node::new();
    let snapshotter = node.start();
    for number in 0..10 {
        node.content.put(&LayerDigest::of(&[number]).to_string(), &[number]);
    }
    node.content.slow_down(Duration::from_millis(300));
    let look = |patience| {
        let begun = Instant::now();
        let looked = snapshotter.claims.collect(&snapshotter.content, "default", patience);
        (looked.map_err(|error| error.kind()), begun.elapsed())
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| look(Duration::from_secs(1)));
        while node.content.reads() == 0 {
            std::thread::yield_now();
        }
        let (looked, took) = look(Duration::ZERO);
        assert_eq!(looked, Err(ErrorKind::Unavailable));
        assert!(took < Duration::from_millis(500), "queued behind the first for {took:?}");
        let (looked, took) = first.join().unwrap();
        assert_eq!(looked, Err(ErrorKind::Unavailable));
        // ten reads, one after the other, would be three seconds
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
    let before = node.content.reads();
    assert_eq!(look(Duration::from_secs(60)).0, Ok(()));
    assert!(node.content.reads() - before < 10, "what was looked at is not looked at again");
}

#[test]
fn the_directory_of_a_commit_is_removed_while_others_go_on() {
    let node = Node::new();
    let snapshotter = node.start();
    snapshotter.create("default/9/k", Kind::Active, None, Labels::new()).unwrap();
    let id = snapshotter.store.snapshot("default/9/k").unwrap().id;
    let work = node.layout().work(id);
    let file = work.join("file");
    std::fs::write(&file, "").unwrap();
    for number in 0..40_000 {
        std::fs::hard_link(&file, work.join(number.to_string())).unwrap();
    }
    std::fs::write(node.layout().upper(id).join("written"), "").unwrap();
    std::thread::scope(|scope| {
        let commit = || snapshotter.commit("default/9/k", "default/9/new", Labels::new(), None);
        let commit = scope.spawn(commit);
        while snapshotter.store.snapshot("default/9/new").is_err() {
            std::thread::yield_now();
        }
        snapshotter.settle().unwrap();
        assert!(work.is_dir(), "settle takes the lock, and waited for the removal");
        commit.join().unwrap().unwrap();
    });
    assert!(!work.is_dir());
}

#[test]
fn a_directory_that_cannot_be_removed_stops_no_start() {
    let node = Node::new();
    let layout = node.layout();
    drop(node.start());
    let (stuck, after) = (layout.snapshot(998).join("fs"), layout.snapshot(999));
    for directory in [&stuck, &after] {
        std::fs::create_dir_all(directory).unwrap();
    }
    // rmdir answers EBUSY, as it answers EPERM for what is immutable
    let options = c"size=4k";
    rustix::mount::mount("tmpfs", &stuck, "tmpfs", rustix::mount::MountFlags::empty(), options)
        .unwrap();
    drop(node.start());
    let left = names(&layout.snapshots());
    rustix::mount::unmount(&stuck, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(left, ["998"], "and the others are gone");
    node.start().cleanup().unwrap();
    assert!(names(&layout.snapshots()).is_empty());
}

#[test]
fn a_daemon_that_was_killed_is_followed_by_one_that_knows() {
    let node = Node::new();
    let (a, b) = (layer(&node, "a"), layer(&node, "b"));
    let layout = node.layout();
    let (top, mounts, before) = {
        let snapshotter = node.start();
        let top = unpack(&snapshotter, &[&a, &b]);
        let mounts = snapshotter.create("default/9/box", Kind::Active, Some(&top), Labels::new());
        (top, mounts.unwrap(), node.lowers())
    };
    std::fs::create_dir_all(layout.snapshot(999).join("fs/left")).unwrap();
    std::fs::write(layout.layers().join(".new-1"), "cut off").unwrap();
    std::fs::create_dir(layout.lowers().join("stray")).unwrap();
    {
        let snapshotter = node.start();
        assert_eq!(node.lowers(), before, "adopted");
        assert_eq!(snapshotter.mounts("default/9/box").unwrap(), mounts);
        assert_eq!(names(&layout.snapshots()).len(), 1);
        assert_eq!(names(&layout.layers()).len(), 2);
    }
    // a record that says something else than the kernel
    let record = layout.devices().join(&names(&layout.devices())[0]);
    let text = std::fs::read_to_string(&record).unwrap().replace("\"dev\":\"", "\"dev\":\"1");
    std::fs::write(&record, text).unwrap();
    {
        let snapshotter = node.start();
        assert_eq!(node.lowers().len(), 1, "the other was taken down");
        let again = snapshotter.mounts("default/9/box").unwrap();
        assert_ne!(again, mounts);
        with_mounted(&again, |root| assert_eq!(names(root), ["a", "b"]));
    }
    // a reboot: state and mounts are gone, the database is not
    for lower in node.lowers() {
        crate::activate::unmount_lower(&lower).unwrap();
    }
    std::fs::remove_dir_all(&layout.state).unwrap();
    let snapshotter = node.start();
    assert!(node.lowers().is_empty());
    with_mounted(&snapshotter.mounts("default/9/box").unwrap(), |root| {
        assert_eq!(names(root), ["a", "b"]);
    });
    snapshotter.remove("default/9/box").unwrap();
    snapshotter.remove(&top).unwrap();
    assert_eq!(node.loops(), 0);
}

#[test]
fn an_activation_that_fails_leaves_nothing() {
    let node = Node::new();
    let snapshotter = node.start();
    let (a, b) = (layer(&node, "a"), layer(&node, "b"));
    let top = unpack(&snapshotter, &[&a, &b]);
    let layout = node.layout();
    let image = layout.layer(&a.digest.parse().unwrap());
    std::fs::write(&image, vec![0; 8192]).unwrap();
    let failed = snapshotter.create("default/9/box", Kind::Active, Some(&top), Labels::new());
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Internal);
    assert!(matches!(snapshotter.mounts("default/9/box").unwrap_err(), Error::NotFound { .. }));
    assert!(names(&layout.snapshots()).is_empty());
    // the sound layer above it may stay until somebody removes something
    snapshotter.cleanup().unwrap();
    assert!(node.lowers().is_empty());
    assert_eq!(node.loops(), 0);
}

#[test]
fn labels_are_replaced_or_changed_one_by_one() {
    let node = Node::new();
    let snapshotter = node.start();
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let fields =
        |fields: &[&str]| -> Vec<String> { fields.iter().map(|f| (*f).to_owned()).collect() };
    snapshotter.create("k", Kind::Active, None, labels(&[("a", "1"), ("b.c/d", "2")])).unwrap();
    let update = |new: &[(&str, &str)], mask: &[&str]| {
        snapshotter.update("k", &labels(new), &fields(mask)).map(|snapshot| snapshot.labels)
    };
    assert_eq!(
        update(&[("b.c/d", "3")], &["labels.b.c/d"]).unwrap(),
        labels(&[("a", "1"), ("b.c/d", "3")])
    );
    assert_eq!(update(&[], &["labels.a"]).unwrap(), labels(&[("b.c/d", "3")]));
    assert_eq!(update(&[("x", "y")], &[]).unwrap(), labels(&[("x", "y")]));
    assert_eq!(update(&[], &["kind"]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    snapshotter.remove("k").unwrap();
}

#[test]
fn a_layer_that_was_unmounted_by_hand_is_mounted_again() {
    let node = Node::new();
    let snapshotter = node.start();
    let top = unpack(&snapshotter, &[&layer(&node, "a")]);
    let first =
        snapshotter.create("default/9/box", Kind::Active, Some(&top), Labels::new()).unwrap();
    crate::activate::unmount_lower(&node.lowers()[0]).unwrap();
    let second = snapshotter.mounts("default/9/box").unwrap();
    assert_ne!(first, second);
    with_mounted(&second, |root| assert_eq!(names(root), ["a"]));
    snapshotter.remove("default/9/box").unwrap();
    assert!(node.lowers().is_empty());
    assert_eq!(node.loops(), 0);
}

#[test]
fn cleanup_takes_what_belongs_to_nothing() {
    let node = Node::new();
    let snapshotter = node.start();
    snapshotter.create("k", Kind::Active, None, Labels::new()).unwrap();
    std::fs::create_dir_all(node.layout().snapshot(999).join("fs/left")).unwrap();
    snapshotter.cleanup().unwrap();
    assert_eq!(names(&node.layout().snapshots()).len(), 1);
    snapshotter.remove("k").unwrap();
}
