//! A `/proc` that is known to be procfs.
//!
//! Two things are asked of it: this thread's mount table, and names for descriptors of ours
//! (`/proc/thread-self/fd/N`) where the kernel takes a path only. A bind mount or a tmpfs over `/proc`
//! could answer both as it likes; so its file system type and the number of its root inode are
//! compared, and nothing below is reached through a mount point.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// `PROC_SUPER_MAGIC` of Linux include/uapi/linux/magic.h.
const MAGIC: u64 = 0x9fa0;
/// `PROCFS_ROOT_INO` of Linux include/uapi/linux/fs.h (`PROC_ROOT_INO` before 6.18).
const ROOT_INODE: u64 = 1;
/// More than the mount table of a full node, in bytes.
const LIMIT: u64 = 64 << 20;

/// The root of a verified procfs.
#[derive(Debug)]
pub struct Procfs(OwnedFd);

/// Why `/proc` is not used.
#[derive(Debug, thiserror::Error)]
pub enum ProcfsError {
    /// Something could not be opened or read.
    #[error("/proc: {name}")]
    Io {
        /// What, below /proc; nothing for /proc itself.
        name: &'static str,
        /// The answer.
        source: std::io::Error,
    },
    /// It is another file system, or not the root of one.
    #[error(
        "/proc: file system type {found:#x} and root inode {inode}, expected procfs: {MAGIC:#x} and {ROOT_INODE}"
    )]
    NotProcfs {
        /// `f_type` of statfs.
        found: u64,
        /// Inode number.
        inode: u64,
    },
}

impl Procfs {
    /// Opens and verifies `/proc`.
    ///
    /// # Errors
    /// `/proc` cannot be opened, or is not procfs.
    pub fn open() -> Result<Self, ProcfsError> {
        let io = |e: rustix::io::Errno| ProcfsError::Io { name: "", source: e.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::NO_SYMLINKS;
        let root = rustix::fs::openat2(CWD, "/proc", flags, Mode::empty(), resolve).map_err(io)?;
        let found = file_system_magic(root.as_fd()).map_err(io)?;
        let inode = rustix::fs::fstat(&root).map_err(io)?.st_ino;
        if found == MAGIC && inode == ROOT_INODE {
            Ok(Self(root))
        } else {
            Err(ProcfsError::NotProcfs { found, inode })
        }
    }

    /// The mount table of this thread's mount namespace, `/proc/thread-self/mountinfo`.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn mountinfo(&self) -> Result<Vec<u8>, ProcfsError> {
        self.read("thread-self/mountinfo")
    }

    /// What the kernel was started with, `/proc/cmdline`.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn command_line(&self) -> Result<Vec<u8>, ProcfsError> {
        self.read("cmdline")
    }

    fn read(&self, name: &'static str) -> Result<Vec<u8>, ProcfsError> {
        let io = |source| ProcfsError::Io { name, source };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(&self.0, name, flags, Mode::empty(), resolve)
            .map_err(|e| io(e.into()))?;
        let mut bytes = Vec::new();
        File::from(fd).take(LIMIT).read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// A path by which the kernel reaches exactly the object that `fd` has open.
    ///
    /// It holds for this thread and as long as `fd` is open.
    pub fn path_of(&self, fd: BorrowedFd<'_>) -> String {
        format!("/proc/thread-self/fd/{}", fd.as_raw_fd())
    }
}

/// `f_type` of the file system of a descriptor, whatever the width of the field.
pub(crate) fn file_system_magic(fd: BorrowedFd<'_>) -> Result<u64, rustix::io::Errno> {
    let statfs = rustix::fs::fstatfs(fd)?;
    Ok(u64::try_from(statfs.f_type).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_proc_is_procfs_and_has_a_mount_table() {
        let proc = Procfs::open().unwrap();
        let table = proc.mountinfo().unwrap();
        assert!(table.windows(3).any(|w| w == b" / "));
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        let link = std::fs::read_link(proc.path_of(fd.as_fd())).unwrap();
        assert_eq!(link, dir.path());
    }
}
