//! A `/proc` that is known to be procfs, held by descriptor.
//!
//! A bind mount or a tmpfs over `/proc` could answer as it likes, and take what is written to it (labels, sysctls, id
//! maps: CVE-2019-19921, CVE-2025-52881). So the file system's type and the number of its root inode are compared, and
//! what is below is reached through this descriptor alone: a path that leaves it, follows a magic link or crosses a
//! mount is refused by the kernel.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// `PROC_SUPER_MAGIC` of Linux include/uapi/linux/magic.h.
pub const MAGIC: u64 = 0x9fa0;
/// `PROCFS_ROOT_INO` of Linux include/uapi/linux/fs.h (`PROC_ROOT_INO` before 6.18): no other inode of a procfs has it.
const ROOT_INODE: u64 = 1;
/// More than the mount table of a full node, in bytes.
const LIMIT: u64 = 64 << 20;

/// The root of a verified procfs, of the PID namespace of whoever mounted it; `self` in it follows the caller.
#[derive(Debug)]
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Opens and verifies `/proc`.
    ///
    /// # Errors
    /// The kernel's; malformed if `/proc` is another file system, or not the root of one.
    pub fn open() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root =
            rustix::fs::openat2(CWD, "/proc", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
                .map_err(|errno| Error::call("open /proc", errno))?;
        let found = file_system_magic(root.as_fd());
        let found = found.map_err(|errno| Error::call("fstatfs /proc", errno))?;
        let stat = rustix::fs::fstat(&root).map_err(|errno| Error::call("fstat /proc", errno))?;
        let inode = stat.st_ino;
        if found == MAGIC && inode == ROOT_INODE {
            return Ok(Self(root));
        }
        Err(Error::malformed(
            "/proc",
            format!(
                "found file system type {found:#x} and root inode {inode}, expected procfs: \
                 {MAGIC:#x} and {ROOT_INODE}"
            ),
        ))
    }

    /// Opens `path`, relative to the root, as a file of this very procfs.
    ///
    /// # Errors
    /// The kernel's; XDEV if something is mounted on the way, LOOP for a magic link.
    pub fn open_file(&self, path: &str, access: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.0, path, access | OFlags::CLOEXEC, Mode::empty(), resolve)
            .map_err(|errno| Error::call(format!("open /proc/{path}"), errno))
    }

    /// Opens what the magic link `path` stands for: the one kind of link that is followed, and only as the last name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_link(&self, path: &str) -> Result<OwnedFd> {
        let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
        let directory = self.open_file(directory, OFlags::PATH | OFlags::DIRECTORY)?;
        rustix::fs::openat(&directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::call(format!("open /proc/{path}"), errno))
    }

    /// Where what `fd` has open is, in this process' root.
    ///
    /// # Errors
    /// The kernel's.
    pub fn place_of(&self, fd: BorrowedFd<'_>) -> Result<PathBuf> {
        let directory = self.open_file("thread-self/fd", OFlags::PATH | OFlags::DIRECTORY)?;
        let number = fd.as_raw_fd().to_string();
        let link = rustix::fs::readlinkat(&directory, &number, Vec::new()).map_err(|errno| {
            Error::call(format!("read link /proc/thread-self/fd/{number}"), errno)
        })?;
        Ok(PathBuf::from(std::ffi::OsString::from_vec(link.into_bytes())))
    }

    /// A path by which the kernel reaches exactly the object that `fd` has open, where it takes a path only.
    ///
    /// It holds for this thread and as long as `fd` is open.
    #[must_use]
    pub fn path_of(&self, fd: BorrowedFd<'_>) -> String {
        format!("/proc/thread-self/fd/{}", fd.as_raw_fd())
    }

    /// Writes `value` in one call.
    ///
    /// # Errors
    /// The kernel's, of the open or of the write.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        let mut file = File::from(self.open_file(path, OFlags::WRONLY)?);
        file.write_all(value.as_bytes())
            .map_err(|error| Error::io(format!("write {value:?} to /proc/{path}"), &error))
    }

    /// Reads all of a file of at most 64 MiB.
    ///
    /// # Errors
    /// The kernel's; malformed if there is more.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let file = File::from(self.open_file(path, OFlags::RDONLY)?);
        let what = || format!("read /proc/{path}");
        let mut bytes = Vec::new();
        let read = file.take(LIMIT + 1).read_to_end(&mut bytes);
        let read = read.map_err(|error| Error::io(what(), &error))?;
        if u64::try_from(read).is_ok_and(|read| read <= LIMIT) {
            Ok(bytes)
        } else {
            Err(Error::malformed(what(), format!("more than {LIMIT} bytes")))
        }
    }

    /// The same as text.
    ///
    /// # Errors
    /// As [`read`](Self::read); malformed if it is not UTF-8.
    pub fn read_text(&self, path: &str) -> Result<String> {
        String::from_utf8(self.read(path)?)
            .map_err(|error| Error::malformed(format!("read /proc/{path}"), error.to_string()))
    }
}

/// `f_type` of the file system of a descriptor, whatever the width of the field.
///
/// # Errors
/// The kernel's.
pub fn file_system_magic(fd: BorrowedFd<'_>) -> std::result::Result<u64, Errno> {
    let statfs = rustix::fs::fstatfs(fd)?;
    Ok(u64::try_from(statfs.f_type).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_links_out_are_refused() {
        let proc = Procfs::open().unwrap();
        assert!(proc.read_text("self/stat").unwrap().contains('('));
        assert!(proc.read("thread-self/mountinfo").unwrap().windows(3).any(|w| w == b" / "));
        assert!(proc.read("self/root/etc/hostname").is_err(), "a magic link was followed");
        assert!(proc.read("../etc/hostname").is_err(), "the root was left");
        assert!(proc.open_link("self/ns/mnt").is_ok());
    }

    #[test]
    fn descriptors_have_names() {
        let proc = Procfs::open().unwrap();
        let fd = File::open("/sys").unwrap();
        assert_eq!(std::fs::read_link(proc.path_of(fd.as_fd())).unwrap(), PathBuf::from("/sys"));
        assert_eq!(proc.place_of(fd.as_fd()).unwrap(), PathBuf::from("/sys"));
        assert_eq!(file_system_magic(File::open("/proc").unwrap().as_fd()).unwrap(), MAGIC);
    }
}
