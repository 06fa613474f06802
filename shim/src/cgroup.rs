//! Where a container's cgroup is, in either version, and reading its files.
//!
//! The place is taken from the first process' `/proc/PID/cgroup` and the mounts of `/proc/self/mountinfo`, once, right after
//! the container was made: later the process may be gone while its numbers are still wanted. A host whose controllers sit
//! on v1 hierarchies is v1, with or without a v2 hierarchy beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::process::Pid;

use crate::error::{Error, Result};

/// A container's cgroup directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cgroup {
    /// Controller name to directory.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
}

impl Cgroup {
    /// The cgroup `pid` is in.
    ///
    /// # Errors
    /// The process is gone, or it is in no cgroup that is mounted here.
    pub(crate) fn of(pid: Pid) -> Result<Self> {
        let file = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
        let memberships = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        let file = "/proc/self/mountinfo";
        let mounts = std::fs::read_to_string(file).map_err(Error::io("read", file))?;
        locate(&memberships, &mounts).ok_or_else(|| Error::Invalid {
            what: "cgroup of process",
            value: pid.as_raw_nonzero().to_string(),
            reason: "not below any mounted hierarchy".to_owned(),
        })
    }

    /// Every process in the container, those in cgroups it made for itself included.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let directory = match self {
            Self::V2(directory) => Some(directory),
            Self::V1(controllers) => ["pids", "devices", "memory", "cpu"]
                .iter()
                .find_map(|name| controllers.get(*name))
                .or_else(|| controllers.values().next()),
        };
        let mut pids = BTreeSet::new();
        if let Some(directory) = directory {
            collect_pids(directory, &mut pids);
        }
        pids.into_iter().collect()
    }
}

fn collect_pids(directory: &Path, into: &mut BTreeSet<u32>) {
    if let Some(text) = text(directory, "cgroup.procs") {
        into.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    // a cgroup that vanishes meanwhile has no processes
    for entry in directory.read_dir().into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&entry.path(), into);
        }
    }
}

/// The content of a file of a cgroup, `None` if this kernel or hierarchy has no such file.
pub(crate) fn text(directory: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(directory.join(file)).ok()
}

/// The number in a file; `max` and a missing file are `None`.
pub(crate) fn number<T: FromStr>(directory: &Path, file: &str) -> Option<T> {
    text(directory, file)?.trim().parse().ok()
}

/// The value of `key` in a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `memberships`: `ID:CONTROLLERS:PATH` lines (cgroups(7)); `mounts`: mountinfo (proc_pid_mountinfo(5)).
pub(crate) fn locate(memberships: &str, mounts: &str) -> Option<Cgroup> {
    let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
    let mut controllers = BTreeMap::new();
    let mut unified = None;
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (id, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        if id == "0" && names.is_empty() {
            let mount = mounts.iter().find(|mount| mount.controllers.is_none());
            unified = mount.and_then(|mount| mount.resolve(path));
            continue;
        }
        for name in names.split(',').filter(|name| !name.starts_with("name=")) {
            let has =
                |mount: &&Mount<'_>| mount.controllers.as_ref().is_some_and(|c| c.contains(&name));
            let mount = mounts.iter().find(has);
            if let Some(directory) = mount.and_then(|mount| mount.resolve(path)) {
                controllers.insert(name.to_owned(), directory);
            }
        }
    }
    match controllers.is_empty() {
        true => unified.map(Cgroup::V2),
        false => Some(Cgroup::V1(controllers)),
    }
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    /// `None` for the v2 hierarchy.
    controllers: Option<Vec<&'a str>>,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let controllers = match right.next()? {
            "cgroup" => Some(right.nth(1)?.split(',').collect()),
            "cgroup2" => None,
            _ => return None,
        };
        Some(Self { root, point, controllers })
    }

    fn resolve(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(self.root).ok()?;
        Some(Path::new(self.point).join(below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,name=systemd
29 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn hybrid_hosts_are_v1() {
        let memberships =
            "5:cpu,cpuacct:/default/a\n3:memory:/default/a\n1:name=systemd:/x\n0::/default/a\n";
        let expected = [
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct/default/a"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/default/a"),
            ("memory", "/sys/fs/cgroup/memory/default/a"),
        ];
        let expected = expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(locate(memberships, HYBRID), Some(Cgroup::V1(BTreeMap::from(expected))));
    }

    #[test]
    fn unified_hosts_are_v2() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        let path = "/system.slice/hallmark-a.scope";
        let expected = PathBuf::from("/sys/fs/cgroup/system.slice/hallmark-a.scope");
        assert_eq!(locate(&format!("0::{path}\n"), mounts), Some(Cgroup::V2(expected)));
        // mounted from a cgroup below the root, as in a nested container
        let nested = "30 24 0:26 /system.slice /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let expected = PathBuf::from("/sys/fs/cgroup/hallmark-a.scope");
        assert_eq!(locate(&format!("0::{path}\n"), nested), Some(Cgroup::V2(expected)));
        assert_eq!(locate("0::/elsewhere\n", nested), None);
    }

    #[test]
    fn this_process_is_somewhere() {
        let cgroup = Cgroup::of(rustix::process::getpid()).unwrap();
        assert!(cgroup.pids().contains(&std::process::id()), "{cgroup:?}");
    }

    #[test]
    fn keyed_values() {
        let text = "oom 3\noom_kill 2\n";
        assert_eq!(
            (keyed(text, "oom"), keyed(text, "oom_kill"), keyed(text, "x")),
            (Some(3), Some(2), None)
        );
    }
}
