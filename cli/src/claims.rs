//! The claims directory of a node: one file a stack, written whole.
//!
//! The directory is locked while a file is read, added to and replaced, so that two writers that ask lose nothing of
//! each other's. Source: `DESIGN.md`, Claims directory.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hallmark_seal::{Claim, ClaimFile, MAX_CLAIM_FILE_BYTES, StackId};
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::error::{Error, Result};
use crate::replace::replace;

/// Where a node keeps its claims unless its configuration says otherwise.
pub(crate) const DIRECTORY: &str = "/var/lib/hallmark/claims";

/// Adds a claim to the file of its stack, and says which that is.
pub(crate) fn add(directory: &Path, claim: &Claim) -> Result<PathBuf> {
    let id = claim.stack_id().map_err(Error::signed("seal", ""))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Error::file("make the claims directory", directory))?;
    let lock = File::open(directory).map_err(Error::file("open", directory))?;
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(|errno| Error::file("lock", directory)(errno.into()))?;
    let path = directory.join(id.file_name());
    let advice = "move the file away, or remove the claims that are not needed";
    let object = path.display().to_string();
    let mut file = read(&path)?.unwrap_or_default();
    file.insert(claim.clone()).map_err(Error::signed(object.clone(), advice))?;
    let bytes = file.encode().map_err(Error::signed(object, advice))?;
    replace(&path, 0o600, &bytes)?;
    Ok(path)
}

/// The claims for a stack, where there are any.
pub(crate) fn of(directory: &Path, id: StackId) -> Result<Vec<Claim>> {
    let file = read(&directory.join(id.file_name()))?;
    Ok(file.map_or_else(Vec::new, |file| file.claims().to_vec()))
}

/// Reads a claims file, `None` where there is none. A link is not followed and a FIFO not waited for, as in the daemons.
fn read(path: &Path) -> Result<Option<ClaimFile>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = fs::File::options();
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(Error::file("open", path))?,
    };
    let mut bytes = Vec::new();
    let most = (MAX_CLAIM_FILE_BYTES as u64).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    let advice = "move the file away: it is not one of claims";
    let object = path.display().to_string();
    ClaimFile::parse(&bytes).map(Some).map_err(Error::signed(object, advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed_and_pipes_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("claims.json");
        assert!(read(&path).unwrap().is_none());
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        read(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        read(&path).unwrap_err();
    }
}
