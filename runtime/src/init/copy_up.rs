//! `tmpcopyup`: what a tmpfs is about to cover, copied into it by descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};

use crate::error::{Context, Error, Result};

/// Deeper trees are refused: each level keeps two descriptors open.
const MAX_DEPTH: usize = 100;

/// Copies everything in `from` to `to`: names, contents, owners and modes; no other attributes, as runc.
pub(super) fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    below(from, to, 0)
}

fn below(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::spec(format!("more than {MAX_DEPTH} directories inside each other")));
    }
    for entry in rustix::fs::Dir::read_from(from).context(|| "read directory")? {
        let entry = entry.context(|| "read directory")?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            one(from, to, name, depth).context(|| name.to_string_lossy().into_owned())?;
        }
    }
    Ok(())
}

fn one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    depth: usize,
) -> Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).context(|| "stat")?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, mode).context(|| "mkdir")?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let (inner_from, inner_to) = (open(from, name, flags)?, open(to, name, flags)?);
            below(inner_from.as_fd(), inner_to.as_fd(), depth + 1)?;
        }
        FileType::RegularFile => file(from, to, name, mode)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new()).context(|| "readlink")?;
            rustix::fs::symlinkat(&target, to, name).context(|| "symlink")?;
        }
        kind @ (FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice) => {
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev).context(|| "mknod")?;
        }
        FileType::Unknown => return Err(Error::spec("a file of unknown type")),
    }
    own(to, name, &stat)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // last, because a change of owner takes set-user-ID bits away, and mkdir the umask's
        rustix::fs::chmodat(to, name, mode, AtFlags::empty()).context(|| "chmod")?;
    }
    Ok(())
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &std::ffi::CStr, mode: Mode) -> Result<()> {
    // not blocking, should somebody put a fifo there meanwhile
    let source = open(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, flags, mode).context(|| "create")?;
    std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(target))
        .context(|| "copy")?;
    Ok(())
}

fn open(directory: BorrowedFd<'_>, name: &std::ffi::CStr, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(directory, name, flags | OFlags::CLOEXEC, Mode::empty()).context(|| "open")
}

fn own(to: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .context(|| "chown")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_tree_is_copied_and_links_are_not_followed() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(from.path().join("a/b")).unwrap();
        std::fs::write(from.path().join("a/b/file"), "text").unwrap();
        let modes = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode();
        let set_uid = std::fs::Permissions::from_mode(0o4755);
        std::fs::set_permissions(from.path().join("a/b/file"), set_uid).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.path().join("link")).unwrap();
        let open = |path: &std::path::Path| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
        };
        directory(open(from.path()).as_fd(), open(to.path()).as_fd()).unwrap();
        assert_eq!(std::fs::read_to_string(to.path().join("a/b/file")).unwrap(), "text");
        assert_eq!(modes(&to.path().join("a/b/file")) & 0o7777, 0o4755);
        let link = std::fs::read_link(to.path().join("link")).unwrap();
        assert_eq!(link, std::path::Path::new("/etc/passwd"));
    }
}
