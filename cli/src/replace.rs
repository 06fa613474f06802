//! Writing a file so that it is there whole or not at all.
//!
//! Temporary file in the same directory, fsync, rename, fsync of the directory. The temporary file is removed when
//! anything fails.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file that takes its name when it is complete.
pub(crate) struct Replacement {
    file: NamedTempFile,
}

impl Replacement {
    /// Starts a file that will be `path`, with these permission bits.
    pub(crate) fn of(path: &Path, mode: u32) -> Result<Self> {
        let file = tempfile::Builder::new()
            .prefix(".hallmark-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(directory(path))
            .map_err(Error::file("make a file beside", path))?;
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))
            .map_err(Error::file("set the mode of", path))?;
        Ok(Self { file })
    }

    /// Puts it in place, over what was there.
    pub(crate) fn commit(self, path: &Path) -> Result<()> {
        self.file.as_file().sync_all().map_err(Error::file("write", path))?;
        self.file
            .persist(path)
            .map_err(|error| error.error)
            .map_err(Error::file("replace", path))?;
        let folder = directory(path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file("sync", folder))
    }
}

impl Write for Replacement {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes `path` whole.
pub(crate) fn replace(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut file = Replacement::of(path, mode)?;
    file.write_all(bytes).map_err(Error::file("write", path))?;
    file.commit(path)
}

/// The directory that `path` lies in.
pub(crate) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
