//! The snapshotter itself: what each call does, synchronously. gRPC is `service`'s.
//!
//! Calls that change what is there take one lock, because each of them looks at what all snapshots use; the long
//! work (packing, removing a directory, waiting for containerd) is done outside it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hallmark_erofs::Compression;
use hallmark_seal::StackId;
use hallmark_trust::config::NodeConfig;
use hallmark_verity::{DiffId, LayerDigest, RootHash};

use crate::activate::Activations;
use crate::claims::Claims;
use crate::content::Content;
use crate::directory;
use crate::error::{Error, Result, chain};
use crate::filter::Filters;
use crate::layout::{self, Layout};
use crate::metrics::Metrics;
use crate::mounts;
use crate::pack::{self, Flights, Fresh};
use crate::proto::types::{Descriptor, Mount};
use crate::reclaim;
use crate::removal::remove_tree;
use crate::store::{Commit, Kind, Labels, Layer, New, Snapshot, Store};
use crate::usage::{self, Usage, Walks};

/// Hints on committed snapshots, for people and tools. Nothing reads them back.
const HINT_ROOT_HASH: &str = "containerd.io/snapshot/hallmark.root-hash";
const HINT_DIFF_ID: &str = "containerd.io/snapshot/hallmark.diff-id";
/// containerd's mark on a snapshot that a layer is unpacked into.
const REF_LABEL: &str = "containerd.io/snapshot.ref";

/// A packed layer that no snapshot uses waits this long for the retry of a pull that was cut off.
const UNUSED_LAYER_STAYS: Duration = Duration::from_secs(3600);

/// How long a look for claims may hold up a Prepare or an Apply, however many blobs there are.
const LOOK: Duration = Duration::from_secs(5);

/// How long a Prepare without a claim that counts waits for a registry.
const REGISTRY_PATIENCE: Duration = Duration::from_secs(5);

/// How often a layer that was removed while it was being applied is packed again.
const APPLY_ATTEMPTS: u32 = 3;

/// Everything a call needs.
#[derive(Debug)]
pub(crate) struct Snapshotter {
    pub(crate) layout: Layout,
    pub(crate) store: Store,
    pub(crate) claims: Claims,
    pub(crate) content: Content,
    pub(crate) metrics: Metrics,
    activations: Mutex<Activations>,
    flights: Flights,
    walks: Walks,
}

impl Snapshotter {
    /// A snapshotter on an open store, with the layers that are active already.
    pub(crate) fn new(
        layout: Layout,
        store: Store,
        content: Content,
        activations: Activations,
        claims: Claims,
    ) -> Self {
        Self {
            claims,
            layout,
            store,
            content,
            activations: Mutex::new(activations),
            flights: Flights::default(),
            walks: Walks::default(),
            metrics: Metrics::default(),
        }
    }

    /// Takes over what of the configuration can change while we run: whom claims must be signed by, which registries
    /// are asked and how, and what is asked of the kernel for layers that are activated from now on.
    pub(crate) fn reload(&self, config: &NodeConfig) {
        self.claims.set_trust(config.trust.clone());
        self.claims.registries.set_config(config.registry.clone());
        self.changing().set_policy(config.snapshotter.layer_signature);
    }

    fn changing(&self) -> MutexGuard<'_, Activations> {
        // a table of what is active; each step leaves it true
        self.activations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an active snapshot or a view and says how to mount it.
    pub(crate) fn create(
        &self,
        key: &str,
        kind: Kind,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        if !unpacks(key) {
            self.look_for_claims(key);
            if let Some(parent) = parent {
                self.wait_for_claims(parent)?;
            }
        }
        let mut activations = self.changing();
        let snapshot = self
            .store
            .create(New { name: key, kind, parent, labels }, |id| self.directories(id))?;
        let mounted = self.ready(&mut activations, key, &snapshot);
        if mounted.is_err() {
            // the call did not happen: its reason is returned, what cannot be undone is told here
            let removed = self
                .store
                .remove(key)
                .and_then(|_| remove_tree(&self.layout.snapshot(snapshot.id)));
            if let Err(error) = removed {
                tracing::warn!("undo of snapshot {key:?}: {}", chain(&error));
            }
        }
        mounted
    }

    /// How to mount an active snapshot or a view. After a reboot this is what activates its layers again.
    pub(crate) fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let snapshot = self.store.snapshot(key)?;
        if snapshot.kind == Kind::Committed {
            let (name, found) = (key.to_owned(), snapshot.kind);
            return Err(Error::NotA { name, found, expected: Kind::Active });
        }
        if !unpacks(key) && !self.claims.any(&roots(&self.store.layers_of(&snapshot)?)) {
            self.look_for_claims(key);
        }
        let mut activations = self.changing();
        // it may have been removed meanwhile
        let snapshot = self.store.snapshot(key)?;
        self.ready(&mut activations, key, &snapshot)
    }

    fn ready(
        &self,
        activations: &mut Activations,
        key: &str,
        snapshot: &Snapshot,
    ) -> Result<Vec<Mount>> {
        if snapshot.kind == Kind::Active && snapshot.layer.is_none() && unpacks(key) {
            return Ok(vec![mounts::unpack_reply(&self.layout, snapshot)]);
        }
        if std::fs::symlink_metadata(self.layout.upper(snapshot.id)).is_err() {
            // a power cut after the record was synced and before the directory was
            self.directories(snapshot.id)?;
        }
        let lowers = self.activate(activations, snapshot)?;
        if snapshot.kind == Kind::Active {
            self.own(snapshot, lowers.first())?;
        }
        Ok(vec![mounts::reply(&self.layout, snapshot, &lowers)])
    }

    /// Activates the canonical stack of a snapshot. Topmost first.
    fn activate(&self, activations: &mut Activations, snapshot: &Snapshot) -> Result<Vec<PathBuf>> {
        let layers = self.store.layers_of(snapshot)?;
        let stack = hallmark_seal::stack(&roots(&layers));
        let signatures = self.claims.signatures(&stack).unwrap_or_else(|error| {
            tracing::warn!("claims of snapshot {}: {}", snapshot.id, chain(&error));
            BTreeMap::new()
        });
        let by_root: BTreeMap<RootHash, &Layer> =
            layers.iter().map(|layer| (layer.root_hash, layer)).collect();
        let lowers = stack.iter().rev().filter_map(|root_hash| by_root.get(root_hash));
        let lowers = lowers
            .map(|layer| {
                let of_layer = signatures.get(&layer.root_hash).map(Vec::as_slice);
                activations.activate(layer, of_layer.unwrap_or_default())
            })
            .collect();
        self.metrics.active(activations.len());
        lowers
    }

    fn directories(&self, id: u64) -> Result<()> {
        // a number whose transaction was not committed is given again, and what was made for it may be there still
        remove_tree(&self.layout.snapshot(id))?;
        for (path, mode) in [
            (self.layout.snapshot(id), 0o700),
            (self.layout.upper(id), 0o755),
            (self.layout.work(id), 0o711),
        ] {
            let what = format!("mkdir {}", path.display());
            DirBuilder::new().mode(mode).create(&path).map_err(Error::io(what))?;
            // not less, whatever the umask
            let what = format!("chmod {}", path.display());
            std::fs::set_permissions(&path, Permissions::from_mode(mode))
                .map_err(Error::io(what))?;
        }
        Ok(())
    }

    /// The root directory of an overlay is its upper's: it gets the owner and mode of the topmost layer's.
    fn own(&self, snapshot: &Snapshot, topmost: Option<&PathBuf>) -> Result<()> {
        let upper = self.layout.upper(snapshot.id);
        if !directory::is_empty(&upper)? {
            return Ok(());
        }
        let root = topmost.map(|lower| stat(lower)).transpose()?;
        let owner = mounts::mapped_root(snapshot)
            .or_else(|| root.as_ref().map(|root| (root.uid(), root.gid())));
        let shown = upper.display();
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&upper, Some(uid), Some(gid))
                .map_err(Error::io(format!("chown {shown}")))?;
        }
        if let Some(root) = root {
            let mode = Permissions::from_mode(root.mode() & 0o7777);
            std::fs::set_permissions(&upper, mode).map_err(Error::io(format!("chmod {shown}")))?;
        }
        Ok(())
    }

    /// Claims may have come since the layers were unpacked, and no other call says so. containerd not answering is
    /// no reason not to prepare: a launch without a claim is refused, with that reason.
    fn look_for_claims(&self, key: &str) {
        let looked = self
            .claims
            .adopt_dropped()
            .and_then(|()| self.claims.collect(&self.content, namespace(key), LOOK));
        if let Err(error) = looked {
            tracing::warn!("claims for snapshot {key:?}: {}", chain(&error));
        }
    }

    /// If no claim counts for the stack of a snapshot's parent, gives the registries that its image came from a moment
    /// to answer.
    fn wait_for_claims(&self, parent: &str) -> Result<()> {
        let parent = self.store.snapshot(parent)?;
        if self.claims.any_counts(&roots(&self.store.layers_of(&parent)?)) {
            return Ok(());
        }
        let is_top = |top: &LayerDigest| {
            let layer = self.store.layer_of_blob(top).ok().flatten();
            layer.is_some_and(|layer| Some(layer.diff_id) == parent.layer)
        };
        self.claims.registries.ask_again(is_top, REGISTRY_PATIENCE);
        Ok(())
    }

    /// Looks for claims in every namespace that has snapshots: referrers that came while no daemon was there.
    pub(crate) fn look_for_all_claims(&self) -> Result<()> {
        let snapshots = self.store.snapshots()?;
        let namespaces: BTreeSet<&str> =
            snapshots.iter().map(|(name, _)| namespace(name)).collect();
        for namespace in namespaces {
            self.claims.collect(&self.content, namespace, LOOK)?;
        }
        Ok(())
    }

    /// Packs the layer that `descriptor` names, for the active snapshot whose mounts these are.
    pub(crate) fn apply(
        &self,
        namespace: &str,
        descriptor: &Descriptor,
        mounts: &[Mount],
    ) -> Result<Descriptor> {
        let id = mounts::upper_of(&self.layout, mounts).ok_or(Error::ForeignMounts)?;
        let key = self.store.name_of(id)?.ok_or(Error::ForeignMounts)?;
        let digest: LayerDigest = descriptor.digest.parse()?;
        if let Err(error) = self.claims.collect(&self.content, namespace, LOOK) {
            tracing::warn!("claims in namespace {namespace}: {}", chain(&error));
        }
        let mut attempts = 0;
        let layer = loop {
            let layer = self.flights.join(&digest, || self.pack(namespace, descriptor, &digest))?;
            match self.store.apply(&key, &layer.diff_id) {
                // another snapshot of it was removed just then, and the layer with it
                Err(Error::LayerMissing { .. }) if attempts < APPLY_ATTEMPTS => attempts += 1,
                applied => break applied.map(|()| layer)?,
            }
        };
        Ok(Descriptor {
            media_type: pack::APPLIED_MEDIA_TYPE.to_owned(),
            digest: layer.diff_id.to_string(),
            size: i64::try_from(layer.tar_len).unwrap_or(i64::MAX),
            annotations: [].into(),
        })
    }

    fn pack(
        &self,
        namespace: &str,
        descriptor: &Descriptor,
        digest: &LayerDigest,
    ) -> Result<Layer> {
        if let Some(known) = self.store.layer_of_blob(digest)?
            && pack::is_whole(&self.layout, &known)
        {
            return Ok(known);
        }
        let started = std::time::Instant::now();
        let shown = digest.to_string();
        let blob = self.content.open(namespace, &shown)?;
        let (start, blob) = pack::peek(blob).map_err(Error::io(format!("read blob {shown}")))?;
        let compression = pack::compression(&descriptor.media_type, &shown, &start)?;
        let fresh = Fresh::pack(&self.layout, &shown, blob, compression)?;
        if fresh.layer_digest() != *digest {
            return Err(Error::BlobDigest { expected: *digest, found: fresh.layer_digest() });
        }
        let _changing = self.changing();
        let layer = fresh.keep(&self.layout, &self.store)?;
        let (root_hash, took) = (layer.root_hash, started.elapsed());
        self.metrics.packed(layer.tar_len, took);
        tracing::info!("layer {shown} packed in {} ms: root hash {root_hash}", took.as_millis());
        Ok(layer)
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`.
    pub(crate) fn commit(
        &self,
        key: &str,
        name: &str,
        labels: Labels,
        parent: Option<&str>,
    ) -> Result<()> {
        let active = match self.store.snapshot(key) {
            // done already, and the answer was lost on its way
            Err(Error::NotFound { .. }) if self.store.snapshot(name).is_ok() => {
                return Err(Error::Exists { name: name.to_owned() });
            }
            found => found?,
        };
        if active.kind != Kind::Active {
            let (name, found) = (key.to_owned(), active.kind);
            return Err(Error::NotA { name, found, expected: Kind::Active });
        }
        let upper = self.layout.upper(active.id);
        let written = !directory::is_empty(&upper)?;
        let diff_id = match active.layer {
            Some(_) if written => return Err(Error::Written { name: key.to_owned() }),
            Some(diff_id) => diff_id,
            None if is_unpacking(key, name, &active, &labels) => {
                return Err(Error::NotPacked { name: key.to_owned() });
            }
            None => self.pack_directory(&upper)?.diff_id,
        };
        {
            let _changing = self.changing();
            let layer = self.store.layer(&diff_id)?;
            let mut labels = labels;
            labels.insert(HINT_ROOT_HASH.to_owned(), layer.root_hash.to_string());
            labels.insert(HINT_DIFF_ID.to_owned(), diff_id.to_string());
            self.store.commit(Commit { key, name, parent, diff_id: &diff_id, labels })?;
        }
        // the layer is what counts from here on
        self.discard(active.id);
        Ok(())
    }

    fn pack_directory(&self, upper: &Path) -> Result<Layer> {
        let (read, write) = std::io::pipe().map_err(Error::io("pipe"))?;
        let shown = format!("of {}", upper.display());
        let packed = std::thread::scope(|scope| {
            let written =
                scope.spawn(|| directory::write_tar(upper, std::io::BufWriter::new(write)));
            let fresh = Fresh::pack(&self.layout, &shown, read, Compression::None);
            match written.join() {
                Ok(written) => written.and(fresh),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        let _changing = self.changing();
        packed.keep(&self.layout, &self.store)
    }

    /// Removes a snapshot, and what only it used.
    pub(crate) fn remove(&self, key: &str) -> Result<()> {
        let snapshot = {
            let mut activations = self.changing();
            let removed = self.store.remove(key)?;
            self.deactivate_unused(&mut activations)?;
            self.remove_images(removed.unused_layer.as_slice());
            removed.snapshot
        };
        self.discard(snapshot.id);
        Ok(())
    }

    /// Removes the directory of a snapshot that is no more. The call that did it has succeeded: what is left is
    /// told here, and goes at the next cleanup or start.
    fn discard(&self, id: u64) {
        if let Err(error) = remove_tree(&self.layout.snapshot(id)) {
            tracing::warn!("{}", chain(&error));
        }
    }

    /// Takes down what a former daemon left active and nothing uses any more: it was cut off in a removal.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut activations = self.changing();
        self.deactivate_unused(&mut activations)
    }

    fn deactivate_unused(&self, activations: &mut Activations) -> Result<()> {
        activations.deactivate_unused(&self.roots_in_use()?);
        self.metrics.active(activations.len());
        Ok(())
    }

    /// Removes what removals could not, and layers and claims that nothing came to use.
    pub(crate) fn cleanup(&self) -> Result<()> {
        self.claims.forget_unused(|| self.stacks())?;
        let mut activations = self.changing();
        let then = SystemTime::now().checked_sub(UNUSED_LAYER_STAYS);
        let unused = self.store.forget_unused(then.unwrap_or(SystemTime::UNIX_EPOCH))?;
        self.deactivate_unused(&mut activations)?;
        self.remove_images(&unused);
        reclaim::remove_orphans(&self.layout.snapshots(), &reclaim::snapshot_names(&self.store)?)
    }

    fn remove_images(&self, layers: &[DiffId]) {
        for diff_id in layers {
            match layout::remove_file(&self.layout.layer(diff_id)) {
                Ok(()) => tracing::info!("layer {diff_id} removed"),
                Err(error) => tracing::warn!("layer {diff_id}: {}", chain(&error)),
            }
        }
    }

    /// The stacks that snapshots have.
    fn stacks(&self) -> Result<HashSet<StackId>> {
        let mut stacks = HashSet::new();
        for (_, snapshot) in self.store.snapshots()? {
            stacks.insert(StackId::of(&roots(&self.store.layers_of(&snapshot)?)));
        }
        Ok(stacks)
    }

    /// Root hashes beneath active snapshots and views. Snapshots that a layer is applied to mount nothing.
    fn roots_in_use(&self) -> Result<HashSet<RootHash>> {
        let mut used = HashSet::new();
        for (name, snapshot) in self.store.snapshots()? {
            if snapshot.kind != Kind::Committed && !unpacks(&name) {
                used.extend(self.store.layers_of(&snapshot)?.iter().map(|layer| layer.root_hash));
            }
        }
        Ok(used)
    }

    /// The snapshots that pass the filters, by name.
    pub(crate) fn list(&self, filters: &[String]) -> Result<Vec<(String, Snapshot)>> {
        let filters = Filters::parse(filters)?;
        let mut found = self.store.snapshots()?;
        found.retain(|(name, snapshot)| filters.pass(name, snapshot));
        Ok(found)
    }

    /// Changes labels: all of them, or those that `fields` name (`labels`, `labels.<name>`).
    pub(crate) fn update(&self, name: &str, new: &Labels, fields: &[String]) -> Result<Snapshot> {
        let label = |field: &str| field.strip_prefix("labels.").map(str::to_owned);
        if let Some(field) =
            fields.iter().find(|field| *field != "labels" && label(field).is_none())
        {
            return Err(Error::Immutable { field: field.clone() });
        }
        self.store.relabel(name, |mut labels| {
            if fields.is_empty() || fields.iter().any(|field| field == "labels") {
                return new.clone();
            }
            for label in fields.iter().filter_map(|field| label(field)) {
                match new.get(&label).filter(|value| !value.is_empty()) {
                    Some(value) => labels.insert(label, value.clone()),
                    None => labels.remove(&label),
                };
            }
            labels
        })
    }

    /// A committed snapshot's layer image, or what was written to another's directory.
    pub(crate) fn usage(&self, name: &str) -> Result<Usage> {
        let snapshot = self.store.snapshot(name)?;
        match (snapshot.kind, snapshot.layer) {
            (Kind::Committed, Some(diff_id)) => usage::of_file(&self.layout.layer(&diff_id)),
            _ => self.walks.of(snapshot.id, &self.layout.upper(snapshot.id)),
        }
    }
}

fn roots(layers: &[Layer]) -> Vec<RootHash> {
    layers.iter().map(|layer| layer.root_hash).collect()
}

fn stat(path: &Path) -> Result<std::fs::Metadata> {
    std::fs::symlink_metadata(path).map_err(Error::io(format!("stat {}", path.display())))
}

/// `<namespace>/<number>/<client's key>`: containerd's own form of a backend name.
fn client_key(name: &str) -> &str {
    name.splitn(3, '/').nth(2).unwrap_or(name)
}

/// The namespace of a backend name.
fn namespace(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

/// Whether containerd prepared this key to apply a layer to it.
fn unpacks(key: &str) -> bool {
    client_key(key).starts_with("extract-")
}

/// Whether a commit ends an unpacking: by its key, by containerd's label, or by the form of the key, which ends in
/// the name to be only then (`nerdctl commit` gives neither prefix nor label).
fn is_unpacking(key: &str, name: &str, active: &Snapshot, labels: &Labels) -> bool {
    unpacks(key)
        || active.labels.contains_key(REF_LABEL)
        || labels.contains_key(REF_LABEL)
        || (client_key(name).starts_with("sha256:") && client_key(key).ends_with(client_key(name)))
}
