//! What containerd is answered: one ordinary mount that plain mount(2) can make.
//!
//! | snapshot | layers beneath | reply |
//! |---|---|---|
//! | active | 0, or a layer is about to be applied to it | `bind` of its directory, rw |
//! | active | n | `overlay`: lowers, upper, work |
//! | view | 0 | `bind` of its empty directory, ro |
//! | view | 1 | `bind` of the layer, ro |
//! | view | n | `overlay` without upper |
//!
//! Lowers are the canonical stack: the topmost copy of each root hash (overlayfs refuses the same superblock twice).
//! A reply to a Prepare for unpacking must never be read-only: containerd would take it for a layer that is
//! already there, and skip the fetch, the Apply and the check of the diffID.

use std::path::{Path, PathBuf};

use crate::layout::Layout;
use crate::proto::types::Mount;
use crate::store::{Kind, Snapshot};

/// Labels by which containerd asks for id-mapped lowers (capability `remap-ids`).
const ID_MAPS: [(&str, &str); 2] = [
    ("uidmap", "containerd.io/snapshot/uidmapping"),
    ("gidmap", "containerd.io/snapshot/gidmapping"),
];

/// The reply for a snapshot on `lowers`, topmost first.
pub(crate) fn reply(layout: &Layout, snapshot: &Snapshot, lowers: &[PathBuf]) -> Mount {
    let (upper, work) = (layout.upper(snapshot.id), layout.work(snapshot.id));
    match (snapshot.kind, lowers) {
        (Kind::Active, []) => bind(&upper, "rw"),
        (_, []) => bind(&upper, "ro"),
        (Kind::View | Kind::Committed, [only]) => bind(only, "ro"),
        (Kind::Active, _) => {
            let mut options = id_maps(snapshot);
            options.extend([
                "index=off".to_owned(),
                option("workdir", &work),
                option("upperdir", &upper),
            ]);
            overlay(options, lowers)
        }
        _ => overlay(vec!["index=off".to_owned()], lowers),
    }
}

/// The reply for a snapshot that a layer is about to be applied to: its directory, never read-only.
pub(crate) fn unpack_reply(layout: &Layout, snapshot: &Snapshot) -> Mount {
    bind(&layout.upper(snapshot.id), "rw")
}

/// Which of our uppers the mounts of a request write to.
pub(crate) fn upper_of(layout: &Layout, mounts: &[Mount]) -> Option<u64> {
    let [mount] = mounts else { return None };
    let upper = match mount.r#type.as_str() {
        "bind" => mount.source.as_str(),
        "overlay" => mount.options.iter().find_map(|option| option.strip_prefix("upperdir="))?,
        _ => return None,
    };
    layout.id_of_upper(Path::new(upper))
}

/// One range of an id map: first id in the container, first id on the host, how many.
type Range = [u32; 3];

/// The map that a label holds: `0:<host id>:<length>`, and after commas further ranges. A label is anybody's text, and
/// what else it holds would be an option of the mount.
fn id_map(snapshot: &Snapshot, label: &str) -> Option<Vec<Range>> {
    let range = |text: &str| -> Option<Range> {
        let ids: Option<Vec<u32>> = text.split(':').map(|id| id.parse().ok()).collect();
        ids?.try_into().ok()
    };
    let map: Vec<Range> =
        snapshot.labels.get(label)?.split(',').map(range).collect::<Option<_>>()?;
    map.first().is_some_and(|[container, ..]| *container == 0).then_some(map)
}

/// The ids on the host of a snapshot's root, if containerd asked for a map.
pub(crate) fn mapped_root(snapshot: &Snapshot) -> Option<(u32, u32)> {
    let root = |label| id_map(snapshot, label)?.first().map(|[_, host, _]| *host);
    let [(_, uid), (_, gid)] = ID_MAPS;
    Some((root(uid)?, root(gid)?))
}

fn id_maps(snapshot: &Snapshot) -> Vec<String> {
    let option = |(option, label): &(&str, &str)| {
        let map = id_map(snapshot, label)?;
        let ranges: Vec<String> = map
            .iter()
            .map(|[container, host, length]| format!("{container}:{host}:{length}"))
            .collect();
        Some(format!("{option}={}", ranges.join(",")))
    };
    let both: Option<Vec<String>> = ID_MAPS.iter().map(option).collect();
    both.unwrap_or_default()
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn bind(source: &Path, access: &str) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec![access.to_owned(), "rbind".to_owned()],
    }
}

fn overlay(mut options: Vec<String>, lowers: &[PathBuf]) -> Mount {
    let lowers: Vec<String> = lowers.iter().map(|lower| lower.display().to_string()).collect();
    options.push(format!("lowerdir={}", lowers.join(":")));
    Mount {
        r#type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: String::new(),
        options,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::store::Labels;

    fn layout() -> Layout {
        Layout { root: "/r".into(), state: "/s".into(), claims: "/r/claims".into() }
    }

    fn snapshot(kind: Kind, labels: &[(&str, &str)]) -> Snapshot {
        let now = SystemTime::UNIX_EPOCH;
        let labels: Labels =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Snapshot { id: 7, kind, parent: None, labels, created: now, updated: now, layer: None }
    }

    fn lowers(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(|name| Path::new("/s/l").join(name)).collect()
    }

    #[test]
    fn each_shape_has_its_reply() {
        let (active, view) = (snapshot(Kind::Active, &[]), snapshot(Kind::View, &[]));
        for (snapshot, names, kind, source, options) in [
            (&active, &[][..], "bind", "/r/snapshots/7/fs", "rw,rbind"),
            (
                &active,
                &["b", "a"],
                "overlay",
                "overlay",
                "index=off,workdir=/r/snapshots/7/work,upperdir=/r/snapshots/7/fs,lowerdir=/s/l/b:/s/l/a",
            ),
            (&view, &[], "bind", "/r/snapshots/7/fs", "ro,rbind"),
            (&view, &["a"], "bind", "/s/l/a", "ro,rbind"),
            (&view, &["b", "a"], "overlay", "overlay", "index=off,lowerdir=/s/l/b:/s/l/a"),
        ] {
            let mount = reply(&layout(), snapshot, &lowers(names));
            assert_eq!((mount.r#type.as_str(), mount.source.as_str()), (kind, source));
            assert_eq!(mount.options.join(","), options);
        }
    }

    #[test]
    fn a_reply_for_unpacking_is_writable_and_found_again() {
        let mount = unpack_reply(&layout(), &snapshot(Kind::Active, &[]));
        assert_eq!(mount.options, ["rw", "rbind"]);
        assert_eq!(upper_of(&layout(), std::slice::from_ref(&mount)), Some(7));
        let overlay = reply(&layout(), &snapshot(Kind::Active, &[]), &lowers(&["a"]));
        assert_eq!(upper_of(&layout(), std::slice::from_ref(&overlay)), Some(7));
        assert_eq!(upper_of(&layout(), &[mount.clone(), mount]), None);
        let view = reply(&layout(), &snapshot(Kind::View, &[]), &lowers(&["b", "a"]));
        assert_eq!(upper_of(&layout(), &[view]), None);
        let foreign = bind(Path::new("/var/lib/containerd/x/snapshots/7/fs"), "rw");
        assert_eq!(upper_of(&layout(), &[foreign]), None);
    }

    #[test]
    fn id_maps_are_passed_on_only_when_both_are_whole() {
        let map = ("containerd.io/snapshot/uidmapping", "0:200000:65536");
        let both = [map, ("containerd.io/snapshot/gidmapping", "0:300000:65536")];
        let active = snapshot(Kind::Active, &both);
        assert_eq!(mapped_root(&active), Some((200_000, 300_000)));
        let mount = reply(&layout(), &active, &lowers(&["a"]));
        assert_eq!(mount.options[..2], ["uidmap=0:200000:65536", "gidmap=0:300000:65536"]);
        assert_eq!(mapped_root(&snapshot(Kind::Active, &[map])), None);
        let gid = "containerd.io/snapshot/gidmapping";
        for odd in ["1:0:1", "0:1", "0:1:2:3", "0:-1:2", "0:100000:65536,userxattr", "0:1:2,", ""] {
            let active = snapshot(Kind::Active, &[map, (gid, odd)]);
            assert_eq!(mapped_root(&active), None, "{odd}");
            let mount = reply(&layout(), &active, &lowers(&["a"]));
            assert_eq!(mount.options[0], "index=off", "{odd}");
        }
        let two = snapshot(Kind::Active, &[map, (gid, "0:300000:10,10:5:1")]);
        let mount = reply(&layout(), &two, &lowers(&["a"]));
        assert_eq!(mount.options[1], "gidmap=0:300000:10,10:5:1");
    }
}
