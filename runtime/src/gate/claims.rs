//! Reading the claims for a stack, and verifying them.
//!
//! One file a stack, found by name and never listed. Nothing in it is trusted: whoever wrote it, what counts are the
//! seals in it that a key of the node signed. So its owner does not matter, only its size and kind.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use hallmark_seal::{ClaimFile, MAX_CLAIM_FILE_BYTES, StackId, Timestamp};
use hallmark_trust::gate::Claims;
use hallmark_trust::set::TrustSet;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::chain;

/// The claims for the first of these stacks that has a file.
///
/// Several stacks are asked for because a changed layer has another root hash than the one it was packed with: its
/// claim is found under the latter, and the gate can then say which layer changed.
pub(super) fn find(
    directory: &Path,
    stacks: &[StackId],
    trust: &TrustSet,
    now: Timestamp,
) -> Claims {
    let mut rejected = Vec::new();
    for stack in stacks {
        match read(&directory.join(stack.file_name())) {
            Ok(Some(bytes)) => return verify(&bytes, trust, now),
            Ok(None) => {}
            Err(found) => rejected.push(found),
        }
    }
    if rejected.is_empty() {
        rejected.push(format!("no claim in {}", directory.display()));
    }
    Claims { verified: Vec::new(), rejected }
}

fn verify(bytes: &[u8], trust: &TrustSet, now: Timestamp) -> Claims {
    let file = match ClaimFile::parse(bytes) {
        Ok(file) => file,
        Err(error) => return Claims { verified: Vec::new(), rejected: vec![chain(&error)] },
    };
    let mut claims = Claims::default();
    for claim in file.claims() {
        match claim.verify(trust.keyring(), trust.revocations(), now) {
            Ok(seal) => claims.verified.push(seal),
            Err(error) => claims.rejected.push(chain(&error)),
        }
    }
    claims
}

/// The file's bytes, or `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let shown = path.display();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(format!("{shown}: {errno}")),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|errno| format!("{shown}: {errno}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(format!("{shown}: not a regular file"));
    }
    let mut bytes = Vec::new();
    // one byte more than allowed, so that the parser sees that it is too long
    let limit = (MAX_CLAIM_FILE_BYTES as u64).saturating_add(1);
    File::from(fd)
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{shown}: {error}"))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(read(&path), Ok(None));
        std::fs::write(&path, "x").unwrap();
        assert_eq!(read(&path), Ok(Some(b"x".to_vec())));
        let link = dir.path().join("l.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read(&link).is_err());
        assert!(read(dir.path()).unwrap_err().contains("not a regular file"));
        std::fs::write(&path, vec![b' '; MAX_CLAIM_FILE_BYTES + 10]).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().len(), MAX_CLAIM_FILE_BYTES + 1);
    }
}
