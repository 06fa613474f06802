//! Masked and read-only paths.
//!
//! The descriptor that was looked at is the one that is mounted on, and /dev/null is proved to be the null device, so
//! that nothing the image prepared takes its place (CVE-2025-31133).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hallmark_sys::mount::{self, Attributes, Change, Extent};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::{attach, rootfs};
use crate::error::{Context, Error, Result};

/// Makes what is at each path, and beneath, read-only. A path that is not there is passed over.
pub(super) fn read_only(paths: &[String]) -> Result<()> {
    for path in paths {
        one_read_only(path).context(|| format!("can't make {path:?} read-only"))?;
    }
    Ok(())
}

fn one_read_only(path: &str) -> Result<()> {
    let Some(target) = open(path)? else { return Ok(()) };
    let tree = attach::clone_tree(target.as_fd(), Extent::Tree)?;
    let change = Change { set: Attributes::READ_ONLY, ..Change::default() };
    mount::set_attributes(&tree, Extent::Tree, &change)?;
    attach::move_to(tree.as_fd(), target.as_fd())
}

/// Covers what is at each path: a file by the null device, a directory by an empty one. A path that is not there is
/// passed over.
pub(super) fn mask(paths: &[String], label: Option<&str>) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let null = null_device().context(|| "can't mask paths")?;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        one_mask(path, null.as_fd(), &mut empty, label)
            .context(|| format!("can't mask path {path:?}"))?;
    }
    Ok(())
}

fn one_mask(
    path: &str,
    null: BorrowedFd<'_>,
    empty: &mut Option<OwnedFd>,
    label: Option<&str>,
) -> Result<()> {
    let Some(target) = open(path)? else { return Ok(()) };
    let mode = rustix::fs::fstat(&target).context(|| "fstat")?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::Directory {
        let cover = attach::clone_tree(null, Extent::Mount)?;
        return attach::move_to(cover.as_fd(), target.as_fd());
    }
    match empty {
        // one empty directory covers them all; it can be copied once it is attached
        Some(first) => {
            let cover = attach::clone_tree(first.as_fd(), Extent::Mount)?;
            attach::move_to(cover.as_fd(), target.as_fd())
        }
        None => {
            let first = empty_directory(label)?;
            attach::move_to(first.as_fd(), target.as_fd())?;
            *empty = Some(first);
            Ok(())
        }
    }
}

fn open(path: &str) -> Result<Option<OwnedFd>> {
    match rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).context(|| "open"),
    }
}

fn null_device() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).context(|| "open /dev/null")?;
    if !rootfs::is_null(&rustix::fs::fstat(&null).context(|| "fstat /dev/null")?) {
        return Err(Error::spec("container's /dev/null is invalid"));
    }
    Ok(null)
}

/// A read-only tmpfs without room for anything.
fn empty_directory(label: Option<&str>) -> Result<OwnedFd> {
    let context =
        rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context(|| "fsopen(tmpfs)")?;
    for (key, value) in [("source", "tmpfs"), ("nr_blocks", "1"), ("nr_inodes", "1")] {
        rustix::mount::fsconfig_set_string(&context, key, value)
            .context(|| format!("fsconfig({key}={value})"))?;
    }
    if let Some(label) = label {
        rustix::mount::fsconfig_set_string(&context, "context", label)
            .context(|| format!("fsconfig(context={label})"))?;
    }
    rustix::mount::fsconfig_set_flag(&context, "ro").context(|| "fsconfig(ro)")?;
    rustix::mount::fsconfig_create(&context).context(|| "fsconfig(tmpfs, CREATE)")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .context(|| "fsmount(tmpfs)")
}
