//! The root file system, built from the judged descriptors as a detached mount.
//!
//! It is made in the host's mount and user namespaces, because overlayfs takes lowers only of the caller's mount
//! namespace, and an overlay of a user namespace does not honour `trusted.overlay.opaque`: deleted files would
//! reappear. The container's first process attaches it; on the host nothing is mounted.
//!
//! Every option is set here and none is taken over: the defaults are module parameters that differ between hosts, and
//! `metacopy` or `redirect_dir` in an upper would graft files of one layer onto another.
//!
//! Source: Linux Documentation/filesystems/overlayfs.rst; `lowerdir+` is Linux 6.8.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hallmark_sys::procfs::Procfs;
use hallmark_trust::gate::LaunchPermit;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::aside;
use super::audit::AuditPass;
use super::handover::{Access, Durability, IdMaps};
use super::stack::Lower;
use super::upper::Writable;
use crate::error::{Context, Error, Result};

/// What allows a stack to be mounted. Mounting consumes it.
#[derive(Debug)]
pub(super) enum Warrant {
    /// The gate's permit.
    Permit(LaunchPermit),
    /// None is needed: the refusal was written down.
    Audit(AuditPass),
}

/// What the mount is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    /// Top first.
    pub(super) lowers: &'a [Lower],
    pub(super) writable: Option<&'a Writable>,
    pub(super) label: Option<&'a str>,
    pub(super) durability: Durability,
    pub(super) access: Access,
    pub(super) id_maps: Option<&'a IdMaps>,
}

/// Switches that would let an upper, or the host's defaults, change what the layers mean.
const OFF: [(&str, &str); 5] = [
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
    ("index", "off"),
    ("nfs_export", "off"),
    ("xino", "off"),
];

/// Mounts the stack, detached. A single lower without an upper is shown as it is, or, if it needs a label or owners of
/// its own, above an empty file system: overlayfs wants two.
///
/// # Errors
/// What the kernel says, with its explanation; a permit for another number of layers.
pub(super) fn build(warrant: Warrant, proc: &Procfs, parts: &Parts<'_>) -> Result<OwnedFd> {
    if let Warrant::Permit(permit) = &warrant
        && permit.stack().len() != parts.lowers.len()
    {
        let (found, expected) = (parts.lowers.len(), permit.stack().len());
        return Err(Error::system(format!("{found} lowers, expected the permit's {expected}")));
    }
    match (parts.lowers, parts.writable) {
        ([lower], None) if parts.label.is_none() && parts.id_maps.is_none() => {
            clone(lower.fd.as_fd(), Access::ReadOnly)
        }
        ([_], None) => aside::overlay(proc, parts),
        _ if parts.id_maps.is_some() => aside::overlay(proc, parts),
        _ => of_descriptors(proc, parts),
    }
}

/// The whole root file system from one directory, without layers: only audit mode gets this far.
pub(super) fn plain(
    _pass: AuditPass,
    directory: BorrowedFd<'_>,
    access: Access,
) -> Result<OwnedFd> {
    clone(directory, access)
}

/// A detached bind of exactly this directory, without what is mounted beneath.
pub(super) fn clone(directory: BorrowedFd<'_>, access: Access) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(directory, "", flags).context(|| "open_tree(lower)")?;
    if access == Access::ReadOnly {
        use hallmark_sys::mount::{Attributes, Change, Extent, set_attributes};
        let change = Change { set: Attributes::READ_ONLY, ..Change::default() };
        set_attributes(&mount, Extent::Mount, &change)?;
    }
    Ok(mount)
}

/// The overlay of these very descriptors, which are of the caller's mount namespace.
pub(super) fn of_descriptors(proc: &Procfs, parts: &Parts<'_>) -> Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context(|| "fsopen(overlay)")?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(&context, key, value)
            .map_err(|errno| explained(&context, &format!("overlay {key}={value}"), errno))
    };
    for lower in parts.lowers {
        set("lowerdir+", &proc.path_of(lower.fd.as_fd()))?;
    }
    if let Some(writable) = parts.writable {
        set("upperdir", &proc.path_of(writable.upper.as_fd()))?;
        set("workdir", &proc.path_of(writable.work.as_fd()))?;
    }
    for (key, value) in OFF {
        set(key, value)?;
    }
    if let Some(label) = parts.label {
        set("context", label)?;
    }
    if parts.durability == Durability::Volatile {
        fsconfig_set_flag(&context, "volatile")
            .map_err(|errno| explained(&context, "overlay volatile", errno))?;
    }
    fsconfig_create(&context).map_err(|errno| explained(&context, "overlay", errno))?;
    let attributes = match parts.access {
        Access::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Access::ReadWrite => MountAttrFlags::empty(),
    };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| explained(&context, "fsmount(overlay)", errno))
}

/// The errno and what the kernel wrote into the context's message queue: `e overlay: …`.
fn explained(context: &OwnedFd, what: &str, errno: rustix::io::Errno) -> Error {
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        let message = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        messages.push(message.trim_end().to_owned());
        if length == 0 {
            break;
        }
    }
    let messages = messages.join(", ");
    let error = Error::from(errno).within(what.to_owned());
    if messages.is_empty() { error } else { error.within(messages) }
}
