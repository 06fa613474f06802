//! The host's procfs, held by descriptor, so that no mount a container brings along can stand in for it.
//!
//! Labels, sysctls and id maps are written through this descriptor and nothing else: a path that leaves it, follows a
//! magic link or crosses a mount is refused by the kernel (CVE-2019-19921, CVE-2025-52881).

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Context, Error, Result};

/// From <linux/magic.h>.
pub(crate) const PROC_SUPER_MAGIC: u64 = 0x9fa0;
/// `PROC_ROOT_INO` of <linux/proc_ns.h>: only the root of a procfs has this inode number.
const PROC_ROOT_INO: u64 = 1;

/// The root of a procfs, of the PID namespace of whoever opened it; `self` in it follows the caller.
#[derive(Debug)]
pub(crate) struct Procfs(OwnedFd);

impl Procfs {
    /// Opens /proc and makes sure that it is one.
    ///
    /// # Errors
    /// If /proc is no procfs or not its root.
    pub(crate) fn open() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open("/proc", flags, Mode::empty()).context(|| "open /proc")?;
        let magic = rustix::fs::fstatfs(&root).context(|| "fstatfs /proc")?.f_type;
        let inode = rustix::fs::fstat(&root).context(|| "fstat /proc")?.st_ino;
        if u64::try_from(magic) != Ok(PROC_SUPER_MAGIC) || inode != PROC_ROOT_INO {
            return Err(Error::system(format!(
                "/proc: found a file system {magic:#x} with root inode {inode}, expected the root of a procfs"
            )));
        }
        Ok(Self(root))
    }

    /// Opens `path`, relative to the root, as a file of this very procfs.
    ///
    /// # Errors
    /// The kernel's; XDEV if something is mounted on the way.
    pub(crate) fn open_file(&self, path: &str, access: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.0, path, access | OFlags::CLOEXEC, Mode::empty(), resolve)
            .context(|| format!("open /proc/{path}"))
    }

    /// Opens what the magic link `path` stands for: the one kind of link that is followed, and only as the last name.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open_link(&self, path: &str) -> Result<OwnedFd> {
        let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
        let directory = self.open_file(directory, OFlags::PATH | OFlags::DIRECTORY)?;
        rustix::fs::openat(&directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open /proc/{path}"))
    }

    /// Where what `fd` has open is, in this process' root.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn place_of(&self, fd: BorrowedFd<'_>) -> Result<PathBuf> {
        let directory = self.open_file("thread-self/fd", OFlags::PATH | OFlags::DIRECTORY)?;
        let number = fd.as_raw_fd().to_string();
        let link = rustix::fs::readlinkat(&directory, &number, Vec::new())
            .context(|| format!("read link /proc/thread-self/fd/{number}"))?;
        Ok(PathBuf::from(std::ffi::OsString::from_vec(link.into_bytes())))
    }

    /// Writes `value` in one call.
    ///
    /// # Errors
    /// The kernel's, of the open or of the write.
    pub(crate) fn write(&self, path: &str, value: &str) -> Result<()> {
        let mut file = std::fs::File::from(self.open_file(path, OFlags::WRONLY)?);
        file.write_all(value.as_bytes()).context(|| format!("write {value:?} to /proc/{path}"))
    }

    /// Reads all of a file of at most 1 MiB.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn read(&self, path: &str) -> Result<String> {
        let file = std::fs::File::from(self.open_file(path, OFlags::RDONLY)?);
        let mut text = String::new();
        file.take(1 << 20).read_to_string(&mut text).context(|| format!("read /proc/{path}"))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_links_out_are_refused() {
        let proc = Procfs::open().unwrap();
        assert!(proc.read("self/stat").unwrap().contains('('));
        assert!(proc.read("self/root/etc/hostname").is_err(), "a magic link was followed");
        assert!(proc.read("../etc/hostname").is_err(), "the root was left");
    }
}
