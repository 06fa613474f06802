//! How much disk a snapshot takes.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, statat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// CRI asks for every active snapshot each ten seconds; a walk serves that many of its questions.
const FRESH: Duration = Duration::from_secs(30);
/// Answers remembered; when there are more, all are forgotten.
const REMEMBERED: usize = 10_000;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Disk space and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes of allocated blocks.
    pub(crate) size: u64,
    /// Inodes, each counted once.
    pub(crate) inodes: u64,
}

/// Walks, remembered for a while.
#[derive(Debug, Default)]
pub(crate) struct Walks(Mutex<HashMap<u64, (Instant, Usage)>>);

impl Walks {
    /// The usage of the directory of snapshot `id`.
    pub(crate) fn of(&self, id: u64, directory: &Path) -> Result<Usage> {
        let remembered = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((walked, usage)) = remembered().get(&id)
            && walked.elapsed() < FRESH
        {
            return Ok(*usage);
        }
        let usage = walk(directory)?;
        let mut remembered = remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(id, (Instant::now(), usage));
        Ok(usage)
    }
}

/// A file's usage.
pub(crate) fn of_file(path: &Path) -> Result<Usage> {
    let meta =
        std::fs::symlink_metadata(path).map_err(Error::io(format!("stat {}", path.display())))?;
    Ok(Usage { size: meta.blocks().saturating_mul(512), inodes: 1 })
}

/// What comes and goes while we walk is counted or not: nobody can say which is right. What a container buried deeper
/// than a path can reach is not counted either. A container that runs in the directory may swap any name in it for a
/// link: the kernel resolves each path from the descriptor of the top, over no link and no mount.
fn walk(directory: &Path) -> Result<Usage> {
    let failed = |call: &str, path: &Path| {
        Error::errno(format!("{call} {}", directory.join(path).display()))
    };
    let top = rustix::fs::open(directory, DIRECTORY, Mode::empty())
        .map_err(failed("open", Path::new("")))?;
    let mut walk = Walk::default();
    let mut left = vec![PathBuf::from(".")];
    while let Some(path) = left.pop() {
        let opened = openat2(&top, &path, DIRECTORY, Mode::empty(), INSIDE);
        let opened = match opened.and_then(|opened| Ok((fstat(&opened)?, opened))) {
            Err(errno) if is_unreachable(errno) => continue,
            opened => opened.map_err(failed("open", &path))?,
        };
        let (stat, here) = opened;
        walk.count(&stat);
        for entry in Dir::read_from(&here).map_err(failed("list", &path))? {
            let entry = entry.map_err(failed("list", &path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let child = path.join(OsStr::from_bytes(name.to_bytes()));
            match statat(&here, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => left.push(child),
                Ok(stat) => walk.count(&stat),
                Err(errno) if is_unreachable(errno) => {}
                Err(errno) => return Err(failed("stat", &child)(errno)),
            }
        }
    }
    Ok(walk.usage)
}

#[derive(Default)]
struct Walk {
    usage: Usage,
    seen: HashSet<(u64, u64)>,
}

impl Walk {
    fn count(&mut self, stat: &Stat) {
        if self.seen.insert((stat.st_dev, stat.st_ino)) {
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            self.usage.size = self.usage.size.saturating_add(blocks.saturating_mul(512));
            self.usage.inodes = self.usage.inodes.saturating_add(1);
        }
    }
}

/// Gone, swapped for something that is no directory, covered by a mount, or too deep.
fn is_unreachable(errno: Errno) -> bool {
    let unreachable =
        [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::XDEV, Errno::NAMETOOLONG, Errno::AGAIN];
    unreachable.contains(&errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_inode_counts_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, vec![1; 8192]).unwrap();
        std::fs::hard_link(&file, directory.path().join("link")).unwrap();
        std::fs::create_dir(directory.path().join("dir")).unwrap();
        let usage = walk(directory.path()).unwrap();
        assert_eq!(usage.inodes, 3);
        assert!(usage.size >= 8192);
        assert_eq!(of_file(&file).unwrap().inodes, 1);
    }

    #[test]
    fn a_directory_swapped_for_a_link_leads_nowhere() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use std::sync::atomic::{AtomicBool, Ordering};
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("in"), directory.path().join("out"));
        for number in 0..100 {
            std::fs::create_dir_all(inside.join(format!("d/{number}"))).unwrap();
            std::fs::create_dir_all(outside.join(format!("{number}/{}", "x/".repeat(20)))).unwrap();
        }
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let most = 1 + 1 + 100 + 1;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let (a, b) = (inside.join("d"), inside.join("link"));
                    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
                }
            });
            let found: Vec<_> = (0..200).map(|_| walk(&inside)).collect();
            done.store(true, Ordering::Relaxed);
            for usage in found {
                assert!(usage.unwrap().inodes <= most);
            }
        });
    }

    #[test]
    fn an_answer_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let walks = Walks::default();
        let first = walks.of(1, directory.path()).unwrap();
        std::fs::write(directory.path().join("file"), "x").unwrap();
        assert_eq!(walks.of(1, directory.path()).unwrap(), first);
        assert_eq!(walks.of(2, directory.path()).unwrap().inodes, first.inodes + 1);
    }

    #[test]
    fn what_no_path_reaches_spoils_nothing() {
        use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
        let directory = tempfile::tempdir().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut here = openat(CWD, directory.path(), flags, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for _ in 0..30 {
            mkdirat(&here, name.as_str(), Mode::RWXU).unwrap();
            here = openat(&here, name.as_str(), flags, Mode::empty()).unwrap();
        }
        let inodes = walk(directory.path()).unwrap().inodes;
        assert!((15..31).contains(&inodes), "{inodes}");
    }
}
