//! `mounts`: options sorted into what is an attribute of the mount, of its file system, or of its propagation.
//!
//! | option | becomes |
//! |---|---|
//! | `ro`, `nosuid`, `noatime`, … | attribute of the mount: `fsmount` or `mount_setattr` |
//! | `rro`, `rnosuid`, … | attribute of the mount and all beneath it |
//! | `sync`, `dirsync`, `lazytime`, … | flag of the superblock |
//! | `private`, `rslave`, … | propagation |
//! | `bind`, `rbind`, `tmpcopyup`, `idmap`, `ridmap` | kind of mount |
//! | anything else | passed to the file system |
//!
//! Source: runtime-spec `config.md`, Linux mount options; runc 1.5 `libcontainer/specconv/spec_linux.go`.

use std::path::{Path, PathBuf};

use hallmark_sys::mount::{Attributes, Extent, Propagation};
use oci_spec::runtime as oci;

use super::{IdMaps, clean, no_nul};
use crate::error::{Error, Result};

/// One mount beneath the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPlan {
    /// Absolute, cleaned; never the root itself.
    pub(crate) destination: String,
    /// As the configuration writes it; for a bind: absolute.
    pub(crate) source: Option<PathBuf>,
    /// Where the source is in the container, for a bind of something beneath the root itself.
    pub(crate) inside: Option<String>,
    pub(crate) kind: MountKind,
    /// Attributes the mount gets.
    pub(crate) set: Attributes,
    /// Attributes it must not have.
    pub(crate) clear: Attributes,
    /// `noatime`, `relatime` or `strictatime` if one was asked for, as attribute bits.
    pub(crate) access_time: Option<Attributes>,
    /// The same for the mount and all beneath it.
    pub(crate) tree_set: Attributes,
    pub(crate) tree_clear: Attributes,
    pub(crate) superblock: Vec<SuperblockFlag>,
    pub(crate) propagation: Vec<(Propagation, Extent)>,
    /// Options for the file system: `key` or `key=value`.
    pub(crate) data: Vec<(String, Option<String>)>,
    pub(crate) id_map: Option<IdMappedMount>,
    pub(crate) covers: Covers,
}

/// What may disappear below a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Covers {
    /// Whatever is there.
    #[default]
    Anything,
    /// Data of the image, not its code: the gate found nobody who vouches for what is mounted.
    Data,
}

impl MountPlan {
    /// How much of its source a bind shows; anything else is one mount.
    pub(crate) fn extent(&self) -> Extent {
        match self.kind {
            MountKind::Bind(extent) => extent,
            _ => Extent::Mount,
        }
    }
}

/// How the mount comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountKind {
    Bind(Extent),
    Cgroup,
    Mqueue,
    Proc,
    Sysfs,
    /// With what the root has at that place copied into it, or without.
    Tmpfs(CopyUp),
    /// Any other type that the kernel knows.
    Other(String),
}

/// Whether a tmpfs starts with what it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyUp {
    Yes,
    No,
}

/// A bind mount whose owners are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMappedMount {
    /// Empty: the container's own.
    pub(crate) maps: IdMaps,
    pub(crate) extent: Extent,
}

/// A flag of a superblock, by its name for `fsconfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SuperblockFlag {
    Dirsync,
    Lazytime,
    Mand,
    Silent,
    Sync,
}

impl SuperblockFlag {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dirsync => "dirsync",
            Self::Lazytime => "lazytime",
            Self::Mand => "mand",
            Self::Silent => "silent",
            Self::Sync => "sync",
        }
    }
}

/// What one option word means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    AccessTime(Attributes),
    Bind(Extent),
    Clear(Attributes),
    ClearSuperblock(SuperblockFlag),
    CopyUp,
    IdMap(Extent),
    NoAccessTime(Attributes),
    Nothing,
    Propagation(Propagation, Extent),
    Set(Attributes),
    Superblock(SuperblockFlag),
    TreeClear(Attributes),
    TreeSet(Attributes),
}

/// Every option word this runtime acts on, in alphabetical order.
const OPTIONS: [(&str, Meaning); 66] = {
    use Attributes as A;
    use Extent::{Mount, Tree};
    use Meaning as M;
    use Propagation as P;
    use SuperblockFlag as S;
    [
        ("async", M::ClearSuperblock(S::Sync)),
        ("atime", M::NoAccessTime(A::NOATIME)),
        ("bind", M::Bind(Mount)),
        ("defaults", M::Nothing),
        ("dev", M::Clear(A::NODEV)),
        ("diratime", M::Clear(A::NODIRATIME)),
        ("dirsync", M::Superblock(S::Dirsync)),
        ("exec", M::Clear(A::NOEXEC)),
        ("idmap", M::IdMap(Mount)),
        ("iversion", M::Nothing),
        ("lazytime", M::Superblock(S::Lazytime)),
        ("loud", M::ClearSuperblock(S::Silent)),
        ("mand", M::Superblock(S::Mand)),
        ("noatime", M::AccessTime(A::NOATIME)),
        ("nodev", M::Set(A::NODEV)),
        ("nodiratime", M::Set(A::NODIRATIME)),
        ("noexec", M::Set(A::NOEXEC)),
        ("noiversion", M::Nothing),
        ("nolazytime", M::ClearSuperblock(S::Lazytime)),
        ("nomand", M::ClearSuperblock(S::Mand)),
        ("norelatime", M::NoAccessTime(A::none())),
        ("nostrictatime", M::NoAccessTime(A::STRICTATIME)),
        ("nosuid", M::Set(A::NOSUID)),
        ("nosymfollow", M::Set(A::NOSYMFOLLOW)),
        ("private", M::Propagation(P::Private, Mount)),
        ("ratime", M::TreeClear(A::NOATIME)),
        ("rbind", M::Bind(Tree)),
        ("rdev", M::TreeClear(A::NODEV)),
        ("rdiratime", M::TreeClear(A::NODIRATIME)),
        ("relatime", M::AccessTime(A::none())),
        ("remount", M::Nothing),
        ("rexec", M::TreeClear(A::NOEXEC)),
        ("ridmap", M::IdMap(Tree)),
        ("rnoatime", M::TreeSet(A::NOATIME)),
        ("rnodev", M::TreeSet(A::NODEV)),
        ("rnodiratime", M::TreeSet(A::NODIRATIME)),
        ("rnoexec", M::TreeSet(A::NOEXEC)),
        ("rnorelatime", M::Nothing),
        ("rnostrictatime", M::TreeClear(A::STRICTATIME)),
        ("rnosuid", M::TreeSet(A::NOSUID)),
        ("rnosymfollow", M::TreeSet(A::NOSYMFOLLOW)),
        ("ro", M::Set(A::READ_ONLY)),
        ("rprivate", M::Propagation(P::Private, Tree)),
        ("rrelatime", M::TreeClear(A::NOATIME.union(A::STRICTATIME))),
        ("rro", M::TreeSet(A::READ_ONLY)),
        ("rrw", M::TreeClear(A::READ_ONLY)),
        ("rshared", M::Propagation(P::Shared, Tree)),
        ("rslave", M::Propagation(P::Slave, Tree)),
        ("rstrictatime", M::TreeSet(A::STRICTATIME)),
        ("rsuid", M::TreeClear(A::NOSUID)),
        ("rsymfollow", M::TreeClear(A::NOSYMFOLLOW)),
        ("runbindable", M::Propagation(P::Unbindable, Tree)),
        ("rw", M::Clear(A::READ_ONLY)),
        ("shared", M::Propagation(P::Shared, Mount)),
        ("silent", M::Superblock(S::Silent)),
        ("slave", M::Propagation(P::Slave, Mount)),
        ("strictatime", M::AccessTime(A::STRICTATIME)),
        ("suid", M::Clear(A::NOSUID)),
        ("symfollow", M::Clear(A::NOSYMFOLLOW)),
        ("sync", M::Superblock(S::Sync)),
        ("tmpcopyup", M::CopyUp),
        ("unbindable", M::Propagation(P::Unbindable, Mount)),
        // words that generic tools write and that ask for nothing
        ("_netdev", M::Nothing),
        ("auto", M::Nothing),
        ("noauto", M::Nothing),
        ("nofail", M::Nothing),
    ]
};

/// The option words that `features` tells: all of them but those that ask for nothing and are no words of runc's.
pub(crate) const OPTION_NAMES: fn() -> Vec<&'static str> = || {
    let foreign = ["_netdev", "auto", "noauto", "nofail"];
    OPTIONS.iter().map(|(name, _)| *name).filter(|name| !foreign.contains(name)).collect()
};

/// Where paths of the configuration start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'a> {
    /// Relative sources of bind mounts.
    pub(super) bundle: &'a Path,
    /// `root.path`, absolute: sources and destinations that begin with it are the container's, as in runc.
    pub(super) root: &'a Path,
}

impl Places<'_> {
    /// `path` as the container sees it, if it lies beneath the root by name.
    fn inside(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(&clean(self.root.to_str()?))?;
        (rest.is_empty() || rest.starts_with('/')).then(|| clean(rest))
    }
}

/// Every mount of the configuration, in its order.
pub(super) fn parse_all(mounts: &[oci::Mount], places: Places<'_>) -> Result<Vec<MountPlan>> {
    mounts
        .iter()
        .map(|mount| {
            parse(mount, places).map_err(|error| {
                error.within(format!("invalid mount {}", mount.destination().display()))
            })
        })
        .collect()
}

fn parse(mount: &oci::Mount, places: Places<'_>) -> Result<MountPlan> {
    let destination = mount.destination().to_str();
    let destination = clean(destination.ok_or_else(|| Error::spec("destination is not UTF-8"))?);
    no_nul(&destination, "destination")?;
    let destination = places.inside(&destination).unwrap_or(destination);
    if destination == "/" {
        return Err(Error::spec("mountpoint is on the top of rootfs"));
    }
    let mut plan = MountPlan {
        destination,
        source: mount.source().clone(),
        inside: None,
        kind: MountKind::Other(String::new()),
        set: Attributes::none(),
        clear: Attributes::none(),
        access_time: None,
        tree_set: Attributes::none(),
        tree_clear: Attributes::none(),
        superblock: Vec::new(),
        propagation: Vec::new(),
        data: Vec::new(),
        id_map: None,
        covers: Covers::Anything,
    };
    let mut seen = Seen { bind: None, copy_up: CopyUp::No };
    for option in mount.options().as_deref().unwrap_or_default() {
        no_nul(option, "option")?;
        option_word(&mut plan, &mut seen, option);
    }
    plan.kind = kind(mount.typ().as_deref(), &seen)?;
    if let MountKind::Bind(_) = plan.kind {
        let source = plan.source.as_ref().filter(|source| !source.as_os_str().is_empty());
        let source = source.ok_or_else(|| Error::spec("a bind mount needs a source"))?;
        let source = places.bundle.join(source);
        plan.inside = source.to_str().and_then(|source| places.inside(&clean(source)));
        plan.source = Some(source);
    }
    id_map(&mut plan, mount)?;
    Ok(plan)
}

/// Option words that decide on the kind of mount.
struct Seen {
    bind: Option<Extent>,
    copy_up: CopyUp,
}

fn option_word(plan: &mut MountPlan, seen: &mut Seen, option: &str) {
    let Some((_, meaning)) = OPTIONS.iter().find(|(name, _)| *name == option) else {
        if option.is_empty() {
            return;
        }
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (option.to_owned(), None),
        };
        plan.data.push((key, value));
        return;
    };
    // the last word on a matter counts
    match *meaning {
        Meaning::AccessTime(mode) => plan.access_time = Some(mode),
        Meaning::Bind(extent) => seen.bind = Some(extent),
        Meaning::Clear(attributes) => {
            plan.clear = plan.clear.union(attributes);
            plan.set = plan.set.without(attributes);
        }
        Meaning::ClearSuperblock(flag) => plan.superblock.retain(|other| *other != flag),
        Meaning::CopyUp => seen.copy_up = CopyUp::Yes,
        Meaning::IdMap(extent) => {
            plan.id_map = Some(IdMappedMount { maps: IdMaps::default(), extent });
        }
        // takes back what was asked for; what the source has stays
        Meaning::NoAccessTime(mode) => {
            plan.access_time = plan.access_time.filter(|asked| *asked != mode);
        }
        Meaning::Nothing => {}
        Meaning::Propagation(propagation, extent) => plan.propagation.push((propagation, extent)),
        Meaning::Set(attributes) => {
            plan.set = plan.set.union(attributes);
            plan.clear = plan.clear.without(attributes);
        }
        Meaning::Superblock(flag) => plan.superblock.push(flag),
        Meaning::TreeClear(attributes) => {
            plan.tree_clear = plan.tree_clear.union(attributes);
            plan.tree_set = plan.tree_set.without(attributes);
        }
        Meaning::TreeSet(attributes) => {
            plan.tree_set = plan.tree_set.union(attributes);
            plan.tree_clear = plan.tree_clear.without(attributes);
        }
    }
}

fn kind(name: Option<&str>, seen: &Seen) -> Result<MountKind> {
    if let Some(extent) = seen.bind {
        return Ok(MountKind::Bind(extent));
    }
    Ok(match name {
        None | Some("") => return Err(Error::spec("no type and no bind option")),
        // as runc: the type alone makes it a bind of everything beneath
        Some("bind") => MountKind::Bind(Extent::Tree),
        Some("cgroup" | "cgroup2") => MountKind::Cgroup,
        Some("mqueue") => MountKind::Mqueue,
        Some("proc") => MountKind::Proc,
        Some("sysfs") => MountKind::Sysfs,
        Some("tmpfs") => MountKind::Tmpfs(seen.copy_up),
        Some(other) => {
            no_nul(other, "type")?;
            MountKind::Other(other.to_owned())
        }
    })
}

fn id_map(plan: &mut MountPlan, mount: &oci::Mount) -> Result<()> {
    let (uid, gid) = (mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref());
    let maps = IdMaps::parse(uid, gid, "uidMappings, gidMappings")?;
    if !maps.is_empty() {
        if maps.uid.is_empty() || maps.gid.is_empty() {
            return Err(Error::spec("uidMappings and gidMappings must be given together"));
        }
        let extent = plan.id_map.as_ref().map_or(Extent::Mount, |id_map| id_map.extent);
        plan.id_map = Some(IdMappedMount { maps, extent });
    }
    if plan.id_map.is_some() && !matches!(plan.kind, MountKind::Bind(_)) {
        return Err(Error::spec("id-mapped mounts are only supported for bind mounts"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::minimal;
    use serde_json::json;

    fn one(mount: serde_json::Value) -> Result<MountPlan> {
        minimal(|c| c["mounts"] = json!([mount])).map(|mut plan| plan.mounts.remove(0))
    }

    #[test]
    fn options_go_where_they_belong() {
        let plan = one(json!({"destination": "/t/../tmp", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "noexec", "exec", "strictatime", "sync", "rprivate", "mode=1777", "rro"]}))
        .unwrap();
        assert_eq!(plan.destination, "/tmp");
        assert_eq!(plan.kind, MountKind::Tmpfs(CopyUp::No));
        assert_eq!(plan.set, Attributes::NOSUID);
        assert_eq!(plan.clear, Attributes::NOEXEC);
        assert_eq!(plan.access_time, Some(Attributes::STRICTATIME));
        assert_eq!(plan.superblock, [SuperblockFlag::Sync]);
        assert_eq!(plan.propagation, [(Propagation::Private, Extent::Tree)]);
        assert_eq!(plan.data, [("mode".to_owned(), Some("1777".to_owned()))]);
        assert_eq!(plan.tree_set, Attributes::READ_ONLY);
    }

    #[test]
    fn a_bind_option_beats_the_type() {
        let plan =
            one(json!({"destination": "/d", "type": "none", "source": "/s", "options": ["bind"]}));
        assert_eq!(plan.unwrap().kind, MountKind::Bind(Extent::Mount));
        let plan = one(json!({"destination": "/d", "type": "bind", "source": "/s"}));
        assert_eq!(plan.unwrap().kind, MountKind::Bind(Extent::Tree));
        let plan = one(json!({"destination": "/d", "type": "bind", "source": "s"})).unwrap();
        assert_eq!(plan.source.as_deref(), Some(Path::new("/bundle/s")));
    }

    #[test]
    fn what_begins_with_the_root_is_the_containers() {
        let bind = |source: &str, destination: &str| {
            one(json!({"destination": destination, "type": "bind", "source": source})).unwrap()
        };
        let plan = bind("/bundle/rootfs/mnt/x", "/bundle/rootfs/mnt/y");
        assert_eq!((plan.inside.as_deref(), &*plan.destination), (Some("/mnt/x"), "/mnt/y"));
        assert_eq!(bind("rootfs", "/r").inside.as_deref(), Some("/"));
        for outside in ["/bundle/rootfs2/x", "/bundle", "/bundle/rootfs/../x"] {
            assert_eq!(bind(outside, "/r").inside, None, "{outside}");
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for (mount, expected) in [
            (json!({"destination": "/..", "type": "tmpfs"}), "top of rootfs"),
            (json!({"destination": "/d"}), "no type"),
            (json!({"destination": "/d", "type": "bind"}), "needs a source"),
            (
                json!({"destination": "/d", "type": "tmpfs", "options": ["idmap"]}),
                "only supported for bind",
            ),
            (
                json!({"destination": "/d", "type": "bind", "source": "/s", "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
                "given together",
            ),
        ] {
            let error = one(mount.clone()).unwrap_err();
            assert!(error.to_string().contains(expected), "{mount}: {error}");
        }
    }

    #[test]
    fn the_words_are_those_of_runc() {
        let names = OPTION_NAMES();
        assert_eq!(names.len(), 62);
        assert!(names.is_sorted(), "{names:?}");
    }
}
