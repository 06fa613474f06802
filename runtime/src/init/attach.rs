//! Copies of mounts, by descriptor: the sources of bind mounts, opened in the host's namespaces, or in the container
//! when their turn comes if they are beneath its root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use hallmark_sys::mount::{self, Change, Extent, Propagation};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::Init;
use super::root::{PointKind, Root};
use crate::error::{Context, Result};
use crate::spec::{IdMaps, MountKind, MountPlan, Plan, RootPropagation};

/// A detached copy of what a bind mount shows.
#[derive(Debug)]
pub(crate) struct Bind {
    pub(crate) tree: OwnedFd,
    pub(crate) kind: PointKind,
    pub(crate) content: Content,
}

/// Where a bind mount takes what it shows from.
#[derive(Debug)]
pub(crate) enum Source {
    Host(Bind),
    /// The container, as earlier mounts have made it: see [`Bind::inside`].
    Container,
}

/// What [`open_binds`] opens.
#[derive(Debug)]
pub(crate) struct Binds {
    /// For each mount of the plan, what it binds.
    pub(crate) sources: Vec<Option<Source>>,
    /// The id maps of those that are taken from the container, in order.
    pub(crate) later: Vec<Translation>,
}

/// The id map of a bind mount, in a user namespace that has it.
#[derive(Debug)]
pub(crate) struct Translation {
    namespace: OwnedFd,
    extent: Extent,
}

impl Translation {
    /// Gives `tree`, which is attached nowhere yet, the map; takes the rights of whoever mounted the file system.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn apply(&self, tree: BorrowedFd<'_>) -> Result<()> {
        let change = Change { id_map: Some(self.namespace.as_fd()), ..Change::default() };
        Ok(mount::set_attributes(tree, self.extent, &change)?)
    }
}

/// What a mount shows, as far as /proc cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Other,
    Procfs,
}

/// Opens the source of every bind mount of `plan` and copies its mount, while the host's paths and rights are at hand.
///
/// `volumes`: for each mount, what the gate judged, which is attached whatever the name of the source leads to by now.
/// `user_namespace` makes one with the given maps, for id-mapped mounts.
///
/// # Errors
/// A source that is not there; an id map that the kernel refuses.
pub(crate) fn open_binds(
    plan: &Plan,
    volumes: Vec<Option<OwnedFd>>,
    user_namespace: impl Fn(&IdMaps) -> Result<OwnedFd>,
) -> Result<Binds> {
    let mut binds = Binds { sources: Vec::with_capacity(plan.mounts.len()), later: Vec::new() };
    for (mount, volume) in plan.mounts.iter().zip(volumes) {
        let source = match mount.kind {
            MountKind::Bind(_) => {
                Some(open_one(mount, volume, plan, &user_namespace, &mut binds.later)?)
            }
            _ => None,
        };
        binds.sources.push(source);
    }
    Ok(binds)
}

fn open_one(
    mount: &MountPlan,
    volume: Option<OwnedFd>,
    plan: &Plan,
    user_namespace: &impl Fn(&IdMaps) -> Result<OwnedFd>,
    later: &mut Vec<Translation>,
) -> Result<Source> {
    let source = mount.source.as_deref().unwrap_or_else(|| Path::new("/"));
    let what =
        || format!("error mounting {:?} to rootfs at {:?}", source.display(), mount.destination);
    let translation = match &mount.id_map {
        Some(id_map) => {
            let maps = if id_map.maps.is_empty() { &plan.namespaces.id_maps } else { &id_map.maps };
            let namespace = user_namespace(maps).context(what)?;
            Some(Translation { namespace, extent: id_map.extent })
        }
        None => None,
    };
    let bind = match volume {
        Some(volume) => detached(volume, plan.root_propagation),
        None if mount.inside.is_some() => {
            later.extend(translation);
            return Ok(Source::Container);
        }
        None => open_bind(source, mount.extent(), plan.root_propagation),
    }
    .context(what)?;
    if let Some(translation) = translation {
        translation.apply(bind.tree.as_fd()).context(what)?;
    }
    Ok(Source::Host(bind))
}

impl Bind {
    /// What lies at `path` of the container now; the runtime gives it its id map, if it has one.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn inside(
        mount: &MountPlan,
        path: &str,
        root: &Root,
        init: &Init<'_>,
    ) -> Result<Self> {
        let found = root.open(path, OFlags::PATH).context(|| format!("open {path} of the root"))?;
        let bind = copy(&found, mount.extent(), init.plan.root_propagation)?;
        if mount.id_map.is_some() {
            init.common.end.offer_tree(bind.tree.as_fd())?;
        }
        Ok(bind)
    }
}

fn open_bind(source: &Path, extent: Extent, root: Option<RootPropagation>) -> Result<Bind> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, source, flags, Mode::empty())
        .context(|| format!("open {}", source.display()))?;
    copy(&fd, extent, root)
}

fn copy(fd: &OwnedFd, extent: Extent, root: Option<RootPropagation>) -> Result<Bind> {
    detached(clone_tree(fd.as_fd(), extent)?, root)
}

/// A detached mount, as a bind to be attached.
fn detached(tree: OwnedFd, root: Option<RootPropagation>) -> Result<Bind> {
    let mode = rustix::fs::fstat(&tree).context(|| "fstat")?.st_mode;
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => PointKind::Directory,
        _ => PointKind::File,
    };
    let magic = rustix::fs::fstatfs(&tree).context(|| "fstatfs")?.f_type;
    // what is mounted inside the container later must not show on the host, unless the whole root is to be shared
    let (propagation, extent) = match root {
        None => (Propagation::Slave, Extent::Tree),
        Some(root) => (root.kind, root.extent),
    };
    if propagation != Propagation::Unbindable {
        let change = Change { propagation: Some(propagation), ..Change::default() };
        mount::set_attributes(&tree, extent, &change)?;
    }
    let content = match u64::try_from(magic) {
        Ok(hallmark_sys::procfs::MAGIC) => Content::Procfs,
        _ => Content::Other,
    };
    Ok(Bind { tree, kind, content })
}

/// A detached copy of the mount that `fd` is in, starting at `fd`.
pub(super) fn clone_tree(fd: BorrowedFd<'_>, extent: Extent) -> Result<OwnedFd> {
    rustix::mount::open_tree(fd, "", copy_flags(extent)).context(|| "open_tree(OPEN_TREE_CLONE)")
}

/// Attaches a mount on top of `target`.
pub(super) fn move_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    rustix::mount::move_mount(mount, "", target, "", by_descriptor()).context(|| "move_mount")
}

/// Flags that name both ends of a move by descriptor alone.
fn by_descriptor() -> MoveMountFlags {
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
}

/// Flags of a copy of a mount, with or without what is mounted beneath.
fn copy_flags(extent: Extent) -> OpenTreeFlags {
    let one = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    match extent {
        Extent::Mount => one,
        Extent::Tree => one | OpenTreeFlags::AT_RECURSIVE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::minimal;
    use serde_json::json;

    #[test]
    fn a_judged_volume_is_bound_whatever_its_name_leads_to() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (judged, swapped) = (dir.path().join("judged"), dir.path().join("swapped"));
        std::fs::create_dir(&judged).unwrap();
        std::fs::create_dir(&swapped).unwrap();
        let bind = |at: &str| json!({"destination": at, "source": &swapped, "type": "bind"});
        let plan = minimal(|c| c["mounts"] = json!([bind("/a"), bind("/b")])).unwrap();
        let judged_volume = std::fs::File::open(&judged).unwrap();
        let volumes = vec![Some(clone_tree(judged_volume.as_fd(), Extent::Mount).unwrap()), None];
        let none = |_: &IdMaps| Err(crate::error::Error::spec("no maps"));
        let binds = open_binds(&plan, volumes, none).unwrap().sources;
        let inode = |source: &Option<Source>| match source {
            Some(Source::Host(bind)) => rustix::fs::fstat(&bind.tree),
            other => panic!("{other:?}"),
        };
        let expected = [&judged, &swapped].map(|path| rustix::fs::stat(path).unwrap().st_ino);
        assert_eq!([&binds[0], &binds[1]].map(|bind| inode(bind).unwrap().st_ino), expected);
    }
}
