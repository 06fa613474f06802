//! Claims: seals that came with images, kept where a launch finds them.
//!
//! containerd deletes a referrer with its image record, or sooner (`nerdctl image prune`, the first GC after a load of
//! a nested index), and nothing tells us when an image that is unpacked already gets another name or a seal. So the
//! content store is looked through whenever a layer is applied and whenever a container is prepared: one List, and a
//! Read of each small blob that was not seen before. What is found is copied to
//! `<claims>/<StackId>.json`. Nothing here is trusted, and nothing decides: a claim that is wrong is refused at launch.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hallmark_seal::referrer::{MAX_MANIFEST_BYTES, Referrer};
use hallmark_seal::{Claim, ClaimFile, Insertion, MAX_CLAIM_FILE_BYTES, StackId};
use hallmark_verity::RootHash;

use crate::content::Content;
use crate::error::{Error, Result, chain};
use crate::layout::{self, UNFINISHED};

/// Claims files kept; with their greatest length, 16 GiB that nobody will ever fill by accident.
const MAX_FILES: usize = 4096;
/// Blobs remembered as seen. When full, all are forgotten and looked at once more.
const MAX_SEEN: usize = 100_000;
/// A referrer's manifest is some kilobytes; image manifests are of the same order, layers are not.
const MAX_CANDIDATE: i64 = 1 << 20;

type Seen = HashMap<(String, String), Option<StackId>>;

/// The claims directory, and what of containerd's content was looked at.
#[derive(Debug)]
pub(crate) struct Claims {
    directory: PathBuf,
    /// By namespace and digest: of a referrer, the stack whose file got its claim.
    seen: Mutex<Seen>,
}

impl Claims {
    /// The claims in `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // what a panic left behind is still true of what was looked at
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the claims of referrers in a namespace of containerd's content store that were not seen before.
    pub(crate) fn collect(&self, content: &Content, namespace: &str) -> Result<()> {
        let mut seen = self.seen();
        if seen.len() > MAX_SEEN {
            seen.clear();
        }
        for info in content.list(namespace)? {
            let blob = (namespace.to_owned(), info.digest);
            let known =
                seen.get(&blob).is_some_and(|stack| stack.is_none_or(|stack| self.has(stack)));
            if info.size > MAX_CANDIDATE || known {
                continue;
            }
            match self.copy(content, &blob) {
                // its payload is still being fetched, or containerd is going: the next look tells
                Err(error @ (Error::Containerd { .. } | Error::ContainerdSlow { .. })) => {
                    tracing::debug!("referrer {}: {}", blob.1, chain(&error));
                    continue;
                }
                Err(error @ Error::Io { .. }) => {
                    tracing::warn!("referrer {}: {}", blob.1, chain(&error));
                    continue;
                }
                Err(error) => {
                    tracing::warn!("referrer {}: {}", blob.1, chain(&error));
                    seen.insert(blob, None);
                }
                Ok(stack) => {
                    seen.insert(blob, stack);
                }
            }
        }
        Ok(())
    }

    /// The stack whose file the blob's claim is in now; `None` for a blob that is no referrer.
    fn copy(&self, content: &Content, blob: &(String, String)) -> Result<Option<StackId>> {
        let (namespace, digest) = blob;
        let limit = u64::try_from(MAX_MANIFEST_BYTES).unwrap_or(u64::MAX);
        let bytes = content.read_small(namespace, digest, limit)?;
        // most small blobs are no JSON at all, and of those that are most are no referrers
        let Ok(Some(referrer)) = Referrer::parse(&bytes) else { return Ok(None) };
        let blobs: Result<Vec<Vec<u8>>> = referrer
            .blobs()
            .iter()
            .map(|blob| content.read_small(namespace, &blob.digest.to_string(), blob.size))
            .collect();
        let claim = referrer.claim(blobs?)?;
        let _locked = self.lock()?;
        self.keep(claim).map(Some)
    }

    /// Keeps other writers, such as `hallmark seal`, out of the directory until it is dropped.
    fn lock(&self) -> Result<File> {
        let what = || format!("lock {}", self.directory.display());
        let directory = File::open(&self.directory).map_err(Error::io(what()))?;
        directory.lock().map_err(Error::io(what()))?;
        Ok(directory)
    }

    /// Adds a claim to the file of its stack. The directory must be locked.
    fn keep(&self, claim: Claim) -> Result<StackId> {
        let stack = claim.stack_id()?;
        let name = stack.file_name();
        let mut file = match self.read(&name)? {
            Some(file) => file,
            None if layout::names_in(&self.directory)?.len() >= MAX_FILES => {
                let what = format!("{}: {MAX_FILES} files", self.directory.display());
                return Err(Error::Io { what, source: std::io::ErrorKind::QuotaExceeded.into() });
            }
            None => ClaimFile::default(),
        };
        if file.insert(claim)? == Insertion::Added {
            layout::write_file(&self.directory, &name, &file.encode()?)?;
            tracing::info!("claim kept for stack {stack}");
        }
        Ok(stack)
    }

    fn read(&self, name: &str) -> Result<Option<ClaimFile>> {
        let path = self.directory.join(name);
        match bounded(&path) {
            Ok(bytes) => Ok(Some(ClaimFile::parse(&bytes)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {}", path.display()))(error)),
        }
    }

    /// Moves claims that were dropped under another name to the files of their stacks.
    pub(crate) fn adopt_dropped(&self) -> Result<()> {
        for name in layout::names_in(&self.directory)? {
            let Some(stem) = name.strip_suffix(".json") else { continue };
            if name.starts_with(UNFINISHED) || stem.parse::<StackId>().is_ok() {
                continue;
            }
            if let Err(error) = self.adopt(&name) {
                let path = self.directory.join(&name);
                tracing::warn!("{}: {}", path.display(), chain(&error));
            }
        }
        Ok(())
    }

    fn adopt(&self, name: &str) -> Result<()> {
        let _locked = self.lock()?;
        let Some(file) = self.read(name)? else { return Ok(()) };
        for claim in file.claims() {
            self.keep(claim.clone())?;
        }
        layout::remove_file(&self.directory.join(name))
    }

    /// Whether there is a claims file for a stack.
    pub(crate) fn any(&self, stack: &[RootHash]) -> bool {
        self.has(StackId::of(stack))
    }

    fn has(&self, stack: StackId) -> bool {
        std::fs::symlink_metadata(self.directory.join(stack.file_name())).is_ok()
    }

    /// Per root hash of a stack, the signatures that somebody claims to be of it.
    pub(crate) fn signatures(
        &self,
        stack: &[RootHash],
    ) -> Result<BTreeMap<RootHash, Vec<Vec<u8>>>> {
        let mut found: BTreeMap<RootHash, Vec<Vec<u8>>> = BTreeMap::new();
        let Some(file) = self.read(&StackId::of(stack).file_name())? else { return Ok(found) };
        for claim in file.claims() {
            let Ok(seal) = claim.alleged() else { continue };
            for (layer, signature) in seal.layers.iter().zip(&claim.layer_signatures) {
                let of_layer = found.entry(layer.root_hash).or_default();
                if let Some(der) = signature.as_ref().filter(|der| !of_layer.contains(der)) {
                    of_layer.push(der.clone());
                }
            }
        }
        Ok(found)
    }
}

fn bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let limit = u64::try_from(MAX_CLAIM_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let flags = rustix::fs::OFlags::RDONLY
        | rustix::fs::OFlags::NOFOLLOW
        | rustix::fs::OFlags::NONBLOCK
        | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::claim;

    #[test]
    fn a_dropped_file_is_moved_to_its_place_and_others_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let claims = Claims::new(directory.path());
        let roots = [1, 2].map(|byte| RootHash::from_bytes([byte; 32]));
        let claim = claim(&roots, b"p7s of layer 0");
        let dropped = ClaimFile::from(claim.clone()).encode().unwrap();
        std::fs::write(directory.path().join("my app.json"), &dropped).unwrap();
        std::fs::write(directory.path().join("broken.json"), "{").unwrap();
        std::fs::write(directory.path().join("README"), "x").unwrap();
        claims.adopt_dropped().unwrap();
        let mut names = layout::names_in(directory.path()).unwrap();
        names.sort();
        let place = StackId::of(&roots).file_name();
        let mut expected = ["README".to_owned(), "broken.json".to_owned(), place];
        expected.sort();
        assert_eq!(names, expected);
        assert!(claims.any(&roots));

        // the same again changes nothing
        std::fs::write(directory.path().join("again.json"), &dropped).unwrap();
        claims.adopt_dropped().unwrap();
        let file = claims.read(&StackId::of(&roots).file_name()).unwrap().unwrap();
        assert_eq!(file.claims(), [claim]);
    }

    #[test]
    fn signatures_are_found_by_stack_and_root_hash() {
        let directory = tempfile::tempdir().unwrap();
        let claims = Claims::new(directory.path());
        let roots = [1, 2, 1].map(|byte| RootHash::from_bytes([byte; 32]));
        claims.keep(claim(&roots, b"one")).unwrap();
        claims.keep(claim(&roots, b"two")).unwrap();
        let found = claims.signatures(&roots).unwrap();
        assert_eq!(found[&roots[0]], [b"one".to_vec(), b"two".to_vec()]);
        assert!(found[&roots[1]].is_empty());
        assert!(claims.signatures(&roots[..2]).unwrap().is_empty());
        assert!(!claims.any(&roots[..2]));
    }

    #[test]
    fn a_claims_file_that_is_a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let claims = Claims::new(directory.path());
        let roots = [RootHash::from_bytes([1; 32])];
        let place = directory.path().join(StackId::of(&roots).file_name());
        std::os::unix::fs::symlink("/etc/passwd", place).unwrap();
        assert!(claims.signatures(&roots).is_err());
    }
}
