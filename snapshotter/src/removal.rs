//! Removing what a container wrote.
//!
//! It may have made directories inside each other to any depth: neither our stack nor our descriptors may grow with
//! that, or one container could end the daemon, and again at each start. So nothing is descended into: the directories
//! inside one are moved up beside it first, and each is empty when its turn comes.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::{Errno, Result as Answer};

use crate::error::{Error, Result};

/// Removes a directory with all that is in it; one that is not there is fine.
pub(crate) fn remove_tree(directory: &Path) -> Result<()> {
    match tree(directory) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed.map_err(Error::errno(format!("rm -r {}", directory.display()))),
    }
}

fn tree(directory: &Path) -> Answer<()> {
    let top = Top { fd: open(CWD, directory)?, moved: 0 };
    top.empty()?;
    unlinkat(CWD, directory, AtFlags::REMOVEDIR)
}

/// The directory that is removed, where the others inside it come to lie.
struct Top {
    fd: OwnedFd,
    /// How many were moved, for names.
    moved: u64,
}

impl Top {
    /// Each pass takes away one level, and leaves what came while it went on to the next.
    fn empty(mut self) -> Answer<()> {
        loop {
            let mut found = false;
            for entry in Dir::read_from(&self.fd)? {
                let entry = entry?;
                if !is_own(entry.file_name()) {
                    found = true;
                    self.remove(entry.file_name())?;
                }
            }
            if !found {
                return Ok(());
            }
        }
    }

    fn remove(&mut self, name: &CStr) -> Answer<()> {
        if is_gone(self.fd.as_fd(), name)? {
            return Ok(());
        }
        let inside = open(self.fd.as_fd(), name)?;
        for entry in Dir::read_from(&inside)? {
            let entry = entry?;
            if !is_own(entry.file_name()) && !is_gone(inside.as_fd(), entry.file_name())? {
                self.take(inside.as_fd(), entry.file_name())?;
            }
        }
        is_gone(self.fd.as_fd(), name).map(drop)
    }

    /// Moves a directory up.
    fn take(&mut self, from: BorrowedFd<'_>, name: &CStr) -> Answer<()> {
        loop {
            self.moved = self.moved.wrapping_add(1);
            let to = format!(".moved-{}", self.moved);
            match renameat(from, name, &self.fd, to) {
                // something has that name; an empty directory would only be gone sooner
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                moved => return moved,
            }
        }
    }
}

fn open(parent: impl AsFd, name: impl rustix::path::Arg) -> Answer<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn is_own(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Removes a file or an empty directory; `false` for a directory that holds something.
fn is_gone(parent: BorrowedFd<'_>, name: &CStr) -> Answer<bool> {
    let removed = match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(parent, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    /// As a container can make it: each level from the one above, so that no path is ever too long.
    fn deep(top: &Path, levels: usize) {
        let mut here = open(CWD, top).unwrap();
        for _ in 0..levels {
            mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = open(&here, "d").unwrap();
        }
    }

    #[test]
    fn a_tree_goes_however_deep_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        let kept = directory.path().join("kept");
        std::fs::create_dir_all(top.join("a/b/c")).unwrap();
        std::fs::create_dir_all(top.join("a/.moved-1")).unwrap();
        std::fs::create_dir_all(top.join(".moved-1/x/y")).unwrap();
        std::fs::write(top.join("a/b/c/file"), "x").unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::os::unix::fs::symlink(&kept, top.join("a/link")).unwrap();
        std::fs::write(kept.join("file"), "").unwrap();
        deep(&top, 2000);
        let going = top.clone();
        // std::fs::remove_dir_all overflows it
        let small = std::thread::Builder::new().stack_size(64 << 10);
        small.spawn(move || remove_tree(&going)).unwrap().join().unwrap().unwrap();
        assert!(top.symlink_metadata().is_err() && kept.join("file").is_file());
        remove_tree(&top).unwrap();
    }

    #[test]
    fn only_directories_are_trees() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        remove_tree(&link).unwrap_err();
        assert!(target.is_dir() && link.symlink_metadata().is_ok());
    }
}
