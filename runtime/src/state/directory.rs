//! The directory of one container below `--root`, held by descriptor.
//!
//! ```text
//! <--root>/<id>/          0700, made exclusively: whoever makes it owns the id
//!     cgroups-path        where the control groups are in every hierarchy; from before they are made
//!     state.json          written by temporary file and rename
//!     start.sock          there while the container is created and not yet started
//! ```

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::ContainerId;
use crate::error::{Context, Error, ErrorKind, Result};

const STATE: &str = "state.json";
const START: &str = "start.sock";
const CGROUPS_PATH: &str = "cgroups-path";
/// Most bytes of a state file: a configuration of 16 MiB and what is around it.
const MAX_STATE_BYTES: u64 = 17 << 20;

/// The directory that holds all containers of one caller (`--root`).
#[derive(Debug)]
pub(crate) struct RootDirectory(OwnedFd);

/// One container's directory.
#[derive(Debug)]
pub(crate) struct Directory {
    root: OwnedFd,
    fd: OwnedFd,
    id: ContainerId,
}

fn open_dir(parent: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

impl RootDirectory {
    /// Opens `--root`, making it if need be. It must be a real directory that nobody else writes to.
    ///
    /// # Errors
    /// If it is a link, belongs to somebody else, or is writable by others.
    pub(crate) fn open_or_make(path: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o711);
        builder.create(path).context(|| format!("make --root {}", path.display()))?;
        match Self::open(path)? {
            Some(root) => Ok(root),
            None => Err(Error::system(format!("--root {}: vanished", path.display()))),
        }
    }

    /// Opens `--root` if it is there.
    ///
    /// # Errors
    /// As [`open_or_make`](Self::open_or_make).
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let name = || format!("--root {}", path.display());
        let fd = match open_dir(rustix::fs::CWD, path) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno).context(name),
        };
        let stat = rustix::fs::fstat(&fd).context(name)?;
        let euid = rustix::process::geteuid().as_raw();
        if stat.st_uid != euid || stat.st_mode & 0o022 != 0 {
            return Err(Error::system(format!(
                "{}: found owner {} and mode {:o}, expected owner {euid} and nobody else writing",
                name(),
                stat.st_uid,
                stat.st_mode & 0o7777
            )));
        }
        Ok(Some(Self(fd)))
    }

    /// Makes the directory of a new container.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if the id is taken.
    pub(crate) fn make(&self, id: &ContainerId) -> Result<Directory> {
        match rustix::fs::mkdirat(&self.0, id.as_str(), Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(Error::new(
                    ErrorKind::Exists,
                    "container with given ID already exists",
                ));
            }
            Err(errno) => return Err(errno).context(|| format!("make state directory of {id}")),
        }
        self.container(id)
    }

    /// Opens the directory of a container.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none.
    pub(crate) fn container(&self, id: &ContainerId) -> Result<Directory> {
        let fd = match open_dir(self.0.as_fd(), Path::new(id.as_str())) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(not_found()),
            Err(errno) => return Err(errno).context(|| format!("open state directory of {id}")),
        };
        let root = rustix::io::fcntl_dupfd_cloexec(&self.0, 0).context(|| "dup --root")?;
        Ok(Directory { root, fd, id: id.clone() })
    }

    /// Every directory here whose name is an id.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn ids(&self) -> Result<Vec<ContainerId>> {
        let mut ids = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0).context(|| "read --root")? {
            let entry = entry.context(|| "read --root")?;
            let id = entry.file_name().to_str().ok().and_then(|name| ContainerId::parse(name).ok());
            ids.extend(id);
        }
        ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(ids)
    }
}

/// runc's words, which callers look for.
pub(crate) fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "container does not exist")
}

impl Directory {
    pub(crate) fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Waits until nobody else changes this container's state, and keeps others waiting while this value lives.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the container was deleted meanwhile.
    pub(crate) fn lock(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::flock(&self.fd, FlockOperation::LockExclusive))
            .context(|| format!("lock state of {}", self.id))?;
        match rustix::fs::fstat(&self.fd).context(|| "fstat state directory")?.st_nlink {
            0 => Err(not_found()),
            _ => Ok(()),
        }
    }

    /// Lets others change this container's state. Said and not left to the descriptor's end: a process that was cloned
    /// meanwhile holds the same lock.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn unlock(&self) -> Result<()> {
        rustix::fs::flock(&self.fd, FlockOperation::Unlock)
            .context(|| format!("unlock state of {}", self.id))
    }

    /// Replaces the state file.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn write_state(&self, text: &str) -> Result<()> {
        self.write(STATE, text)
    }

    /// Notes where the control groups will be, for whoever removes what an interrupted `create` has left.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn write_cgroups_path(&self, path: &str) -> Result<()> {
        self.write(CGROUPS_PATH, path)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let new = format!(".{name}");
        let what = || format!("write {name} of {}", self.id);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(&self.fd, new.as_str(), flags, mode).context(what)?;
        std::fs::File::from(fd).write_all(text.as_bytes()).context(what)?;
        rustix::fs::renameat(&self.fd, new.as_str(), &self.fd, name).context(what)
    }

    /// Reads the state file.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none: the container was never made whole.
    pub(crate) fn read_state(&self) -> Result<String> {
        self.read(STATE)
    }

    /// What [`write_cgroups_path`](Self::write_cgroups_path) noted.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if nothing is noted: no control group was made.
    pub(crate) fn read_cgroups_path(&self) -> Result<String> {
        self.read(CGROUPS_PATH)
    }

    fn read(&self, name: &str) -> Result<String> {
        let what = || format!("read {name} of {}", self.id);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(not_found()),
            Err(errno) => return Err(errno).context(what),
        };
        let mut text = String::new();
        std::fs::File::from(fd).take(MAX_STATE_BYTES).read_to_string(&mut text).context(what)?;
        Ok(text)
    }

    /// Whether the container waits for `start`.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn awaits_start(&self) -> Result<bool> {
        match rustix::fs::statat(&self.fd, START, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno).context(|| format!("stat {START} of {}", self.id)),
        }
    }

    /// The address of the socket on which the container waits for `start`; valid while this value lives.
    ///
    /// Through the descriptor, because the path itself may be longer than the 108 bytes of a socket address.
    pub(crate) fn start_address(&self) -> String {
        format!("/proc/self/fd/{}/{START}", self.fd.as_raw_fd())
    }

    /// From here on the container counts as started.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn remove_start(&self) -> Result<()> {
        match rustix::fs::unlinkat(&self.fd, START, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).context(|| format!("remove {START} of {}", self.id)),
        }
    }

    /// Removes the directory with all files in it.
    ///
    /// # Errors
    /// The kernel's; ENOTEMPTY if there is a directory in it, which is none of ours.
    pub(crate) fn remove(&self) -> Result<()> {
        let what = || format!("remove state of {}", self.id);
        for entry in rustix::fs::Dir::read_from(&self.fd).context(what)? {
            let entry = entry.context(what)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                rustix::fs::unlinkat(&self.fd, entry.file_name(), AtFlags::empty())
                    .context(what)?;
            }
        }
        rustix::fs::unlinkat(&self.root, self.id.as_str(), AtFlags::REMOVEDIR).context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        ContainerId::parse("c1").unwrap()
    }

    #[test]
    fn an_id_is_taken_once_and_free_again_after_removal() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootDirectory::open_or_make(&dir.path().join("a/b")).unwrap();
        let made = root.make(&id()).unwrap();
        assert_eq!(root.make(&id()).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(made.read_state().unwrap_err().kind(), ErrorKind::NotFound);
        made.write_state("{}").unwrap();
        assert_eq!(root.container(&id()).unwrap().read_state().unwrap(), "{}");
        assert_eq!(root.ids().unwrap(), [id()]);
        assert!(!made.awaits_start().unwrap());
        made.remove().unwrap();
        assert_eq!(made.lock().unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(root.container(&id()).unwrap_err().kind(), ErrorKind::NotFound);
        root.make(&id()).unwrap();
    }

    #[test]
    fn a_root_that_is_a_link_or_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        RootDirectory::open_or_make(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        RootDirectory::open(&link).unwrap_err();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = RootDirectory::open(&real).unwrap_err();
        assert!(error.to_string().contains("mode 777"), "{error}");
        assert!(RootDirectory::open(&dir.path().join("none")).unwrap().is_none());
    }
}
