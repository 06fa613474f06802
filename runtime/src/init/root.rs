//! The container's root, held by descriptor, and paths resolved inside it by the kernel.
//!
//! Every lookup is `openat2` with `RESOLVE_IN_ROOT`: links in the image, absolute or with `..`, end inside the root,
//! whatever another process swaps meanwhile (CVE-2019-16884, CVE-2021-30465, CVE-2024-45310, CVE-2026-41579).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// How many links a path may go through before it counts as a loop, as in the kernel.
const MAX_LINKS: usize = 40;

/// The root of the container's own mount.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// What a mount point has to be if it must be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PointKind {
    Directory,
    File,
}

impl Root {
    /// Takes the root of a mount.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Makes it the working directory.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn enter(&self) -> Result<()> {
        rustix::process::fchdir(self).context(|| "fchdir(rootfs)")
    }

    /// Opens what `path` leads to.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlags::empty())
    }

    fn resolve(
        &self,
        path: &str,
        flags: OFlags,
        more: ResolveFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        loop {
            match rustix::fs::openat2(
                &self.0,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                // a rename raced with "..": the kernel asks to try again
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Where in the root `place` is, links resolved; `None` if something else is mounted there.
    ///
    /// For a process that has not entered the root yet: it has the host's /proc, which [`hallmark_sys::procfs`] made sure of.
    ///
    /// # Errors
    /// The kernel's; a place that was unlinked.
    pub(crate) fn path_of(&self, place: BorrowedFd<'_>) -> Result<Option<PathBuf>> {
        let mount = |fd: BorrowedFd<'_>| -> Result<u64> {
            let mask = rustix::fs::StatxFlags::MNT_ID;
            let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, mask).context(|| "statx")?;
            Ok(stat.stx_mnt_id)
        };
        if mount(place)? != mount(self.0.as_fd())? {
            return Ok(None);
        }
        let path = |fd: BorrowedFd<'_>| {
            let link = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
            std::fs::read_link(&link).context(|| link)
        };
        let (path, root) = (path(place)?, path(self.0.as_fd())?);
        let below = path.strip_prefix(&root).map_err(|_other: std::path::StripPrefixError| {
            let (path, root) = (path.display(), root.display());
            Error::system(format!("mount point {path}: expected a place below {root}"))
        })?;
        Ok(Some(Path::new("/").join(below)))
    }

    /// A place to mount on; what is missing on the way is made.
    ///
    /// # Errors
    /// The kernel's; a path that ends at the root itself.
    pub(crate) fn mount_point(&self, path: &str, kind: PointKind) -> Result<OwnedFd> {
        match self.existing_mount_point(path)? {
            Some(point) => Ok(point),
            None => self.below(self.make(path, kind)?, path),
        }
    }

    /// A place to mount on, if it is there.
    ///
    /// # Errors
    /// The kernel's; a path that ends at the root itself.
    pub(crate) fn existing_mount_point(&self, path: &str) -> Result<Option<OwnedFd>> {
        match self.open(path, OFlags::PATH) {
            Ok(point) => self.below(point, path).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).context(|| format!("mount point {path}")),
        }
    }

    fn below(&self, point: OwnedFd, path: &str) -> Result<OwnedFd> {
        if same(&point, &self.0)? {
            return Err(Error::spec(format!("mountpoint {path} is on the top of rootfs")));
        }
        Ok(point)
    }

    /// A directory to mount on that is reached without any link: for proc and sysfs, which other steps trust.
    ///
    /// # Errors
    /// If a link or something else than a directory is there (CVE-2019-19921, CVE-2023-28642).
    pub(crate) fn ordinary_directory(&self, path: &str, file_system: &str) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let ordinary = |errno| match errno {
            Errno::LOOP | Errno::NOTDIR => Error::spec(format!(
                "filesystem {file_system:?} must be mounted on ordinary directory"
            )),
            errno => Error::from(errno).within(format!("mount point {path}")),
        };
        match self.resolve(path, flags, ResolveFlags::NO_SYMLINKS) {
            Ok(point) => Ok(point),
            Err(Errno::NOENT) => {
                self.make(path, PointKind::Directory)?;
                self.resolve(path, flags, ResolveFlags::NO_SYMLINKS).map_err(ordinary)
            }
            Err(errno) => Err(ordinary(errno)),
        }
    }

    /// The directory that holds `path`, made if need be, and the last name of `path`.
    ///
    /// # Errors
    /// The kernel's; a path without a last name.
    pub(crate) fn parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() || name == "." || name == ".." {
            return Err(Error::spec(format!("{path}: names no file")));
        }
        let parent = if parent.is_empty() { "/" } else { parent };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let directory = match self.open(parent, flags) {
            Err(Errno::NOENT) => self.make(parent, PointKind::Directory)?,
            other => other.context(|| format!("open {parent}"))?,
        };
        Ok((directory, name))
    }

    /// Makes `path` and what is missing on the way, one name at a time, each looked up from the root again.
    ///
    /// A dangling link is followed as if its target were there: images count on it.
    fn make(&self, path: &str, kind: PointKind) -> Result<OwnedFd> {
        let mut left: Vec<String> = names(path);
        left.reverse();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            let parent = done.join("/");
            let here = self.open_at(&parent, OFlags::PATH | OFlags::DIRECTORY)?;
            done.push(name);
            let last = left.is_empty() && kind == PointKind::File;
            let name = done.last().map_or("", String::as_str);
            let made = if last {
                make_file(here.as_fd(), name)
            } else {
                make_directory(here.as_fd(), name)
            };
            match made {
                Ok(()) => continue,
                Err(Errno::EXIST) if !is_link(here.as_fd(), name)? => continue,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).context(|| format!("make {}", done.join("/"))),
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP).context(|| format!("make {path}"));
            }
            let target = rustix::fs::readlinkat(&here, name, Vec::new())
                .context(|| format!("read link {}", done.join("/")))?;
            let target =
                target.to_str().map_err(|error| Error::spec(format!("link {name}: {error}")))?;
            done.pop();
            if target.starts_with('/') {
                done.clear();
            }
            left.extend(names(target).into_iter().rev());
        }
        self.open_at(&done.join("/"), OFlags::PATH)
    }

    fn open_at(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        let path = if path.is_empty() { "/" } else { path };
        self.open(path, flags).context(|| format!("open {path}"))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn names(path: &str) -> Vec<String> {
    path.split('/').filter(|name| !matches!(*name, "" | ".")).map(str::to_owned).collect()
}

fn make_directory(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
}

fn make_file(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

fn is_link(parent: BorrowedFd<'_>, name: &str) -> Result<bool> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .context(|| format!("stat {name}"))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// Whether both are the same file seen through the same mount.
fn same(a: &OwnedFd, b: &OwnedFd) -> Result<bool> {
    let identity = |fd: &OwnedFd| -> Result<(u64, u64, u64)> {
        let mask = rustix::fs::StatxFlags::MNT_ID | rustix::fs::StatxFlags::INO;
        let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, mask).context(|| "statx")?;
        let device = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
        Ok((stat.stx_mnt_id, device, stat.stx_ino))
    };
    Ok(identity(a)? == identity(b)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = rustix::fs::open(dir.path().join("root"), flags, Mode::empty()).unwrap();
        (dir, Root::new(fd))
    }

    #[test]
    fn links_end_inside_the_root_and_dangling_ones_are_made() {
        let (dir, root) = root();
        let inside = dir.path().join("root");
        symlink("/etc/../../outside/deep", inside.join("a")).unwrap();
        symlink("../../../up", inside.join("b")).unwrap();
        for (path, made) in [("/a/x", "outside/deep/x"), ("/b", "up"), ("/c/d/../e", "c/e")] {
            root.mount_point(path, PointKind::Directory).unwrap();
            assert!(std::fs::metadata(inside.join(made)).unwrap().is_dir(), "{path} is not {made}");
        }
        root.mount_point("/b/file", PointKind::File).unwrap();
        assert!(std::fs::metadata(inside.join("up/file")).unwrap().is_file());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was made outside");
    }

    #[test]
    fn loops_end_and_the_root_is_no_mount_point() {
        let (dir, root) = root();
        symlink("loop2", dir.path().join("root/loop1")).unwrap();
        symlink("loop1", dir.path().join("root/loop2")).unwrap();
        root.mount_point("/loop1/x", PointKind::Directory).unwrap_err();
        symlink("/", dir.path().join("root/top")).unwrap();
        let error = root.mount_point("/top", PointKind::Directory).unwrap_err();
        assert!(error.to_string().contains("on the top of rootfs"), "{error}");
    }

    #[test]
    fn proc_behind_a_link_is_refused() {
        let (dir, root) = root();
        std::fs::create_dir(dir.path().join("root/real")).unwrap();
        symlink("real", dir.path().join("root/proc")).unwrap();
        std::fs::write(dir.path().join("root/sys"), b"").unwrap();
        for (path, name) in [("/proc", "proc"), ("/sys", "sysfs")] {
            let error = root.ordinary_directory(path, name).unwrap_err();
            assert!(error.to_string().contains("must be mounted on ordinary directory"), "{error}");
        }
        root.ordinary_directory("/new/proc", "proc").unwrap();
    }
}
