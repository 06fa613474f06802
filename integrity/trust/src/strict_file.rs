//! Reading files that only root can have written.
//!
//! The node's configuration, keys, revocations and policy, and the files our own daemons hand
//! over, count only when root owns them and nobody else may write them. A symbolic link at the
//! end of the path is refused, and so is anything but a regular file.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum StrictFileError {
    /// There is none.
    #[error("{path}: no such file", path = path.display())]
    Missing {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// It could not be opened or read.
    #[error("{path}: {call}", path = path.display())]
    Io {
        /// The file that was asked for.
        path: PathBuf,
        /// The call that did not work.
        call: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
    /// It is not what only root can have written.
    #[error("{path}: {found}, expected {expected}", path = path.display())]
    Refused {
        /// The file that was asked for.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

/// Who may read the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Anybody.
    Any,
    /// Only its owner: mode 0600 or less.
    OwnerOnly,
}

/// Reads a regular file of at most `limit` bytes that root owns and nobody else may write.
///
/// # Errors
/// [`StrictFileError::Missing`] if there is no such file, else what is wrong with it.
pub fn read(path: &Path, limit: u64, readers: Readers) -> Result<Vec<u8>, StrictFileError> {
    let fd = open(path)?;
    let refused = |found: String, expected: String| StrictFileError::Refused {
        path: path.to_owned(),
        found,
        expected,
    };
    let io = |call, source| StrictFileError::Io { path: path.to_owned(), call, source };
    let stat = rustix::fs::fstat(fd.as_fd()).map_err(|e| io("fstat", e.into()))?;
    trusted(&stat, readers).map_err(|(found, expected)| refused(found, expected.to_owned()))?;
    let mut bytes = Vec::new();
    File::from(fd)
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| io("read", e))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= limit) {
        return Ok(bytes);
    }
    Err(refused(format!("more than {limit} bytes"), format!("at most {limit} bytes")))
}

/// Opens without following a link at the end, and without waiting for a pipe's writer.
fn open(path: &Path) -> Result<OwnedFd, StrictFileError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|e| match e {
        rustix::io::Errno::NOENT => StrictFileError::Missing { path: path.to_owned() },
        rustix::io::Errno::LOOP => StrictFileError::Refused {
            path: path.to_owned(),
            found: "a symbolic link".to_owned(),
            expected: "a regular file".to_owned(),
        },
        e => StrictFileError::Io { path: path.to_owned(), call: "openat2", source: e.into() },
    })
}

fn trusted(stat: &Stat, readers: Readers) -> Result<(), (String, &'static str)> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err((format!("a {kind:?}"), "a regular file"));
    }
    if stat.st_uid != 0 {
        return Err((format!("owned by uid {}", stat.st_uid), "owned by root"));
    }
    let mode = stat.st_mode & 0o7777;
    let (forbidden, expected) = match readers {
        Readers::Any => (0o022, "no write permission for group and others"),
        Readers::OwnerOnly => (0o077, "no permission for group and others"),
    };
    if mode & forbidden == 0 { Ok(()) } else { Err((format!("mode {mode:04o}"), expected)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn with_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_roots_files_are_read() {
        if !crate::testing::is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "hello").unwrap();
        with_mode(&file, 0o644);
        let any = |path: &Path| read(path, 5, Readers::Any);
        assert_eq!(any(&file).unwrap(), b"hello");
        let message = |path: &Path| any(path).unwrap_err().to_string();

        assert!(matches!(read(&file, 4, Readers::Any), Err(StrictFileError::Refused { .. })));
        assert!(read(&file, 5, Readers::OwnerOnly).unwrap_err().to_string().contains("mode 0644"));
        with_mode(&file, 0o620);
        assert!(message(&file).contains("mode 0620"), "{}", message(&file));
        with_mode(&file, 0o602);
        assert!(message(&file).contains("mode 0602"));
        with_mode(&file, 0o600);
        assert_eq!(read(&file, 5, Readers::OwnerOnly).unwrap(), b"hello");
        chown(&file, Some(1), None).unwrap();
        assert!(message(&file).contains("owned by uid 1"));
        chown(&file, Some(0), None).unwrap();

        let link = dir.path().join("l");
        symlink(&file, &link).unwrap();
        assert!(message(&link).contains("symbolic link"));
        assert!(message(dir.path()).contains("Directory"));
        let fifo = dir.path().join("p");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        assert!(message(&fifo).contains("Fifo"));
        assert!(matches!(any(&dir.path().join("none")), Err(StrictFileError::Missing { .. })));
        assert_eq!(any(&file).unwrap(), b"hello");
    }
}
