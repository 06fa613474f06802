//! Namespaces to make and to join, and the id maps of a user namespace.

use std::path::{Path, PathBuf};

use hallmark_sys::process::Namespaces;
use oci_spec::runtime as oci;
use rustix::thread::LinkNameSpaceType;

use super::no_nul;
use crate::error::{Error, Result};

/// The eight kinds, in the order in which they are joined: user last of those that need the host's rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Cgroup,
    Ipc,
    Mount,
    Network,
    Pid,
    Time,
    User,
    Uts,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Cgroup,
        Self::Ipc,
        Self::Mount,
        Self::Network,
        Self::Pid,
        Self::Time,
        Self::User,
        Self::Uts,
    ];

    /// The specification's word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mount => "mount",
            Self::Network => "network",
            Self::Pid => "pid",
            Self::Time => "time",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }

    /// The name below /proc/PID/ns.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Mount => "mnt",
            Self::Network => "net",
            other => other.name(),
        }
    }

    pub(crate) fn flag(self) -> Namespaces {
        match self {
            Self::Cgroup => Namespaces::NEWCGROUP,
            Self::Ipc => Namespaces::NEWIPC,
            Self::Mount => Namespaces::NEWNS,
            Self::Network => Namespaces::NEWNET,
            Self::Pid => Namespaces::NEWPID,
            Self::Time => Namespaces::NEWTIME,
            Self::User => Namespaces::NEWUSER,
            Self::Uts => Namespaces::NEWUTS,
        }
    }

    pub(crate) fn link(self) -> LinkNameSpaceType {
        match self {
            Self::Cgroup => LinkNameSpaceType::ControlGroup,
            Self::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Self::Mount => LinkNameSpaceType::Mount,
            Self::Network => LinkNameSpaceType::Network,
            Self::Pid => LinkNameSpaceType::ProcessID,
            Self::Time => LinkNameSpaceType::Time,
            Self::User => LinkNameSpaceType::User,
            Self::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        }
    }

    fn parse(kind: oci::LinuxNamespaceType) -> Self {
        match kind {
            oci::LinuxNamespaceType::Cgroup => Self::Cgroup,
            oci::LinuxNamespaceType::Ipc => Self::Ipc,
            oci::LinuxNamespaceType::Mount => Self::Mount,
            oci::LinuxNamespaceType::Network => Self::Network,
            oci::LinuxNamespaceType::Pid => Self::Pid,
            oci::LinuxNamespaceType::Time => Self::Time,
            oci::LinuxNamespaceType::User => Self::User,
            oci::LinuxNamespaceType::Uts => Self::Uts,
        }
    }
}

/// A namespace that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

/// `first` ids from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) size: u32,
}

/// The maps of a user namespace, or of an id-mapped mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdMaps {
    pub(crate) uid: Vec<IdMap>,
    pub(crate) gid: Vec<IdMap>,
}

impl IdMaps {
    pub(crate) fn parse(
        uid: Option<&[oci::LinuxIdMapping]>,
        gid: Option<&[oci::LinuxIdMapping]>,
        what: &str,
    ) -> Result<Self> {
        let list = |maps: Option<&[oci::LinuxIdMapping]>| -> Result<Vec<IdMap>> {
            let maps = maps.unwrap_or_default();
            // the kernel's own limit; more would not fit its one-page write either
            if maps.len() > 340 {
                return Err(Error::spec(format!(
                    "{what}: {} id mappings, at most 340",
                    maps.len()
                )));
            }
            maps.iter().map(|map| one(map, what)).collect()
        };
        Ok(Self { uid: list(uid)?, gid: list(gid)? })
    }

    /// The host's number of the container's user `uid`, if it has one.
    pub(crate) fn host_uid(&self, uid: u32) -> Option<u32> {
        let map = self
            .uid
            .iter()
            .find(|map| uid.checked_sub(map.inside).is_some_and(|offset| offset < map.size))?;
        map.outside.checked_add(uid - map.inside)
    }

    /// The text of uid_map or gid_map.
    pub(crate) fn text(maps: &[IdMap]) -> String {
        maps.iter().map(|map| format!("{} {} {}\n", map.inside, map.outside, map.size)).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.uid.is_empty() && self.gid.is_empty()
    }
}

fn one(map: &oci::LinuxIdMapping, what: &str) -> Result<IdMap> {
    let (inside, outside, size) = (map.container_id(), map.host_id(), map.size());
    if size == 0 || inside.checked_add(size).is_none() || outside.checked_add(size).is_none() {
        return Err(Error::spec(format!(
            "{what}: id mapping {inside} {outside} {size} is out of range"
        )));
    }
    Ok(IdMap { inside, outside, size })
}

/// `linux.namespaces` with what belongs to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamespacePlan {
    /// Made for this container.
    pub(crate) new: Namespaces,
    /// Joined by path.
    pub(crate) joined: Vec<Joined>,
    /// Maps of a new user namespace.
    pub(crate) id_maps: IdMaps,
    /// Lines for timens_offsets: `monotonic 5 0`.
    pub(crate) time_offsets: Option<String>,
}

impl NamespacePlan {
    pub(super) fn parse(linux: &oci::Linux) -> Result<Self> {
        let mut plan = Self {
            new: Namespaces::empty(),
            joined: Vec::new(),
            id_maps: IdMaps::parse(
                linux.uid_mappings().as_deref(),
                linux.gid_mappings().as_deref(),
                "linux.uidMappings, linux.gidMappings",
            )?,
            time_offsets: None,
        };
        for namespace in linux.namespaces().as_deref().unwrap_or_default() {
            let kind = Kind::parse(namespace.typ());
            if plan.contains(kind) {
                return Err(Error::spec(format!("duplicated {} namespace", kind.name())));
            }
            match namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
                None => plan.new |= kind.flag(),
                Some(path) => plan.joined.push(Joined { kind, path: join_path(kind, path)? }),
            }
        }
        plan.joined.sort_by_key(|joined| joined.kind);
        plan.user()?;
        plan.time_offsets = plan.time(linux)?;
        Ok(plan)
    }

    /// Whether the container has its own, new or joined.
    pub(crate) fn contains(&self, kind: Kind) -> bool {
        self.new.contains(kind.flag()) || self.joined.iter().any(|joined| joined.kind == kind)
    }

    /// Whether it is made for this container.
    pub(crate) fn makes(&self, kind: Kind) -> bool {
        self.new.contains(kind.flag())
    }

    fn user(&self) -> Result<()> {
        if self.makes(Kind::User) && (self.id_maps.uid.is_empty() || self.id_maps.gid.is_empty()) {
            return Err(Error::spec("user namespaces enabled, but no uid and gid mappings found"));
        }
        if !self.contains(Kind::User) && !self.id_maps.is_empty() {
            return Err(Error::spec(
                "user namespace mappings specified, but user namespace isn't enabled in the config",
            ));
        }
        Ok(())
    }

    fn time(&self, linux: &oci::Linux) -> Result<Option<String>> {
        let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty())
        else {
            return Ok(None);
        };
        if !self.makes(Kind::Time) {
            return Err(Error::spec(
                "time namespace is not enabled, but a time offset is specified",
            ));
        }
        let mut lines = String::new();
        for (clock, offset) in offsets {
            if clock != "monotonic" && clock != "boottime" {
                return Err(Error::spec(format!(
                    "linux.timeOffsets: clock {clock:?} has no offset"
                )));
            }
            let (secs, nanos) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            lines.push_str(&format!("{clock} {secs} {nanos}\n"));
        }
        Ok(Some(lines))
    }

    /// The container's root is mounted in a new one or, where the gate lets it, in the host's own.
    pub(super) fn require_mount_namespace(&self) -> Result<()> {
        if self.makes(Kind::Mount) || !self.contains(Kind::Mount) {
            return Ok(());
        }
        Err(Error::spec(
            "linux.namespaces: found a mount namespace joined by path, expected a new one: the root is mounted in it",
        ))
    }
}

fn join_path(kind: Kind, path: &Path) -> Result<PathBuf> {
    if !path.is_absolute() {
        return Err(Error::spec(format!(
            "{} namespace path {}: not absolute",
            kind.name(),
            path.display()
        )));
    }
    Ok(path.to_path_buf())
}

/// A host name needs a UTS namespace of the container's own.
pub(super) fn host_name(
    name: &Option<String>,
    what: &str,
    plan: &NamespacePlan,
) -> Result<Option<String>> {
    let Some(name) = super::non_empty(name.as_ref()) else { return Ok(None) };
    no_nul(&name, what)?;
    if !plan.contains(Kind::Uts) {
        return Err(Error::spec(format!("unable to set {what} without a private UTS namespace")));
    }
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::minimal;
    use serde_json::json;

    #[test]
    fn namespaces_are_made_or_joined() {
        let plan = minimal(|c| {
            c["linux"]["namespaces"] = json!([{"type": "network", "path": "/run/netns/a"}, {"type": "mount"}, {"type": "uts"}]);
            c["hostname"] = json!("h");
        })
        .unwrap();
        assert_eq!(plan.namespaces.new, Namespaces::NEWNS | Namespaces::NEWUTS);
        assert_eq!(plan.namespaces.joined[0].kind, Kind::Network);
        assert_eq!(plan.hostname.as_deref(), Some("h"));
    }

    #[test]
    fn contradictions_are_refused() {
        for (linux, expected) in [
            (
                json!({"namespaces": [{"type": "mount", "path": "/proc/1/ns/mnt"}]}),
                "joined by path",
            ),
            (json!({"namespaces": [{"type": "mount"}, {"type": "mount"}]}), "duplicated mount"),
            (
                json!({"namespaces": [{"type": "mount"}, {"type": "user"}]}),
                "no uid and gid mappings",
            ),
            (
                json!({"namespaces": [{"type": "mount"}], "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
                "isn't enabled",
            ),
            (
                json!({"namespaces": [{"type": "mount"}], "timeOffsets": {"boottime": {"secs": 1}}}),
                "time namespace is not enabled",
            ),
            (json!({"namespaces": [{"type": "mount"}, {"type": "net", "path": "x"}]}), "net"),
            (
                json!({"namespaces": [{"type": "mount"}, {"type": "uts", "path": "x"}]}),
                "not absolute",
            ),
            (
                json!({"namespaces": [{"type": "mount"}, {"type": "user"}], "gidMappings": [{"containerID": 4294967295_u32, "hostID": 1, "size": 2}], "uidMappings": []}),
                "out of range",
            ),
        ] {
            let error = minimal(|c| c["linux"] = linux.clone()).unwrap_err();
            assert!(error.to_string().contains(expected), "{linux}: {error}");
        }
        let error = minimal(|c| c["hostname"] = json!("h")).unwrap_err();
        assert_eq!(error.to_string(), "unable to set hostname without a private UTS namespace");
    }

    #[test]
    fn maps_are_written_as_the_kernel_reads_them() {
        let maps = [
            IdMap { inside: 0, outside: 100_000, size: 65_536 },
            IdMap { inside: 65_536, outside: 5, size: 1 },
        ];
        assert_eq!(IdMaps::text(&maps), "0 100000 65536\n65536 5 1\n");
    }
}
