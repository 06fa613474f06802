//! Claims: seals that came with images, kept where a launch finds them.
//!
//! containerd deletes a referrer with its image record, or sooner (`nerdctl image prune`, the first GC after a load of
//! a nested index), and nothing tells us when an image that is unpacked already gets another name or a seal. So the
//! content store is looked through whenever a layer is applied and whenever a container is prepared: one List, and a
//! Read of each small blob that was not seen before. What is found is copied to
//! `<claims>/<StackId>.json`. Nothing here is trusted, and nothing decides: a claim that is wrong is refused at launch.
//!
//! Anybody who can push to a registry can send claims. So one that a key of the node signed comes first and finds room
//! (nothing else does so), and a file that was made here goes when no snapshot has its stack any more. A file that
//! somebody put here, or changed, stays: the mark of ours is an extended attribute, which a rewrite loses.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hallmark_seal::referrer::{MAX_MANIFEST_BYTES, Referrer};
use hallmark_seal::{Claim, ClaimFile, Insertion, MAX_CLAIM_FILE_BYTES, StackId, Timestamp};
use hallmark_trust::config::{RegistryConfig, TrustConfig};
use hallmark_trust::set::Keys;
use hallmark_verity::RootHash;

use crate::content::Content;
use crate::error::{Error, Result, chain};
use crate::layout::{self, UNFINISHED, Unfinished};
use crate::proto::content::Info;
use crate::registries::{Registries, Source};

/// The mark of a file that holds nothing but what was found here.
const COLLECTED: &str = "trusted.hallmark.collected";
/// A claim may come long before the layers of its image are all there.
const UNUSED_STAYS: Duration = Duration::from_secs(3600);
/// Claims files kept; with their greatest length, 16 GiB that nobody will ever fill by accident.
const MAX_FILES: usize = 4096;
/// Blobs remembered as seen. When full, all are forgotten and looked at once more.
const MAX_SEEN: usize = 100_000;
/// A referrer's manifest is some kilobytes; image manifests are of the same order, layers are not.
const MAX_CANDIDATE: i64 = 1 << 20;

/// What containerd noted of a blob.
type NotedLabels = HashMap<String, String>;
type Seen = HashMap<(String, String), Option<StackId>>;

/// The claims directory, and what of containerd's content was looked at.
#[derive(Debug)]
pub(crate) struct Claims {
    directory: PathBuf,
    trust: Mutex<TrustConfig>,
    pub(crate) registries: Registries,
    /// By namespace and digest: of a referrer, the stack whose file got its claim.
    seen: Mutex<Seen>,
}

impl Claims {
    /// The claims in `directory`; those that the keys of `trust` signed come first.
    pub(crate) fn new(directory: &Path, trust: TrustConfig, registry: RegistryConfig) -> Self {
        let (registries, trust) = (Registries::new(registry), Mutex::new(trust));
        Self { directory: directory.to_owned(), trust, registries, seen: Mutex::default() }
    }

    /// Takes the keys from elsewhere from now on.
    pub(crate) fn set_trust(&self, trust: TrustConfig) {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = trust;
    }

    /// Asks registries as long as the process lives.
    pub(crate) fn ask_registries(&self) -> ! {
        loop {
            let source = self.registries.next();
            match self.ask(&source) {
                Ok(count) => tracing::info!("{source}: the registry has {count} claims"),
                Err(error) => tracing::warn!("{source}: {}", chain(&error)),
            }
            self.registries.answered(&source);
        }
    }

    /// How many claims a registry had that were kept.
    fn ask(&self, source: &Source) -> Result<usize> {
        let claims = self.registries.claims(source)?;
        let _locked = self.lock()?;
        let mut kept = 0;
        for claim in claims {
            match self.keep(claim, From::Found) {
                Ok(_) => kept += 1,
                Err(error) => tracing::warn!("claim of {source}: {}", chain(&error)),
            }
        }
        Ok(kept)
    }

    /// Whether a claim would count now. Read anew for each use: the node's keys and revocations change without us.
    fn vouched(&self) -> impl Fn(&Claim) -> bool + use<> {
        let keys = Keys::load(&self.trust.lock().unwrap_or_else(PoisonError::into_inner))
            .inspect_err(|error| tracing::warn!("no claim counts: {}", chain(error)))
            .ok();
        let now = Timestamp::from(SystemTime::now());
        move |claim| {
            let verified = |keys: &Keys| claim.verify(&keys.keyring, &keys.revocations, now);
            keys.as_ref().is_some_and(|keys| verified(keys).is_ok())
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // what a panic left behind is still true of what was looked at
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the claims of referrers in a namespace of containerd's content store that were not seen before. When
    /// time is up the rest is left to the next look. Nothing is locked while containerd is waited for.
    pub(crate) fn collect(
        &self,
        content: &Content,
        namespace: &str,
        patience: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        for (blob, labels) in self.unseen(namespace, content.list(namespace, deadline)?) {
            match self.copy(content, &blob, &labels, deadline) {
                Err(error) if Instant::now() >= deadline => return Err(error),
                // its payload is still being fetched, or containerd is going: the next look tells
                Err(error @ (Error::Containerd { .. } | Error::ContainerdSlow { .. })) => {
                    tracing::debug!("referrer {}: {}", blob.1, chain(&error));
                }
                Err(error @ Error::Io { .. }) => {
                    tracing::warn!("referrer {}: {}", blob.1, chain(&error));
                }
                Err(error) => {
                    tracing::warn!("referrer {}: {}", blob.1, chain(&error));
                    self.seen().insert(blob, None);
                }
                Ok(stack) => {
                    self.seen().insert(blob, stack);
                }
            }
        }
        Ok(())
    }

    /// Those that a look has to read: small, and not seen, or of a stack whose file is not there any more.
    fn unseen(&self, namespace: &str, listed: Vec<Info>) -> Vec<((String, String), NotedLabels)> {
        let mut seen = self.seen();
        if seen.len() > MAX_SEEN {
            seen.clear();
        }
        let small = listed.into_iter().filter(|info| info.size <= MAX_CANDIDATE);
        small
            .map(|info| ((namespace.to_owned(), info.digest), info.labels))
            .filter(|(blob, _)| match seen.get(blob) {
                None => true,
                Some(stack) => stack.is_some_and(|stack| !self.has(stack)),
            })
            .collect()
    }

    /// The stack whose file the blob's claim is in now; `None` for a blob that is no referrer.
    fn copy(
        &self,
        content: &Content,
        blob: &(String, String),
        labels: &NotedLabels,
        deadline: Instant,
    ) -> Result<Option<StackId>> {
        let (namespace, digest) = blob;
        let limit = u64::try_from(MAX_MANIFEST_BYTES).unwrap_or(u64::MAX);
        let bytes = content.read_small(namespace, digest, limit, deadline)?;
        // most small blobs are no JSON at all, and of those that are most are no referrers
        let Ok(Some(referrer)) = Referrer::parse(&bytes) else {
            self.registries.note(digest, &bytes, labels);
            return Ok(None);
        };
        let blobs: Result<Vec<Vec<u8>>> = referrer
            .blobs()
            .iter()
            .map(|blob| {
                content.read_small(namespace, &blob.digest.to_string(), blob.size, deadline)
            })
            .collect();
        let claim = referrer.claim(blobs?)?;
        let _locked = self.lock()?;
        self.keep(claim, From::Found).map(Some)
    }

    /// Keeps other writers, such as `hallmark seal`, out of the directory until it is dropped.
    fn lock(&self) -> Result<File> {
        let what = || format!("lock {}", self.directory.display());
        let directory = File::open(&self.directory).map_err(Error::io(what()))?;
        directory.lock().map_err(Error::io(what()))?;
        Ok(directory)
    }

    /// Adds a claim to the file of its stack. The directory must be locked.
    fn keep(&self, claim: Claim, from: From) -> Result<StackId> {
        let stack = claim.stack_id()?;
        let name = stack.file_name();
        let (mut file, marked) = match self.read(&name)? {
            Some(file) => (file, self.is_collected(&name)),
            None => {
                self.make_room()?;
                (ClaimFile::default(), true)
            }
        };
        if file.insert_ranked(claim, &self.vouched())? == Insertion::Added {
            let mut unfinished = Unfinished::create(&self.directory)?;
            if marked && from == From::Found {
                mark(&unfinished.file);
            }
            let what = format!("write {}", self.directory.join(&name).display());
            unfinished.file.write_all(&file.encode()?).map_err(Error::io(what))?;
            unfinished.publish(&name)?;
            tracing::info!("claim kept for stack {stack}");
        }
        Ok(stack)
    }

    /// Where there are too many files, the oldest one that was made here goes. If its image is here after all, the
    /// next look finds its claim again.
    fn make_room(&self) -> Result<()> {
        let names = layout::names_in(&self.directory)?;
        if names.len() < MAX_FILES {
            return Ok(());
        }
        let collected = names.into_iter().filter(|name| self.is_collected(name));
        let oldest = collected.min_by_key(|name| self.modified(name));
        let oldest = oldest.ok_or_else(|| {
            let what = format!("{}: {MAX_FILES} files", self.directory.display());
            Error::Io { what, source: std::io::ErrorKind::QuotaExceeded.into() }
        })?;
        layout::remove_file(&self.directory.join(oldest))
    }

    fn is_collected(&self, name: &str) -> bool {
        let path = self.directory.join(name);
        rustix::fs::lgetxattr(path, COLLECTED, &mut [0_u8; 1]).is_ok()
    }

    fn modified(&self, name: &str) -> Option<SystemTime> {
        std::fs::symlink_metadata(self.directory.join(name)).and_then(|meta| meta.modified()).ok()
    }

    /// Removes the files that were made here and whose stack is not in what `used` returns, which is asked only if
    /// there is a candidate.
    pub(crate) fn forget_unused(
        &self,
        used: impl FnOnce() -> Result<HashSet<StackId>>,
    ) -> Result<()> {
        let then = SystemTime::now().checked_sub(UNUSED_STAYS);
        let old = |name: &String| self.modified(name) < then && self.is_collected(name);
        let candidates: Vec<String> =
            layout::names_in(&self.directory)?.into_iter().filter(old).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let used: HashSet<String> = used()?.iter().map(StackId::file_name).collect();
        let _locked = self.lock()?;
        // a writer may have made it its own before we had the lock
        for name in candidates.iter().filter(|name| !used.contains(*name) && old(name)) {
            layout::remove_file(&self.directory.join(name))?;
            tracing::info!("claims {name}: no snapshot has that stack: removed");
        }
        Ok(())
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
            self.keep(claim.clone(), From::Dropped)?;
        }
        layout::remove_file(&self.directory.join(name))
    }

    /// Whether there is a claims file for a stack.
    pub(crate) fn any(&self, stack: &[RootHash]) -> bool {
        self.has(StackId::of(stack))
    }

    /// Whether a claim for a stack counts now. Claims that do not are anybody's, and say nothing.
    pub(crate) fn any_counts(&self, stack: &[RootHash]) -> bool {
        let file = self.read(&StackId::of(stack).file_name());
        file.ok().flatten().is_some_and(|file| file.claims().iter().any(self.vouched()))
    }

    fn has(&self, stack: StackId) -> bool {
        std::fs::symlink_metadata(self.directory.join(stack.file_name())).is_ok()
    }

    /// Per root hash of a stack, the signatures that somebody claims to be of it; those that came with a seal that
    /// counts come first.
    pub(crate) fn signatures(
        &self,
        stack: &[RootHash],
    ) -> Result<BTreeMap<RootHash, Vec<Vec<u8>>>> {
        let mut found: BTreeMap<RootHash, Vec<Vec<u8>>> = BTreeMap::new();
        let Some(mut file) = self.read(&StackId::of(stack).file_name())? else { return Ok(found) };
        if file.claims().len() > 1 {
            file.rank(&self.vouched());
        }
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

/// Where a claim comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// containerd's content store, or a registry.
    Found,
    /// A person who may write to the directory.
    Dropped,
}

/// Without the mark the file stays when its image goes: no harm, on a file system that has no such attributes.
fn mark(file: &File) {
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(errno) = rustix::fs::fsetxattr(file, COLLECTED, b"1", flags) {
        tracing::debug!("{COLLECTED}: {errno}");
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
    use crate::tests::{claim, sealed, signer};

    /// A claims directory, with the node's certificate beside it.
    fn claims_in(directory: &Path) -> Claims {
        let keys = directory.join("keys.pem");
        std::fs::write(&keys, &signer().1).unwrap();
        let trust = TrustConfig { keys, ..TrustConfig::default() };
        Claims::new(directory, trust, RegistryConfig::default())
    }

    #[test]
    fn a_claim_that_counts_is_never_crowded_out() {
        let directory = tempfile::tempdir().unwrap();
        let claims = claims_in(directory.path());
        let roots = [RootHash::from_bytes([1; 32])];
        let bogus = |number: usize| claim(&roots, format!("bogus {number}").as_bytes());
        for number in 0..hallmark_seal::MAX_CLAIMS {
            claims.keep(bogus(number), From::Found).unwrap();
        }
        claims.keep(bogus(1000), From::Found).unwrap_err();
        let good = sealed(&roots, b"good");
        claims.keep(good.clone(), From::Found).unwrap();
        let file = claims.read(&StackId::of(&roots).file_name()).unwrap().unwrap();
        assert_eq!(file.claims().len(), hallmark_seal::MAX_CLAIMS);
        assert_eq!(file.claims()[0], good);
        // and in the order of a file that somebody else wrote, the kernel is asked about it first
        let mut other = ClaimFile::default();
        for number in 0..20 {
            other.insert(bogus(number)).unwrap();
        }
        other.insert(good).unwrap();
        let place = directory.path().join(StackId::of(&roots).file_name());
        std::fs::write(place, other.encode().unwrap()).unwrap();
        assert_eq!(claims.signatures(&roots).unwrap()[&roots[0]][0], b"good");
    }

    #[test]
    fn a_large_claim_that_does_not_count_gives_way_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let claims = claims_in(directory.path());
        let roots = [RootHash::from_bytes([1; 32])];
        // 64 claims of 64 KiB, in base64, are more than the file may hold
        let mut kept = 0;
        while claims.keep(claim(&roots, &vec![kept; 64 << 10]), From::Found).is_ok() {
            kept += 1;
        }
        assert!((10..64).contains(&kept), "{kept}");
        claims.keep(sealed(&roots, &[7; 60 << 10]), From::Found).unwrap();
        let found = claims.signatures(&roots).unwrap();
        assert_eq!(found[&roots[0]][0], [7; 60 << 10]);
    }

    #[test]
    fn what_was_collected_goes_with_the_image_and_what_was_dropped_stays() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let claims = claims_in(directory.path());
        let roots = |byte| [RootHash::from_bytes([byte; 32])];
        let place = |byte| directory.path().join(StackId::of(&roots(byte)).file_name());
        claims.keep(claim(&roots(1), b"used"), From::Found).unwrap();
        claims.keep(claim(&roots(2), b"unused"), From::Found).unwrap();
        claims.keep(claim(&roots(3), b"dropped"), From::Dropped).unwrap();
        claims.keep(claim(&roots(4), b"both"), From::Dropped).unwrap();
        claims.keep(claim(&roots(4), b"and found"), From::Found).unwrap();
        let used = || Ok(HashSet::from([StackId::of(&roots(1))]));
        claims.forget_unused(used).unwrap();
        assert!((1..=4).all(|byte| place(byte).is_file()), "none is old");
        let old = SystemTime::now() - 2 * UNUSED_STAYS;
        for byte in 1..=4 {
            let times = std::fs::FileTimes::new().set_modified(old);
            File::options().write(true).open(place(byte)).unwrap().set_times(times).unwrap();
        }
        claims.forget_unused(used).unwrap();
        let left: Vec<u8> = (1..=4).filter(|byte| place(*byte).is_file()).collect();
        assert_eq!(left, [1, 3, 4]);
    }

    #[test]
    fn a_dropped_file_is_moved_to_its_place_and_others_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let claims = claims_in(directory.path());
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
        let mut expected =
            ["README".to_owned(), "broken.json".to_owned(), "keys.pem".to_owned(), place];
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
        let claims = claims_in(directory.path());
        let roots = [1, 2, 1].map(|byte| RootHash::from_bytes([byte; 32]));
        claims.keep(claim(&roots, b"one"), From::Found).unwrap();
        claims.keep(claim(&roots, b"two"), From::Found).unwrap();
        let found = claims.signatures(&roots).unwrap();
        assert_eq!(found[&roots[0]], [b"one".to_vec(), b"two".to_vec()]);
        assert!(found[&roots[1]].is_empty());
        assert!(claims.signatures(&roots[..2]).unwrap().is_empty());
        assert!(!claims.any(&roots[..2]));
    }

    #[test]
    fn a_claims_file_that_is_a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let claims = claims_in(directory.path());
        let roots = [RootHash::from_bytes([1; 32])];
        let place = directory.path().join(StackId::of(&roots).file_name());
        std::os::unix::fs::symlink("/etc/passwd", place).unwrap();
        assert!(claims.signatures(&roots).is_err());
    }
}
