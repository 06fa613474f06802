//! How much disk a snapshot takes.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// CRI asks for every active snapshot each ten seconds; a walk serves that many of its questions.
const FRESH: Duration = Duration::from_secs(30);
/// Answers remembered; when there are more, all are forgotten.
const REMEMBERED: usize = 10_000;

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
/// than a path can reach is not counted either.
fn walk(directory: &Path) -> Result<Usage> {
    let (mut usage, mut seen) = (Usage::default(), HashSet::new());
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let meta = match std::fs::symlink_metadata(&path) {
            Err(error) if is_unreachable(&error) => continue,
            meta => meta.map_err(Error::io(format!("stat {}", path.display())))?,
        };
        if seen.insert((meta.dev(), meta.ino())) {
            usage.size = usage.size.saturating_add(meta.blocks().saturating_mul(512));
            usage.inodes = usage.inodes.saturating_add(1);
        }
        if !meta.is_dir() {
            continue;
        }
        match std::fs::read_dir(&path) {
            Err(error) if is_unreachable(&error) => {}
            entries => {
                let entries = entries.map_err(Error::io(format!("list {}", path.display())))?;
                left.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
    }
    Ok(usage)
}

fn is_unreachable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidFilename, NotFound};
    matches!(error.kind(), NotFound | InvalidFilename)
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
