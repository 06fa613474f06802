//! Volumes that may hold code, because what they show is sealed itself.
//!
//! **A layer**, mounted by itself: the mount is judged.
//!
//! **An image** that containerd mounted for a pod, as an overlay with an upper. What somebody else's overlay is made of
//! nobody can prove, so only the *names* of its lowers are taken, from the mount table. They are opened and judged as a
//! root file system's are, and a read-only overlay of these very descriptors is attached in the other's place. It shows
//! the image and no more: a mount that is to be written to, or whose upper holds anything, is left as it is, unverified.
//!
//! Source: Linux `fs/overlayfs/params.c`, `ovl_show_options`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hallmark_sys::procfs::Procfs;
use hallmark_trust::evidence::mountinfo;
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

use super::handover::{Access, Durability};
use super::overlay::{self, Parts, Warrant};
use super::stack::{Judge, Lower};
use super::{MountKind, MountRequest};
use crate::error::{Context, Error, Result};

/// The volume as a detached mount, if it may be launched by itself.
///
/// # Errors
/// What the kernel cannot be asked, or does not mount. A volume that is not sealed is none.
pub(super) fn verified(
    proc: &Procfs,
    judge: &Judge<'_>,
    mount: &MountRequest,
    label: Option<&str>,
) -> Result<Option<OwnedFd>> {
    let (MountKind::Bind, Some(source)) = (mount.kind, &mount.source) else { return Ok(None) };
    let Ok(lower) = Lower::open(source) else { return Ok(None) };
    if lower.is_erofs()? {
        let layer = [lower];
        let permitted = judge.judge(proc, &layer, &[], &[])?.result.is_ok();
        let [layer] = layer;
        let layer = || overlay::clone(layer.fd.as_fd(), Access::ReadOnly);
        return permitted.then(layer).transpose();
    }
    if mount.access == Access::ReadWrite {
        return Ok(None);
    }
    let lowers = names(proc, &lower)?;
    let lowers: Result<Vec<Lower>> = lowers.iter().map(|name| Lower::open(name)).collect();
    // a name that leads nowhere by now is no volume of ours
    let Ok(lowers) = lowers else { return Ok(None) };
    if lowers.is_empty() {
        return Ok(None);
    }
    let Ok(permit) = judge.judge(proc, &lowers, &[], &[])?.result else { return Ok(None) };
    let parts = Parts {
        lowers: &lowers,
        writable: None,
        label,
        durability: Durability::Durable,
        access: Access::ReadOnly,
        id_maps: None,
    };
    overlay::build(Warrant::Permit(permit), proc, &parts).map(Some)
}

/// The lowers, top first, of the overlay whose root this is and to which nothing was written; else none.
fn names(proc: &Procfs, directory: &Lower) -> Result<Vec<PathBuf>> {
    let what = || format!("mount of {}", directory.name.display());
    let statx = rustix::fs::statx(&directory.fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .context(what)?;
    let table =
        proc.read("thread-self/mountinfo").map_err(|error| Error::system(super::chain(&error)))?;
    let mounts = mountinfo::parse(&table)
        .map_err(|line| Error::system(format!("mount table: {line:?} is no mount")))?;
    let is_root = statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let overlay = mounts.iter().find(|mount| {
        is_root && mount.id == statx.stx_mnt_id && mount.kind == "overlay" && mount.root == "/"
    });
    let covered = |id| mounts.iter().any(|mount| mount.parent == id && mount.id != id);
    let Some(overlay) = overlay.filter(|overlay| !covered(overlay.id)) else {
        return Ok(Vec::new());
    };
    match parts(&overlay.super_options) {
        Some((lowers, None)) => Ok(lowers),
        Some((lowers, Some(upper))) if is_empty(&upper) => Ok(lowers),
        _ => Ok(Vec::new()),
    }
}

/// Lowers and upper, as the kernel tells them. `None` for a name that it had to escape, or could only tell in part:
/// layers have no such names.
fn parts(options: &[String]) -> Option<(Vec<PathBuf>, Option<PathBuf>)> {
    let absolute =
        |name: &str| (name.starts_with('/') && !name.contains('\\')).then(|| PathBuf::from(name));
    let (mut lowers, mut upper) = (Vec::new(), None);
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", names)) => {
                for name in names.split(':') {
                    lowers.push(absolute(name)?);
                }
            }
            Some(("lowerdir+", name)) => lowers.push(absolute(name)?),
            Some(("upperdir", name)) => upper = Some(absolute(name)?),
            Some(("datadir+", _)) => return None,
            _ => {}
        }
    }
    Some((lowers, upper))
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Vec<String> {
        line.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn parts_are_named_as_the_kernel_lists_them() {
        let lowers = vec![PathBuf::from("/l/b"), PathBuf::from("/l/a")];
        let old = "rw,lowerdir=/l/b:/l/a,upperdir=/u,workdir=/w,index=off,volatile";
        assert_eq!(parts(&options(old)), Some((lowers.clone(), Some("/u".into()))));
        let new = "ro,lowerdir+=/l/b,lowerdir+=/l/a,redirect_dir=nofollow";
        assert_eq!(parts(&options(new)), Some((lowers, None)));
        assert_eq!(parts(&options("rw,size=4k")), Some((Vec::new(), None)));
    }

    #[test]
    fn a_name_in_part_is_no_name() {
        for line in [
            "ro,lowerdir=b:a",
            "ro,lowerdir=/l/b::/l/a",
            "ro,lowerdir=/l/b\\054c",
            "ro,lowerdir=/l/b,upperdir=u",
            "ro,lowerdir+=/l/b,datadir+=/d",
        ] {
            assert_eq!(parts(&options(line)), None, "{line}");
        }
    }
}
