//! One control group as a directory handle: its files are reached from the handle, never by walking a path again.

use std::ffi::{CString, OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir as Listing, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Error;

/// Cgroup filesystems have no links and no mounts inside; anything else there is somebody's trick.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// `CGROUP_SUPER_MAGIC` of include/uapi/linux/magic.h.
const CGROUP_MAGIC: u64 = 0x0027_e0eb;
/// `CGROUP2_SUPER_MAGIC` of include/uapi/linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Which of the kernel's two interfaces a hierarchy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// Whether [`Dir::make_child`] made the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    Now,
    Before,
}

/// A control group: an open directory, and its path for messages and the state file.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: String,
}

impl Dir {
    /// Opens the root of a mounted hierarchy and asks its filesystem what it is.
    ///
    /// # Errors
    /// [`Error::NotCgroup`] if something else is mounted there.
    pub(super) fn mount(path: &str) -> Result<(Self, Version), Error> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|source| Error::Call { call: "open", path: path.to_owned(), source })?;
        let magic = rustix::fs::fstatfs(&fd)
            .map_err(|source| Error::Call { call: "fstatfs", path: path.to_owned(), source })?
            .f_type;
        let version = match u64::try_from(magic) {
            Ok(CGROUP_MAGIC) => Version::V1,
            Ok(CGROUP2_MAGIC) => Version::V2,
            _ => return Err(Error::NotCgroup { path: path.to_owned() }),
        };
        Ok((Self { fd, path: path.to_owned() }, version))
    }

    /// Any directory, for tests of what is written where.
    #[cfg(test)]
    pub(super) fn pretend(path: &std::path::Path) -> Self {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap();
        Self { fd, path: path.to_str().unwrap().to_owned() }
    }

    /// The path as the host names it.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// A second handle on the same control group.
    pub(super) fn again(&self) -> Result<Self, Error> {
        let fd = self.fd.try_clone().map_err(|error| self.io("dup", &error))?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// Opens the child `name`; `None` if there is none.
    pub(super) fn child(&self, name: impl AsRef<OsStr>) -> Result<Option<Self>, Error> {
        let (name, shown) = (name.as_ref(), name.as_ref().to_string_lossy());
        match rustix::fs::openat2(&self.fd, name, DIRECTORY, Mode::empty(), BENEATH) {
            Ok(fd) => Ok(Some(Self { fd, path: self.join(&shown) })),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(source) => Err(self.call("openat2", &shown, source)),
        }
    }

    /// Opens the control group above; not to be called on a hierarchy's root.
    pub(super) fn above(&self) -> Result<Self, Error> {
        let resolve =
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let fd = rustix::fs::openat2(&self.fd, "..", DIRECTORY, Mode::empty(), resolve)
            .map_err(|source| self.call("openat2", "..", source))?;
        let path = self.path.rsplit_once('/').map_or("", |(above, _)| above);
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Makes the child `name` (0755) if it is not there, and opens it.
    pub(super) fn make_child(&self, name: &str) -> Result<(Self, Made), Error> {
        let made = match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => Made::Now,
            Err(Errno::EXIST) => Made::Before,
            Err(source) => return Err(self.call("mkdir", name, source)),
        };
        match self.child(name)? {
            Some(dir) => Ok((dir, made)),
            None => Err(self.call("openat2", name, Errno::NOENT)),
        }
    }

    /// Removes the child `name`; `Ok` if it is gone already.
    pub(super) fn remove_child(&self, name: impl AsRef<OsStr>) -> Result<(), Error> {
        let name = name.as_ref();
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(source) => Err(self.call("rmdir", &name.to_string_lossy(), source)),
        }
    }

    /// Names of the control groups directly below, as they are: a container may have made them, and need not use text.
    pub(super) fn children(&self) -> Result<Vec<OsString>, Error> {
        let listing =
            Listing::read_from(&self.fd).map_err(|source| self.call("readdir", "", source))?;
        let mut names = Vec::new();
        for entry in listing {
            let entry = match entry {
                Ok(entry) => entry,
                // removed while we read
                Err(Errno::NOENT | Errno::NODEV) => break,
                Err(source) => return Err(self.call("readdir", "", source)),
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if entry.file_type() == FileType::Directory && name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Names of its files; none once it is gone.
    pub(super) fn files(&self) -> Vec<String> {
        let entries = Listing::read_from(&self.fd).into_iter().flatten().map_while(Result::ok);
        let files = entries.filter(|entry| entry.file_type() == FileType::RegularFile);
        files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Whether the control group has `file`.
    pub(super) fn has(&self, file: &str) -> bool {
        let path = CString::new(file).unwrap_or_default();
        rustix::fs::statat(&self.fd, &path, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Reads `file` whole.
    pub(super) fn read(&self, file: &str) -> Result<String, Error> {
        let mut text = String::new();
        std::fs::File::from(self.open(file, OFlags::RDONLY)?)
            .read_to_string(&mut text)
            .map_err(|error| self.io_on("read", file, &error))?;
        Ok(text)
    }

    /// Reads `file` as one number; `max` is the largest.
    pub(super) fn read_number(&self, file: &str) -> Result<u64, Error> {
        let text = self.read(file)?;
        match text.trim() {
            "max" => Ok(u64::MAX),
            // v1 prints "unlimited" as the largest multiple of a page, which fits
            number => number.parse().map_err(|_cause: std::num::ParseIntError| Error::Content {
                path: self.join(file),
                found: number.to_owned(),
                expected: "a number",
            }),
        }
    }

    /// Writes `value` to `file` in one call.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        let fd = self.open(file, OFlags::WRONLY)?;
        std::fs::File::from(fd).write_all(value.as_bytes()).map_err(|error| Error::Write {
            path: self.join(file),
            value: value.to_owned(),
            source: errno_of(&error),
        })
    }

    /// Opens `file` of this control group.
    pub(super) fn open(&self, file: &str, flags: OFlags) -> Result<OwnedFd, Error> {
        rustix::fs::openat2(&self.fd, file, flags | OFlags::CLOEXEC, Mode::empty(), BENEATH)
            .map_err(|source| self.call("openat2", file, source))
    }

    /// The directory's descriptor itself, for clone3 and bpf(2).
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn join(&self, name: &str) -> String {
        match name {
            "" => self.path.clone(),
            name => format!("{}/{name}", self.path),
        }
    }

    fn call(&self, call: &'static str, name: &str, source: Errno) -> Error {
        Error::Call { call, path: self.join(name), source }
    }

    fn io(&self, call: &'static str, error: &std::io::Error) -> Error {
        self.io_on(call, "", error)
    }

    fn io_on(&self, call: &'static str, file: &str, error: &std::io::Error) -> Error {
        self.call(call, file, errno_of(error))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
