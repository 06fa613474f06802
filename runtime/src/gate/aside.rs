//! An overlay of lowers that are mounted for it alone, in a mount namespace that goes away again.
//!
//! **Other owners**, for a container with a user namespace of its own. The layers belong to root; without a map every file would have to be chowned, which copies it up, and under IPE a
//! copy does not run. So each judged lower is cloned, the clone gets the container's id map, and the overlay is built
//! from the clones.
//!
//! **An empty lower** below a single one that is to be shown under another label: overlayfs wants two.
//!
//! overlayfs takes detached id-mapped lowers since Linux 6.15 only. Attached ones it takes earlier, of the caller's
//! mount namespace: so a child with a mount namespace of its own, in the host's user namespace, attaches them and
//! builds the overlay, and the parent takes the mount from it. The namespace goes with the child; the mount stays.
//!
//! ```text
//! parent                                   child (NEWNS)
//! clone the judged lowers, map the clones
//! clone3 ───────────────────────────────►  make every mount private, attach the clones, open the upper again,
//!                                          build the overlay
//! read the number of its descriptor  ◄───  write it, or what went wrong
//! pidfd_getfd, close the pipe  ─────────►  end
//! ```

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use hallmark_sys::mount::{Attributes, Change, Extent, Propagation, set_attributes};
use hallmark_sys::process::{Clone, Cloned, Namespaces, Parent, clone3, exit_immediately};
use hallmark_sys::procfs::Procfs;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::process::{PidfdGetfdFlags, WaitId, WaitIdOptions, pidfd_getfd, waitid};

use super::handover::Access;
use super::handover::IdMaps;
use super::overlay::{self, Parts};
use super::stack::Lower;
use super::upper::Writable;
use crate::error::{Context, Error, Result};
use crate::idle;

/// Builds the overlay with every lower seen through the maps, if there are any.
///
/// # Errors
/// The kernel's; a process of several threads, which cannot be cloned.
pub(super) fn overlay(proc: &Procfs, parts: &Parts<'_>) -> Result<OwnedFd> {
    let namespace = parts.id_maps.map(|maps| user_namespace(proc, maps)).transpose()?;
    let own = |lower: &Lower| {
        let clone = overlay::clone(lower.fd.as_fd(), Access::ReadWrite)?;
        let id_map = namespace.as_ref().map(AsFd::as_fd);
        let change = Change { set: Attributes::READ_ONLY, id_map, ..Change::default() };
        set_attributes(&clone, Extent::Mount, &change)
            .context(|| format!("id map of {}", lower.name.display()))?;
        Ok(Lower { name: lower.name.clone(), fd: clone })
    };
    let mut lowers = parts.lowers.iter().map(own).collect::<Result<Vec<_>>>()?;
    if lowers.len() == 1 && parts.writable.is_none() {
        lowers.push(empty()?);
    }
    in_child(Namespaces::NEWNS, |answer, end| {
        let built = attached(proc, parts, &lowers);
        let text = match &built {
            Ok(mount) => format!("fd {}\n", mount.as_raw_fd()),
            Err(error) => error.to_string(),
        };
        tell(answer, &text, end);
    })
    .context(|| "root file system aside")
}

/// A file system with nothing in it, that nobody can write to.
fn empty() -> Result<Lower> {
    let what = || "empty tmpfs";
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context(what)?;
    fsconfig_set_string(&context, "mode", "0755").context(what)?;
    fsconfig_set_flag(&context, "ro").context(what)?;
    fsconfig_create(&context).context(what)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let fd = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context(what)?;
    Ok(Lower { name: "empty".into(), fd })
}

/// In the child: nothing that is mounted here shows on the host.
fn attached(proc: &Procfs, parts: &Parts<'_>, lowers: &[Lower]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).context(|| "open /")?;
    let private = Change { propagation: Some(Propagation::Private), ..Change::default() };
    set_attributes(&root, Extent::Tree, &private)?;
    for lower in lowers {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        // any directory will do, one upon the other: they are reached by descriptor
        move_mount(&lower.fd, "", CWD, "/sys", flags)
            .context(|| format!("attach {}", lower.name.display()))?;
    }
    let writable = parts.writable.map(Writable::open_again).transpose()?;
    overlay::of_descriptors(proc, &Parts { lowers, writable: writable.as_ref(), ..*parts })
}

/// A user namespace with these maps. It lives as long as its descriptor.
fn user_namespace(proc: &Procfs, maps: &IdMaps) -> Result<OwnedFd> {
    idle::user_namespace(proc, (&maps.uid, &maps.gid)).context(|| "id maps of the root file system")
}

/// Runs `work` in a child and takes the descriptor whose number it tells.
fn in_child(
    namespaces: Namespaces,
    work: impl FnOnce(PipeWriter, &mut PipeReader),
) -> Result<OwnedFd> {
    let (mut told, tell) = pipe()?;
    let (mut end, wait) = pipe()?;
    match clone3(&Clone { namespaces, cgroup: None, parent: Parent::Caller })? {
        Cloned::Child => {
            drop((told, wait));
            work(tell, &mut end);
            exit_immediately(0)
        }
        Cloned::Parent { pidfd, .. } => {
            drop((tell, end));
            let mut text = String::new();
            told.read_to_string(&mut text)?;
            let number = text.strip_prefix("fd ").and_then(|text| text.trim_end().parse().ok());
            let taken = match number {
                Some(number) => pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())
                    .context(|| "pidfd_getfd(overlay)"),
                None => Err(Error::system(text)),
            };
            drop(wait);
            reap(pidfd.as_fd())?;
            taken
        }
    }
}

/// Writes one message, and waits until the parent has what it needs.
fn tell(mut answer: PipeWriter, text: &str, end: &mut PipeReader) {
    // without a reader there is nobody left to tell
    drop(answer.write_all(text.as_bytes()));
    drop(answer);
    drop(end.read(&mut [0]));
}

fn reap(child: BorrowedFd<'_>) -> Result<()> {
    waitid(WaitId::PidFd(child), WaitIdOptions::EXITED).context(|| "waitid").map(drop)
}
