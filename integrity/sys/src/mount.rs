//! What the new mount API needs beyond rustix: attributes of a mount or of a whole tree.
//!
//! Opening, configuring and moving mounts is rustix's (`fsopen`, `fsmount`, `open_tree`, `move_mount`).
//!
//! Source: mount_setattr(2); include/uapi/linux/mount.h, `struct mount_attr`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::{Error, Result};

/// Attributes of one mount, as `MOUNT_ATTR_*` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes(u64);

impl Attributes {
    /// Nothing is executed from here.
    pub const NOEXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);
    /// Device files do not work.
    pub const NODEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// Set-user-ID and file capabilities do not work.
    pub const NOSUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// Symbolic links are not followed (Linux 5.14).
    pub const NOSYMFOLLOW: Self = Self(libc::MOUNT_ATTR_NOSYMFOLLOW);
    /// Access times of directories are not updated.
    pub const NODIRATIME: Self = Self(libc::MOUNT_ATTR_NODIRATIME);
    /// Access times are not updated.
    pub const NOATIME: Self = Self(libc::MOUNT_ATTR_NOATIME);
    /// Every access time is updated.
    pub const STRICTATIME: Self = Self(libc::MOUNT_ATTR_STRICTATIME);
    /// The three bits of which an access time mode is one value; clear them to set one.
    pub const ATIME_MODE: Self = Self(libc::MOUNT_ATTR__ATIME);
    /// Nothing is written through here.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);

    /// No attribute; as an access time mode: relatime.
    #[must_use]
    pub const fn none() -> Self {
        Self(0)
    }

    /// Both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those that are in `other`, too.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` are here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bits as `fsmount` and `mount_setattr` take them.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// How mounts made on one side of a copy show on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither side sees the other's.
    Private,
    /// Both sides see each other's.
    Shared,
    /// This side sees the original's, not the reverse.
    Slave,
    /// Private, and not to be bind-mounted.
    Unbindable,
}

impl Propagation {
    const fn bits(self) -> u64 {
        // MS_* of <linux/mount.h>; written out because libc types them per architecture
        match self {
            Self::Unbindable => 1 << 17,
            Self::Private => 1 << 18,
            Self::Slave => 1 << 19,
            Self::Shared => 1 << 20,
        }
    }
}

/// The mount alone, or every mount beneath it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Only the mount of the descriptor.
    Mount,
    /// It and all mounts beneath it: all changed or none.
    Tree,
}

/// A change of attributes: `clear` first, then `set`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// Attributes to have afterwards.
    pub set: Attributes,
    /// Attributes not to have afterwards.
    pub clear: Attributes,
    /// Propagation to have afterwards.
    pub propagation: Option<Propagation>,
    /// A user namespace whose mappings translate owners on this mount (`MOUNT_ATTR_IDMAP`, Linux 5.12).
    pub id_map: Option<BorrowedFd<'a>>,
}

impl Change<'_> {
    /// Whether it changes nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.set.is_empty()
            && self.clear.is_empty()
            && self.propagation.is_none()
            && self.id_map.is_none()
    }
}

/// Changes attributes of the mount that `mount` is the root of.
///
/// # Errors
/// EINVAL if `mount` is not the root of a mount or the kernel does not know an attribute; EPERM for an attribute
/// that a user namespace has locked, or for an id map on a mount that is attached or mapped already.
pub fn set_attributes(mount: impl AsFd, extent: Extent, change: &Change<'_>) -> Result<()> {
    let fd = mount.as_fd().as_raw_fd();
    let id_map = change.id_map.map_or(0, |userns| userns.as_raw_fd());
    let id_map_bit = if change.id_map.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: change.set.bits() | id_map_bit,
        attr_clr: change.clear.bits(),
        propagation: change.propagation.map_or(0, Propagation::bits),
        userns_fd: u64::from(id_map.unsigned_abs()),
    };
    let recursive = match extent {
        Extent::Mount => 0,
        Extent::Tree => libc::AT_RECURSIVE,
    };
    // SAFETY: the path is a NUL-terminated literal and `attributes` is a live `struct mount_attr` of the size given;
    // the kernel copies both in and keeps neither pointer. `fd` and the user namespace are borrowed for the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 {
        return Ok(());
    }
    Err(Error::last(format!(
        "mount_setattr(fd {fd}, {extent:?}, set {:#x}, clear {:#x}, propagation {:?})",
        attributes.attr_set, attributes.attr_clr, change.propagation
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

    #[expect(clippy::print_stdout, reason = "a skipped test says so")]
    fn tmpfs() -> Option<std::os::fd::OwnedFd> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        rustix::mount::fsconfig_create(&context).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Some(rustix::mount::fsmount(&context, flags, MountAttrFlags::empty()).unwrap())
    }

    #[test]
    fn a_detached_mount_becomes_read_only() {
        let Some(mount) = tmpfs() else { return };
        rustix::fs::mkdirat(&mount, "before", 0o755.into()).unwrap();
        let change = Change {
            set: Attributes::READ_ONLY.union(Attributes::NOEXEC),
            propagation: Some(Propagation::Private),
            ..Change::default()
        };
        set_attributes(&mount, Extent::Tree, &change).unwrap();
        let refused = rustix::fs::mkdirat(&mount, "after", 0o755.into()).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::ROFS);
    }

    #[test]
    fn a_directory_that_is_no_mount_is_refused_with_the_call() {
        let Some(mount) = tmpfs() else { return };
        rustix::fs::mkdirat(&mount, "dir", 0o755.into()).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let dir = rustix::fs::openat(&mount, "dir", flags, 0.into()).unwrap();
        let change = Change { set: Attributes::READ_ONLY, ..Change::default() };
        let error = set_attributes(&dir, Extent::Mount, &change).unwrap_err();
        assert_eq!(error.errno(), Some(rustix::io::Errno::INVAL));
        assert!(error.to_string().contains("mount_setattr(fd"), "{error}");
    }
}
