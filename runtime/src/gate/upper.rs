//! The upper directory: nobody judges what is in it, so it must be empty when a container starts for the first time.
//!
//! Else a `/bin/sh`, a whiteout or a metadata copy that redirects into another layer would lie over a stack whose
//! layers are all as sealed. At the first start the gate writes `trusted.hallmark.stack` on the work directory, which
//! the container cannot reach; later starts are accepted with the same stack.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hallmark_seal::StackId;
use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::refusal::Refusal;
use crate::error::{Context, Error, Result};

const STACK: &str = "trusted.hallmark.stack";
/// Attributes of overlayfs, by which it could find other files than the upper's own …
const OVERLAY: &[u8] = b"trusted.overlay.";
/// … and those that any mount leaves behind (containerd looks into an image before a container starts) and that
/// lead nowhere: Linux Documentation/filesystems/overlayfs.rst.
const HARMLESS: [&[u8]; 3] =
    [b"trusted.overlay.impure", b"trusted.overlay.origin", b"trusted.overlay.uuid"];

/// Whether the container wrote to its upper already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// It was never started: [`Writable::note`] has to be called before it is.
    First,
    /// It may go on with what it wrote.
    Later,
}

/// An upper and a work directory that are open.
#[derive(Debug)]
pub(super) struct Writable {
    pub(super) upper: OwnedFd,
    pub(super) work: OwnedFd,
    name: PathBuf,
    work_name: PathBuf,
}

impl Writable {
    pub(super) fn open(upper: &Path, work: &Path) -> Result<Self> {
        let (name, work_name) = (upper.to_owned(), work.to_owned());
        Ok(Self { upper: directory(upper)?, work: directory(work)?, name, work_name })
    }

    /// The same directories as another mount namespace shows them.
    ///
    /// # Errors
    /// The names lead to other directories there.
    pub(super) fn open_again(&self) -> Result<Self> {
        let again = Self::open(&self.name, &self.work_name)?;
        let same = same(&self.upper, &again.upper)? && same(&self.work, &again.work)?;
        if same {
            return Ok(again);
        }
        let name = self.name.display();
        Err(Error::system(format!("upper {name}: another directory in another mount namespace")))
    }

    /// Whether the container may go on with what it wrote, or has written nothing.
    ///
    /// # Errors
    /// The file system has no `trusted.` attributes, or could not be read.
    pub(super) fn belongs_to(&self, stack: StackId) -> Result<std::result::Result<Start, Refusal>> {
        let shown = self.name.display();
        if let Some(found) = self.noted().context(|| format!("work directory of {shown}"))? {
            let expected = stack.to_string();
            if found == expected.as_bytes() {
                return Ok(Ok(Start::Later));
            }
            let found = String::from_utf8_lossy(&found).into_owned();
            let upper = self.name.clone();
            return Ok(Err(Refusal::UpperOfOtherStack { upper, found, expected: stack }));
        }
        if let Some(found) = first_entry(&self.upper).context(|| format!("upper {shown}"))? {
            return Ok(Err(Refusal::UpperNotEmpty { upper: self.name.clone(), found }));
        }
        Ok(Ok(Start::First))
    }

    /// Notes on which stack the container writes from now on.
    ///
    /// # Errors
    /// The kernel's; EEXIST if another launch was faster.
    pub(super) fn note(&self, stack: StackId) -> Result<()> {
        rustix::fs::fsetxattr(&self.work, STACK, stack.to_string().as_bytes(), XattrFlags::CREATE)
            .context(|| format!("fsetxattr(work of {}, {STACK})", self.name.display()))
    }

    fn noted(&self) -> std::result::Result<Option<Vec<u8>>, Errno> {
        let mut value = Vec::with_capacity(128);
        match rustix::fs::fgetxattr(&self.work, STACK, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => Ok(Some(value)),
            Err(Errno::NODATA) => Ok(None),
            // longer than any StackId
            Err(Errno::RANGE) => Ok(Some(b"more than 128 bytes".to_vec())),
            Err(errno) => Err(errno),
        }
    }
}

fn directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .context(|| format!("open {}", path.display()))
}

fn same(a: &OwnedFd, b: &OwnedFd) -> Result<bool> {
    let stat = |fd: &OwnedFd| rustix::fs::fstat(fd).context(|| "fstat");
    let (a, b) = (stat(a)?, stat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// A file in the upper, or an attribute of overlayfs on it.
fn first_entry(upper: &OwnedFd) -> std::result::Result<Option<String>, Errno> {
    if let Some(name) = first_file(upper.as_fd())? {
        return Ok(Some(name));
    }
    let mut names = Vec::with_capacity(64 << 10);
    rustix::fs::flistxattr(upper, rustix::buffer::spare_capacity(&mut names))?;
    let mut names = names.split(|byte| *byte == 0);
    let found = names.find(|name| name.starts_with(OVERLAY) && !HARMLESS.contains(name));
    Ok(found.map(|name| String::from_utf8_lossy(name).into_owned()))
}

fn first_file(directory: BorrowedFd<'_>) -> std::result::Result<Option<String>, Errno> {
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
