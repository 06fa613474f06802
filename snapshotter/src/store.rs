//! The database: which snapshots and layers there are. One redb file, `<root>/hallmark.redb`.
//!
//! | table | key | value |
//! |---|---|---|
//! | `snapshots` | containerd's key or name | [`Snapshot`] as JSON |
//! | `ids` | id of a snapshot, the name of its directory | its key or name |
//! | `layers` | diffID | [`Layer`] as JSON |
//! | `blobs` | layer digest of a packed blob | diffID |
//! | `meta` | `version`, `next` | 1; the next id |
//!
//! redb because it is ACID with one file and one fsync a commit, and pure Rust: a root daemon that parses hostile
//! layers needs no C library of 250 000 lines to keep a map of some hundred names. Each function is one transaction.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use hallmark_verity::{DiffId, LayerDigest, RootHash, VolumeParams};
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout;

const FILE: &str = "hallmark.redb";
/// The flag by which this program is started to do nothing but read the database of a root.
pub(crate) const CHECK: &str = "--check-database";

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const IDS: TableDefinition<'_, u64, &str> = TableDefinition::new("ids");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");
const BLOBS: TableDefinition<'_, &str, &str> = TableDefinition::new("blobs");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The layout of the tables above.
const VERSION: u64 = 1;

/// Labels, in the order in which they are told.
pub(crate) type Labels = BTreeMap<String, String>;

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Read-only, on a committed one.
    View,
    /// Writable.
    Active,
    /// A layer on those of its parents.
    Committed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        })
    }
}

/// A snapshot's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    /// The name of its directory.
    pub(crate) id: u64,
    /// What it is.
    pub(crate) kind: Kind,
    /// The committed snapshot beneath.
    pub(crate) parent: Option<String>,
    /// containerd's labels and our hints.
    pub(crate) labels: Labels,
    /// When it was prepared or committed.
    pub(crate) created: SystemTime,
    /// When its labels changed.
    pub(crate) updated: SystemTime,
    /// Committed: its layer. Active: the layer that was applied to it, if any.
    pub(crate) layer: Option<DiffId>,
}

/// A packed layer: one file `layers/<diffID hex>.erofs`, whoever uses it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Layer {
    /// The tar.
    pub(crate) diff_id: DiffId,
    /// The image.
    pub(crate) root_hash: RootHash,
    /// Salt and data blocks of the image's hash tree.
    pub(crate) params: VolumeParams,
    /// Bytes of the tar.
    pub(crate) tar_len: u64,
    /// Bytes of the image file, its hash tree included.
    pub(crate) image_len: u64,
    /// When it was packed.
    pub(crate) packed: SystemTime,
}

/// An active snapshot or a view to be made.
#[derive(Debug)]
pub(crate) struct New<'a> {
    /// containerd's key.
    pub(crate) name: &'a str,
    /// Active or view.
    pub(crate) kind: Kind,
    /// A committed snapshot.
    pub(crate) parent: Option<&'a str>,
    /// containerd's labels.
    pub(crate) labels: Labels,
}

/// An active snapshot to be committed.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    /// What it is called so far.
    pub(crate) key: &'a str,
    /// What it will be called.
    pub(crate) name: &'a str,
    /// If given, becomes its parent: it was prepared without one.
    pub(crate) parent: Option<&'a str>,
    /// The layer that it is.
    pub(crate) diff_id: &'a DiffId,
    /// The labels it gets.
    pub(crate) labels: Labels,
}

/// The open database.
///
/// After an I/O error redb refuses every transaction until the file is opened again, for what is in memory may not be
/// what is on the disk. So the next call opens it again: a disk that was full for a moment must not cost a restart.
#[derive(Debug)]
pub(crate) struct Store {
    /// `None` only while the disk does not let us open it again.
    database: RwLock<Option<Database>>,
    failed: AtomicBool,
    path: PathBuf,
}

impl Store {
    /// Opens the database in `root`, or makes it: in a root where nothing is yet. A second daemon on the same `root`
    /// is refused.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        let there = std::fs::metadata(&path).is_ok_and(|meta| meta.len() > 0);
        if !there && !is_new(root)? {
            return Err(Error::StoreMissing { path });
        }
        let opened = Database::create(&path);
        let mut database = opened.map_err(|error| Self::failure(&path, error))?;
        match database.check_integrity().map_err(|error| Self::failure(&path, error))? {
            true => {}
            false => return Err(Self::failure(&path, corrupted())),
        }
        let database = RwLock::new(Some(database));
        let store = Self { database, failed: AtomicBool::new(false), path };
        let version = store.write(|tx| {
            tx.open_table(SNAPSHOTS)?;
            tx.open_table(IDS)?;
            tx.open_table(LAYERS)?;
            tx.open_table(BLOBS)?;
            let mut meta = tx.open_table(META)?;
            let version = meta.get("version")?.map(|version| version.value());
            if version.is_none() {
                meta.insert("version", VERSION)?;
            }
            Ok(version.unwrap_or(VERSION))
        })?;
        if version != VERSION {
            let source = std::io::Error::other(format!("version {version}, expected {VERSION}"));
            return Err(Error::Io { what: format!("{}", store.path.display()), source });
        }
        Ok(store)
    }

    /// Opens the database in another process first, and reads all of it there: at some damage redb panics, and its word
    /// would be the daemon's last. `itself` is this program, which comes to [`read_through`](Self::read_through) by the
    /// flag [`CHECK`].
    pub(crate) fn check(root: &Path, itself: &Path) -> Result<()> {
        let path = root.join(FILE);
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(());
        }
        let checked = Command::new(itself)
            .arg(CHECK)
            .arg(root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(Error::io(format!("run {}", itself.display())))?;
        match checked.code() {
            // 1 is an error, which we meet as well and can tell better
            Some(0 | 1) => Ok(()),
            _ => Err(Error::StoreBroken { path, status: checked }),
        }
    }

    /// Reads every record.
    pub(crate) fn read_through(root: &Path) -> Result<()> {
        // whoever asked may be killed; then the file must not stay locked
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(Error::errno("prctl(PR_SET_PDEATHSIG)"))?;
        let store = Self::open(root)?;
        for (_, snapshot) in store.snapshots()? {
            store.name_of(snapshot.id)?;
        }
        store.layers().map(drop)
    }

    fn failure(path: &Path, error: impl Into<redb::Error>) -> Error {
        Error::Store { path: path.to_owned(), source: Box::new(error.into()) }
    }

    /// A failure of a transaction. One of the disk's is remembered.
    fn failed(&self, error: impl Into<redb::Error>) -> Error {
        let error = error.into();
        if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
            self.failed.store(true, Ordering::SeqCst);
        }
        Self::failure(&self.path, error)
    }

    /// The database, opened again if the disk failed.
    fn database(&self) -> Result<RwLockReadGuard<'_, Option<Database>>> {
        // what is behind the lock is replaced whole
        let read = || self.database.read().unwrap_or_else(PoisonError::into_inner);
        let held = read();
        if held.is_some() && !self.failed.load(Ordering::SeqCst) {
            return Ok(held);
        }
        drop(held);
        let mut held = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() || self.failed.load(Ordering::SeqCst) {
            // the old one locks the file
            *held = None;
            *held = Some(Database::open(&self.path).map_err(|it| Self::failure(&self.path, it))?);
            self.failed.store(false, Ordering::SeqCst);
            tracing::warn!("{} opened again after an I/O error", self.path.display());
        }
        drop(held);
        Ok(read())
    }

    fn write<T>(&self, change: impl FnOnce(&WriteTransaction) -> Tx<T>) -> Result<T> {
        let held = self.database()?;
        let database = held.as_ref().ok_or_else(|| self.failed(redb::Error::PreviousIo))?;
        let tx = database.begin_write().map_err(|error| self.failed(error))?;
        match change(&tx) {
            Ok(value) => {
                tx.commit().map_err(|error| self.failed(error))?;
                Ok(value)
            }
            Err(TxError::Store(error)) => Err(self.failed(*error)),
            Err(TxError::Refused(error)) => Err(*error),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&ReadTransaction) -> Tx<T>) -> Result<T> {
        let held = self.database()?;
        let database = held.as_ref().ok_or_else(|| self.failed(redb::Error::PreviousIo))?;
        let tx = database.begin_read().map_err(|error| self.failed(error))?;
        look(&tx).map_err(|error| match error {
            TxError::Store(error) => self.failed(*error),
            TxError::Refused(error) => *error,
        })
    }

    /// Makes an active snapshot or a view. `directory` makes its directory; when that fails, so does this.
    pub(crate) fn create(
        &self,
        new: New<'_>,
        directory: impl FnOnce(u64) -> Result<()>,
    ) -> Result<Snapshot> {
        let New { name, kind, parent, labels } = new;
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS)?;
            if snapshots.get(name)?.is_some() {
                return refuse(Error::Exists { name: name.to_owned() });
            }
            if let Some(parent) = parent {
                expect(parent, &find(&snapshots, parent)?, Kind::Committed)?;
            }
            let id = next_id(tx)?;
            let now = SystemTime::now();
            let parent = parent.map(str::to_owned);
            let snapshot =
                Snapshot { id, kind, parent, labels, created: now, updated: now, layer: None };
            put(&mut snapshots, name, &snapshot)?;
            tx.open_table(IDS)?.insert(id, name)?;
            directory(id)?;
            Ok(snapshot)
        })
    }

    /// Turns an active snapshot into a committed one. Returns what it was.
    pub(crate) fn commit(&self, commit: Commit<'_>) -> Result<Snapshot> {
        let Commit { key, name, parent, diff_id, labels } = commit;
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS)?;
            if snapshots.get(name)?.is_some() {
                return refuse(Error::Exists { name: name.to_owned() });
            }
            let active = find(&snapshots, key)?;
            expect(key, &active, Kind::Active)?;
            if let Some(parent) = parent {
                expect(parent, &find(&snapshots, parent)?, Kind::Committed)?;
            }
            layer(&tx.open_table(LAYERS)?, diff_id)?;
            let now = SystemTime::now();
            let committed = Snapshot {
                kind: Kind::Committed,
                parent: parent.map(str::to_owned).or_else(|| active.parent.clone()),
                labels,
                created: now,
                updated: now,
                layer: Some(*diff_id),
                ..active
            };
            snapshots.remove(key)?;
            put(&mut snapshots, name, &committed)?;
            tx.open_table(IDS)?.insert(active.id, name)?;
            Ok(active)
        })
    }

    /// Notes that `diff_id` was applied to the active snapshot `key`.
    pub(crate) fn apply(&self, key: &str, diff_id: &DiffId) -> Result<()> {
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS)?;
            let mut active = find(&snapshots, key)?;
            expect(key, &active, Kind::Active)?;
            layer(&tx.open_table(LAYERS)?, diff_id)?;
            match active.layer {
                Some(held) if held != *diff_id => {
                    let (name, applied) = (key.to_owned(), *diff_id);
                    return refuse(Error::LayerTwice { name, held, applied });
                }
                _ => active.layer = Some(*diff_id),
            }
            put(&mut snapshots, key, &active)
        })
    }

    /// Replaces a snapshot's labels by what `change` makes of them.
    pub(crate) fn relabel(
        &self,
        name: &str,
        change: impl FnOnce(Labels) -> Labels,
    ) -> Result<Snapshot> {
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS)?;
            let mut snapshot = find(&snapshots, name)?;
            snapshot.labels = change(snapshot.labels);
            snapshot.updated = SystemTime::now();
            put(&mut snapshots, name, &snapshot)?;
            Ok(snapshot)
        })
    }

    /// Removes a snapshot without children; and its layer, if it was the last to use it.
    pub(crate) fn remove(&self, name: &str) -> Result<Removed> {
        self.write(|tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS)?;
            let snapshot = find(&snapshots, name)?;
            let rest: Vec<(String, Snapshot)> = entries(&snapshots)?;
            if rest.iter().any(|(_, other)| other.parent.as_deref() == Some(name)) {
                return refuse(Error::HasChildren { name: name.to_owned() });
            }
            snapshots.remove(name)?;
            tx.open_table(IDS)?.remove(snapshot.id)?;
            let used = |diff_id: &DiffId| {
                rest.iter().any(|(other, record)| other != name && record.layer == Some(*diff_id))
            };
            let unused = snapshot.layer.filter(|diff_id| !used(diff_id));
            if let Some(diff_id) = &unused {
                forget_layer(tx, diff_id)?;
            }
            Ok(Removed { snapshot, unused_layer: unused })
        })
    }

    /// A snapshot by key or name.
    pub(crate) fn snapshot(&self, name: &str) -> Result<Snapshot> {
        self.read(|tx| find(&tx.open_table(SNAPSHOTS)?, name))
    }

    /// Key or name of the snapshot with the directory `id`.
    pub(crate) fn name_of(&self, id: u64) -> Result<Option<String>> {
        self.read(|tx| Ok(tx.open_table(IDS)?.get(id)?.map(|name| name.value().to_owned())))
    }

    /// Every snapshot, by name.
    pub(crate) fn snapshots(&self) -> Result<Vec<(String, Snapshot)>> {
        self.read(|tx| entries(&tx.open_table(SNAPSHOTS)?))
    }

    /// The layers of a snapshot and its parents, bottom first: a committed one's own included, an active one's the
    /// applied one, if any.
    pub(crate) fn layers_of(&self, snapshot: &Snapshot) -> Result<Vec<Layer>> {
        self.read(|tx| {
            let (snapshots, layers) = (tx.open_table(SNAPSHOTS)?, tx.open_table(LAYERS)?);
            let mut stack = Vec::new();
            let mut next = Some(snapshot.clone());
            while let Some(snapshot) = next {
                if let Some(diff_id) = &snapshot.layer {
                    stack.push(layer(&layers, diff_id)?);
                }
                next = snapshot.parent.map(|parent| find(&snapshots, &parent)).transpose()?;
            }
            stack.reverse();
            Ok(stack)
        })
    }

    /// Records a packed layer and the blob it was made of.
    pub(crate) fn insert_layer(&self, packed: &Layer, blob: &LayerDigest) -> Result<()> {
        self.write(|tx| {
            let mut layers = tx.open_table(LAYERS)?;
            let diff_id = packed.diff_id.to_string();
            put(&mut layers, &diff_id, packed)?;
            tx.open_table(BLOBS)?.insert(blob.to_string().as_str(), diff_id.as_str())?;
            Ok(())
        })
    }

    /// A layer by the digest of its tar.
    pub(crate) fn layer(&self, diff_id: &DiffId) -> Result<Layer> {
        self.read(|tx| layer(&tx.open_table(LAYERS)?, diff_id))
    }

    /// The layer that was packed from a blob.
    pub(crate) fn layer_of_blob(&self, blob: &LayerDigest) -> Result<Option<Layer>> {
        self.read(|tx| {
            let blobs = tx.open_table(BLOBS)?;
            let Some(diff_id) = blobs.get(blob.to_string().as_str())? else { return Ok(None) };
            let layers = tx.open_table(LAYERS)?;
            let Some(bytes) = layers.get(diff_id.value())? else { return Ok(None) };
            decode(diff_id.value(), bytes.value()).map(Some)
        })
    }

    /// Every layer.
    pub(crate) fn layers(&self) -> Result<Vec<Layer>> {
        self.read(|tx| {
            Ok(entries(&tx.open_table(LAYERS)?)?.into_iter().map(|(_, layer)| layer).collect())
        })
    }

    /// Drops the records of those layers that no snapshot uses and that were packed before `then`.
    pub(crate) fn forget_unused(&self, then: SystemTime) -> Result<Vec<DiffId>> {
        self.write(|tx| {
            let snapshots: Vec<(String, Snapshot)> = entries(&tx.open_table(SNAPSHOTS)?)?;
            let layers: Vec<(String, Layer)> = entries(&tx.open_table(LAYERS)?)?;
            let used =
                |diff_id| snapshots.iter().any(|(_, snapshot)| snapshot.layer == Some(diff_id));
            let unused = layers.into_iter().map(|(_, layer)| layer);
            let unused: Vec<DiffId> = unused
                .filter(|layer| layer.packed < then && !used(layer.diff_id))
                .map(|layer| layer.diff_id)
                .collect();
            unused.iter().try_for_each(|diff_id| forget_layer(tx, diff_id))?;
            Ok(unused)
        })
    }
}

/// Whether nothing was ever kept in `root`. Without the database every snapshot and layer there would belong to
/// nothing, and be removed.
fn is_new(root: &Path) -> Result<bool> {
    for inside in ["snapshots", "layers"] {
        let names = match layout::names_in(&root.join(inside)) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                continue;
            }
            names => names?,
        };
        if names.iter().any(|name| !name.starts_with(layout::UNFINISHED)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn corrupted() -> redb::Error {
    redb::Error::Corrupted("pages that are not as they were written".to_owned())
}

/// What [`Store::remove`] took away.
#[derive(Debug)]
pub(crate) struct Removed {
    /// The record.
    pub(crate) snapshot: Snapshot,
    /// The layer that nothing uses any more.
    pub(crate) unused_layer: Option<DiffId>,
}

/// Inside a transaction: an answer of redb's, or a refusal of ours, which rolls it back.
#[derive(Debug)]
enum TxError {
    Store(Box<redb::Error>),
    Refused(Box<Error>),
}

type Tx<T> = std::result::Result<T, TxError>;

impl From<redb::TableError> for TxError {
    fn from(error: redb::TableError) -> Self {
        Self::Store(Box::new(error.into()))
    }
}

impl From<redb::StorageError> for TxError {
    fn from(error: redb::StorageError) -> Self {
        Self::Store(Box::new(error.into()))
    }
}

impl From<Error> for TxError {
    fn from(error: Error) -> Self {
        Self::Refused(Box::new(error))
    }
}

fn refuse<T>(error: Error) -> Tx<T> {
    Err(error.into())
}

fn expect(name: &str, snapshot: &Snapshot, expected: Kind) -> Tx<()> {
    if snapshot.kind == expected {
        return Ok(());
    }
    refuse(Error::NotA { name: name.to_owned(), found: snapshot.kind, expected })
}

fn decode<T: for<'de> Deserialize<'de>>(name: &str, bytes: &[u8]) -> Tx<T> {
    serde_json::from_slice(bytes)
        .map_err(|source| Error::Record { what: name.to_owned(), source }.into())
}

fn put<T: Serialize>(table: &mut redb::Table<'_, &str, &[u8]>, name: &str, record: &T) -> Tx<()> {
    let bytes = serde_json::to_vec(record)
        .map_err(|source| Error::Record { what: name.to_owned(), source })?;
    table.insert(name, bytes.as_slice())?;
    Ok(())
}

fn find(snapshots: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Tx<Snapshot> {
    match snapshots.get(name)? {
        Some(bytes) => decode(name, bytes.value()),
        None => refuse(Error::NotFound { name: name.to_owned() }),
    }
}

fn layer(layers: &impl ReadableTable<&'static str, &'static [u8]>, diff_id: &DiffId) -> Tx<Layer> {
    let name = diff_id.to_string();
    match layers.get(name.as_str())? {
        Some(bytes) => decode(&name, bytes.value()),
        None => refuse(Error::LayerMissing { diff_id: *diff_id }),
    }
}

fn entries<T: for<'de> Deserialize<'de>>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Tx<Vec<(String, T)>> {
    let mut found = Vec::new();
    for entry in table.iter()? {
        let (name, bytes) = entry?;
        found.push((name.value().to_owned(), decode(name.value(), bytes.value())?));
    }
    Ok(found)
}

fn next_id(tx: &WriteTransaction) -> Tx<u64> {
    let mut meta = tx.open_table(META)?;
    let id = meta.get("next")?.map_or(1, |next| next.value());
    meta.insert("next", id.saturating_add(1))?;
    Ok(id)
}

/// Drops a layer's record and the blobs that lead to it.
fn forget_layer(tx: &WriteTransaction, diff_id: &DiffId) -> Tx<()> {
    let name = diff_id.to_string();
    tx.open_table(LAYERS)?.remove(name.as_str())?;
    tx.open_table(BLOBS)?.retain(|_, held| held != name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use hallmark_verity::{DataBlocks, Salt};

    use super::*;

    fn layer(text: &str) -> (Layer, LayerDigest) {
        let diff_id = DiffId::of(text.as_bytes());
        let layer = Layer {
            diff_id,
            root_hash: RootHash::from_bytes(*diff_id.as_bytes()),
            params: VolumeParams::new(Salt::default(), DataBlocks(1)).unwrap(),
            tar_len: 1024,
            image_len: 8192,
            packed: SystemTime::now(),
        };
        (layer, LayerDigest::of(text.as_bytes()))
    }

    fn insert(store: &Store, text: &str) -> DiffId {
        let (layer, blob) = layer(text);
        store.insert_layer(&layer, &blob).unwrap();
        layer.diff_id
    }

    fn create(store: &Store, name: &str, kind: Kind, parent: Option<&str>) -> Result<Snapshot> {
        store.create(New { name, kind, parent, labels: Labels::new() }, |_| Ok(()))
    }

    /// Prepares, applies and commits.
    fn committed(store: &Store, name: &str, parent: Option<&str>, diff_id: &DiffId) {
        create(store, "key", Kind::Active, parent).unwrap();
        store.apply("key", diff_id).unwrap();
        let labels = Labels::new();
        store.commit(Commit { key: "key", name, parent: None, diff_id, labels }).unwrap();
    }

    #[test]
    fn a_chain_lists_its_layers_bottom_first() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (one, two) = (insert(&store, "one"), insert(&store, "two"));
        committed(&store, "a", None, &one);
        committed(&store, "b", Some("a"), &two);
        let active = create(&store, "c", Kind::Active, Some("b")).unwrap();
        let layers: Vec<DiffId> =
            store.layers_of(&active).unwrap().iter().map(|layer| layer.diff_id).collect();
        assert_eq!(layers, [one, two]);
        assert_eq!(store.name_of(active.id).unwrap().as_deref(), Some("c"));
        drop(store);
        // nothing acknowledged is lost
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.snapshot("c").unwrap(), active);
        assert_eq!(store.layer_of_blob(&layer("two").1).unwrap().unwrap().diff_id, two);
    }

    #[test]
    fn names_parents_and_kinds_are_held() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let one = insert(&store, "one");
        committed(&store, "a", None, &one);
        create(&store, "k", Kind::Active, Some("a")).unwrap();
        let is = |found: Result<Snapshot>| found.unwrap_err().to_string();
        assert!(is(create(&store, "k", Kind::View, None)).contains("exists"));
        assert!(
            is(create(&store, "x", Kind::Active, Some("nope"))).contains("\"nope\" is not there")
        );
        assert!(
            is(create(&store, "x", Kind::Active, Some("k")))
                .contains("is active, expected committed")
        );
        let commit = |key, name, parent| {
            store.commit(Commit { key, name, parent, diff_id: &one, labels: Labels::new() })
        };
        assert!(is(commit("a", "x", None)).contains("is committed, expected active"));
        assert!(is(commit("k", "a", None)).contains("exists"));
        assert!(is(commit("k", "x", Some("k"))).contains("expected committed"));
        assert!(store.remove("a").unwrap_err().to_string().contains("has children"));
        assert!(matches!(store.remove("x").unwrap_err(), Error::NotFound { .. }));
    }

    #[test]
    fn a_directory_that_fails_takes_the_record_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let new = || New { name: "k", kind: Kind::Active, parent: None, labels: Labels::new() };
        assert!(store.create(new(), |_| Err(Error::ForeignMounts)).is_err());
        assert!(matches!(store.snapshot("k").unwrap_err(), Error::NotFound { .. }));
        store.create(new(), |_| Ok(())).unwrap();
    }

    #[test]
    fn a_layer_goes_with_its_last_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let one = insert(&store, "one");
        committed(&store, "ns1/1/a", None, &one);
        committed(&store, "ns2/1/a", None, &one);
        assert_eq!(store.remove("ns1/1/a").unwrap().unused_layer, None);
        assert_eq!(store.remove("ns2/1/a").unwrap().unused_layer, Some(one));
        assert!(matches!(store.layer(&one).unwrap_err(), Error::LayerMissing { .. }));
        assert_eq!(store.layer_of_blob(&layer("one").1).unwrap(), None);
        // applied after it went: told, so that it is packed again
        create(&store, "k", Kind::Active, None).unwrap();
        assert!(matches!(store.apply("k", &one).unwrap_err(), Error::LayerMissing { .. }));
    }

    #[test]
    fn a_second_layer_for_one_snapshot_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (one, two) = (insert(&store, "one"), insert(&store, "two"));
        create(&store, "k", Kind::Active, None).unwrap();
        store.apply("k", &one).unwrap();
        store.apply("k", &one).unwrap();
        assert!(matches!(store.apply("k", &two).unwrap_err(), Error::LayerTwice { .. }));
    }

    #[test]
    fn layers_that_nothing_uses_stay_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (used, unused) = (insert(&store, "used"), insert(&store, "unused"));
        committed(&store, "a", None, &used);
        assert!(store.forget_unused(SystemTime::UNIX_EPOCH).unwrap().is_empty());
        let later = SystemTime::now() + std::time::Duration::from_secs(1);
        assert_eq!(store.forget_unused(later).unwrap(), [unused]);
        assert_eq!(store.layers().unwrap().len(), 1);
    }

    #[test]
    fn two_daemons_cannot_share_a_root() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Store::open(directory.path()).unwrap();
        assert!(matches!(Store::open(directory.path()).unwrap_err(), Error::Store { .. }));
    }
}
