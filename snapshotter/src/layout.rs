//! The directories: what lies where, who may read it, and how a file gets there.
//!
//! ```text
//! <root>  (0700)                       <state>  (0711)
//! ├── hallmark.redb                    ├── l/<name>        mount points of layers
//! ├── layers/<diffID hex>.erofs        └── devices/        activation records
//! ├── claims/<StackId>.json
//! └── snapshots/<id>/{fs,work}
//! ```
//! A file is written under a name that begins with `.new-`, synced, and renamed: what has its name is whole. What
//! still begins with `.new-` at start was cut off, and is removed.

use std::fs::{DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hallmark_verity::DiffId;

use crate::error::{Error, Result};

/// How a file's name begins until it is whole.
pub(crate) const UNFINISHED: &str = ".new-";

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// What outlives a reboot.
    pub(crate) root: PathBuf,
    /// What does not.
    pub(crate) state: PathBuf,
    /// The claims directory.
    pub(crate) claims: PathBuf,
}

impl Layout {
    /// Makes the directories that are missing and sets the mode of all.
    pub(crate) fn prepare(&self) -> Result<()> {
        for (directory, mode) in [
            (self.root.clone(), 0o700),
            (self.layers(), 0o700),
            (self.snapshots(), 0o700),
            (self.claims.clone(), 0o700),
            (self.state.clone(), 0o711),
            (self.lowers(), 0o711),
            (self.devices(), 0o700),
        ] {
            let shown = directory.display().to_string();
            DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&directory)
                .map_err(Error::io(format!("mkdir {shown}")))?;
            std::fs::set_permissions(&directory, Permissions::from_mode(mode))
                .map_err(Error::io(format!("chmod {mode:o} {shown}")))?;
        }
        Ok(())
    }

    /// The layer images.
    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// A layer's image.
    pub(crate) fn layer(&self, diff_id: &DiffId) -> PathBuf {
        self.layers().join(image_name(diff_id))
    }

    /// The directories of snapshots.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// A snapshot's directory.
    pub(crate) fn snapshot(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// What a snapshot adds or hides: overlayfs's upper.
    pub(crate) fn upper(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("fs")
    }

    /// overlayfs's work directory.
    pub(crate) fn work(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("work")
    }

    /// Which snapshot has this upper.
    pub(crate) fn id_of_upper(&self, upper: &Path) -> Option<u64> {
        let id = upper.parent()?.file_name()?.to_str()?.parse().ok()?;
        (self.upper(id) == upper).then_some(id)
    }

    /// The mount points of layers.
    pub(crate) fn lowers(&self) -> PathBuf {
        self.state.join("l")
    }

    /// The activation records.
    pub(crate) fn devices(&self) -> PathBuf {
        self.state.join("devices")
    }
}

/// The file name of a layer's image.
pub(crate) fn image_name(diff_id: &DiffId) -> String {
    format!("{}.erofs", diff_id.to_hex())
}

/// A file in the making: gone when dropped, there for good after [`publish`](Self::publish), or in two steps after
/// [`synced`](Self::synced), which may take as long as the disk does, and [`Synced::named`], which does not.
#[derive(Debug)]
pub(crate) struct Unfinished {
    /// Empty, open for reading and writing.
    pub(crate) file: File,
    path: PathBuf,
    directory: PathBuf,
}

impl Unfinished {
    /// A new file in `directory`, mode 0600.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        // one daemon has these directories to itself, and what a former one left was removed at start
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{UNFINISHED}{number}"));
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(Error::io(format!("create {}", path.display())))?;
        Ok(Self { file, path, directory: directory.to_owned() })
    }

    /// Syncs it, gives it its name and syncs the directory: after this it survives a power cut.
    pub(crate) fn publish(self, name: &str) -> Result<()> {
        self.synced()?.named(name)
    }

    /// Its bytes survive a power cut; it has no name yet.
    pub(crate) fn synced(self) -> Result<Synced> {
        self.file.sync_all().map_err(Error::io(format!("fsync {}", self.path.display())))?;
        Ok(Synced(self))
    }
}

/// A whole file that lacks its name.
#[derive(Debug)]
pub(crate) struct Synced(Unfinished);

impl Synced {
    /// Gives it its name and syncs the directory: after this it survives a power cut.
    pub(crate) fn named(self, name: &str) -> Result<()> {
        let Unfinished { path, directory, .. } = &self.0;
        let to = directory.join(name);
        let what = format!("rename {} to {}", path.display(), to.display());
        std::fs::rename(path, &to).map_err(Error::io(what))?;
        sync_directory(directory)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After `publish` there is nothing of this name; before it, the error that got us here is the one to tell,
        // and what is left is removed at the next start.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Makes what happened to the names in a directory survive a power cut.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    let what = || format!("fsync {}", directory.display());
    File::open(directory).and_then(|opened| opened.sync_all()).map_err(Error::io(what()))
}

/// Writes a whole small file by the same steps.
pub(crate) fn write_file(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut unfinished = Unfinished::create(directory)?;
    let what = format!("write {}", unfinished.path.display());
    unfinished.file.write_all(bytes).map_err(Error::io(what))?;
    unfinished.publish(name)
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io(format!("rm {}", path.display()))),
    }
}

/// The names in a directory, in no order. Names that are not UTF-8 are none of ours and left out.
pub(crate) fn names_in(directory: &Path) -> Result<Vec<String>> {
    let what = || format!("list {}", directory.display());
    let entries = std::fs::read_dir(directory).map_err(Error::io(what()))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
    let names: std::io::Result<Vec<Option<String>>> = names.collect();
    Ok(names.map_err(Error::io(what()))?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(directory: &Path) -> Layout {
        Layout {
            root: directory.join("root"),
            state: directory.join("state"),
            claims: directory.join("root/claims"),
        }
    }

    #[test]
    fn only_the_upper_of_a_snapshot_has_an_id() {
        let layout = layout(Path::new("/x"));
        assert_eq!(layout.id_of_upper(&layout.upper(17)), Some(17));
        for foreign in
            ["/x/root/snapshots/17/work", "/x/root/snapshots/017/fs", "/y/17/fs", "/", ""]
        {
            assert_eq!(layout.id_of_upper(Path::new(foreign)), None, "{foreign}");
        }
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let unfinished = Unfinished::create(directory.path()).unwrap();
        assert_eq!(names_in(directory.path()).unwrap().len(), 1);
        drop(unfinished);
        assert!(names_in(directory.path()).unwrap().is_empty());
        write_file(directory.path(), "whole", b"bytes").unwrap();
        assert_eq!(names_in(directory.path()).unwrap(), ["whole"]);
        assert_eq!(std::fs::read(directory.path().join("whole")).unwrap(), b"bytes");
    }

    #[test]
    fn the_directories_have_their_modes() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(directory.path());
        layout.prepare().unwrap();
        layout.prepare().unwrap();
        for (path, mode) in [(&layout.root, 0o700), (&layout.state, 0o711), (&layout.claims, 0o700)]
        {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o7777, mode);
        }
    }
}
