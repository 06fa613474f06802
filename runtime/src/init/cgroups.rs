//! The `cgroup` mount: the container's view of control groups.
//!
//! | layout | own cgroup namespace | else |
//! |---|---|---|
//! | v2 | a new cgroup2 mount, or a bind of the container's directory where a user namespace may not make one | the same, or a bind of the host's tree |
//! | v1 | a tmpfs with a new mount of each hierarchy | a tmpfs with a bind of the container's directory in each |

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hallmark_sys::mount::{Attributes, Extent};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::root::{PointKind, Root};
use super::{attach, mounts};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::spec::{MountKind, MountPlan};
use hallmark_sys::procfs::Procfs;

/// What a cgroup mount shows.
#[derive(Debug)]
pub(crate) struct CgroupMounts {
    hierarchies: Hierarchies,
    view: View,
}

/// Whether the container has a cgroup namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Host,
    Private,
}

#[derive(Debug)]
enum Hierarchies {
    /// The container's directory.
    Unified(PathBuf),
    V1(Vec<Hierarchy>),
}

#[derive(Debug)]
struct Hierarchy {
    /// Last name of the host's mount point: `cpu,cpuacct`, `systemd`.
    name: String,
    /// For `fsconfig`: controllers, or `name=…`.
    options: Vec<String>,
    /// The container's directory.
    directory: PathBuf,
}

impl CgroupMounts {
    /// Reads where the hierarchies are mounted on the host.
    ///
    /// # Errors
    /// If mountinfo cannot be read, or the container is in no hierarchy.
    pub(crate) fn read(procfs: &Procfs, cgroup: &Cgroup, view: View) -> Result<Self> {
        let paths = cgroup.paths();
        let mut v1: Vec<Hierarchy> = Vec::new();
        for line in procfs.read_text("self/mountinfo")?.lines() {
            let Some((mount_point, options)) = v1_mount(line) else { continue };
            let directory = options.iter().find_map(|option| paths.get(option.as_str()));
            let name = Path::new(mount_point).file_name().and_then(|name| name.to_str());
            let (Some(directory), Some(name)) = (directory, name) else { continue };
            if !v1.iter().any(|other| other.name == name) {
                v1.push(Hierarchy { name: name.to_owned(), options, directory: directory.into() });
            }
        }
        let hierarchies = match (v1.is_empty(), paths.get("")) {
            (false, _) => Hierarchies::V1(v1),
            (true, Some(path)) => Hierarchies::Unified(path.into()),
            (true, None) => {
                return Err(Error::system("cgroup mount: the container is in no hierarchy"));
            }
        };
        Ok(Self { hierarchies, view })
    }
}

/// Mount point and controllers of a line of mountinfo, if it is a v1 hierarchy.
///
/// Source: proc_pid_mountinfo(5): the fifth field, and after ` - ` type, source and superblock options.
pub(crate) fn v1_mount(line: &str) -> Option<(&str, Vec<String>)> {
    let (before, after) = line.split_once(" - ")?;
    let mount_point = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    if after.next()? != "cgroup" {
        return None;
    }
    let ignored = ["rw", "ro", "xattr", "clone_children", "noprefix", "none", "seclabel"];
    let options = after.nth(1)?.split(',');
    let options =
        options.filter(|option| !ignored.contains(option) && !option.starts_with("release_agent="));
    Some((mount_point, options.map(str::to_owned).collect()))
}

pub(super) fn mount(mount: &MountPlan, shown: &CgroupMounts, root: &Root) -> Result<()> {
    match &shown.hierarchies {
        Hierarchies::Unified(directory) => unified(mount, directory, shown.view, root),
        Hierarchies::V1(hierarchies) => v1(mount, hierarchies, shown.view, root),
    }
}

fn unified(mount: &MountPlan, directory: &Path, view: View, root: &Root) -> Result<()> {
    let plan = plain(mount, MountKind::Cgroup, &mount.destination);
    let made = match mounts::file_system(&plan, "cgroup2", root, None) {
        Ok(made) => made,
        // a user namespace without a cgroup namespace may not, or not once more
        Err(error) if matches!(error.errno(), Some(Errno::PERM | Errno::BUSY)) => {
            let source =
                if view == View::Private { directory } else { Path::new("/sys/fs/cgroup") };
            bind(&plan, source, root).map_err(|second| second.within(error.to_string()))?
        }
        Err(error) => return Err(error),
    };
    mounts::finish(mount, made.as_fd())
}

fn v1(mount: &MountPlan, hierarchies: &[Hierarchy], view: View, root: &Root) -> Result<()> {
    let writable = mount.set.without(Attributes::READ_ONLY);
    let mut top = plain(mount, MountKind::Tmpfs(crate::spec::CopyUp::No), &mount.destination);
    top.source = Some("tmpfs".into());
    top.set = writable.union(Attributes::NOSUID).union(Attributes::NODEV).union(Attributes::NOEXEC);
    top.data = vec![("mode".to_owned(), Some("755".to_owned()))];
    let made = mounts::file_system(&top, "tmpfs", root, None)?;
    mounts::finish(mount, made.as_fd())?;
    for hierarchy in hierarchies {
        let destination = format!("{}/{}", mount.destination, hierarchy.name);
        let mut plan = plain(mount, MountKind::Cgroup, &destination);
        plan.set =
            plan.set.union(Attributes::NOSUID).union(Attributes::NODEV).union(Attributes::NOEXEC);
        if view == View::Private {
            plan.source = Some("cgroup".into());
            plan.data = hierarchy.options.iter().map(|option| option_pair(option)).collect();
            mounts::file_system(&plan, "cgroup", root, None)?;
        } else {
            bind(&plan, &hierarchy.directory, root)?;
        }
        links(&hierarchy.name, &mount.destination, root)?;
    }
    if mount.set.contains(Attributes::READ_ONLY) {
        let change =
            hallmark_sys::mount::Change { set: Attributes::READ_ONLY, ..Default::default() };
        hallmark_sys::mount::set_attributes(&made, Extent::Mount, &change)?;
    }
    Ok(())
}

fn option_pair(option: &str) -> (String, Option<String>) {
    match option.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (option.to_owned(), None),
    }
}

/// Several controllers in one hierarchy: each is found under its own name as well.
fn links(name: &str, destination: &str, root: &Root) -> Result<()> {
    if !name.contains(',') {
        return Ok(());
    }
    for controller in name.split(',') {
        let path = format!("{destination}/{controller}");
        let (directory, last) = root.parent(&path)?;
        match rustix::fs::symlinkat(name, &directory, last) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(|| format!("symlink {path}")),
        }
    }
    Ok(())
}

fn bind(plan: &MountPlan, source: &Path, root: &Root) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(CWD, source, flags, Mode::empty())
        .context(|| format!("open {}", source.display()))?;
    let tree = attach::clone_tree(from.as_fd(), Extent::Tree)?;
    let change = hallmark_sys::mount::Change { set: plan.set, ..Default::default() };
    hallmark_sys::mount::set_attributes(&tree, Extent::Mount, &change)?;
    let target = root.mount_point(&plan.destination, PointKind::Directory)?;
    mounts::guard(plan, target.as_fd(), attach::Content::Other, root)?;
    attach::move_to(tree.as_fd(), target.as_fd())?;
    Ok(tree)
}

/// `mount` with another kind and place, without what only the whole has.
fn plain(mount: &MountPlan, kind: MountKind, destination: &str) -> MountPlan {
    MountPlan {
        kind,
        destination: destination.to_owned(),
        data: Vec::new(),
        propagation: Vec::new(),
        ..mount.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_v1_hierarchies_are_seen() {
        let line = "33 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let (point, options) = v1_mount(line).unwrap();
        assert_eq!(point, "/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(options, ["cpu", "cpuacct"]);
        let named = "34 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";
        assert_eq!(v1_mount(named).unwrap().1, ["name=systemd"]);
        assert!(v1_mount("35 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw").is_none());
        assert!(v1_mount("").is_none());
    }
}
