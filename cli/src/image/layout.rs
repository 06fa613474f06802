//! An OCI layout in a directory: `oci-layout`, `index.json`, `blobs/sha256/<hex>`.
//!
//! A referrer is added blobs first and `index.json` last, each by rename, so that a reader sees the old image or
//! the sealed one. When anything fails the blobs that were added are removed again.
//!
//! Source: OCI image-spec 1.1, `image-layout.md`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hallmark_seal::referrer::{ARTIFACT_TYPE, Bundle, MANIFEST_MEDIA_TYPE};
use hallmark_verity::LayerDigest;

use super::oci::{Descriptor, Index};
use super::{Store, digest};
use crate::error::{Error, Result};
use crate::replace::replace;

/// Bytes of the largest `index.json`.
pub(super) const MAX_INDEX: u64 = 8 << 20;

/// A layout that is read.
pub(crate) struct Layout {
    directory: PathBuf,
    index: Vec<u8>,
    entries: Vec<Descriptor>,
}

impl Layout {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("index.json");
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        let index = read_index(file, &path)?;
        let entries = entries(&index, &path)?;
        Ok(Self { directory: directory.to_owned(), index, entries })
    }

    /// Adds a referrer and lists it.
    pub(crate) fn add(&self, bundle: &Bundle) -> Result<()> {
        let mut added = Added(Vec::new());
        for (digest, bytes) in blobs(bundle) {
            let path = self.path(digest);
            match fs::read(&path) {
                Ok(there) if LayerDigest::of(&there) == digest => continue,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => added.0.push(path.clone()),
                Err(error) => return Err(Error::file("read", &path)(error)),
            }
            replace(&path, 0o644, bytes)?;
        }
        let path = self.directory.join("index.json");
        replace(&path, 0o644, &listed(&self.index, bundle, &path)?)?;
        added.0.clear();
        Ok(())
    }

    fn path(&self, digest: LayerDigest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.to_hex())
    }
}

impl Store for Layout {
    fn entries(&self) -> &[Descriptor] {
        &self.entries
    }

    fn open(&self, name: &str, _size: u64) -> Result<Box<dyn Read + Send + '_>> {
        let path = self.path(digest(name)?);
        Ok(Box::new(File::open(&path).map_err(Error::file("open blob", &path))?))
    }
}

/// Blobs that are taken away again unless everything worked.
struct Added(Vec<PathBuf>);

impl Drop for Added {
    fn drop(&mut self) {
        for path in &self.0 {
            // what cannot be removed is unreferenced and harmless; the error that led here is the one to report
            drop(fs::remove_file(path));
        }
    }
}

pub(super) fn read_index(file: impl Read, path: &Path) -> Result<Vec<u8>> {
    let mut index = Vec::new();
    let most = MAX_INDEX.saturating_add(1);
    file.take(most).read_to_end(&mut index).map_err(Error::file("read", path))?;
    if index.len() as u64 > MAX_INDEX {
        let object = path.display().to_string();
        return Err(Error::image(
            object,
            "a longer index",
            format!("at most {MAX_INDEX} bytes"),
            "",
        ));
    }
    Ok(index)
}

pub(super) fn entries(index: &[u8], path: &Path) -> Result<Vec<Descriptor>> {
    let index: Index = serde_json::from_slice(index).map_err(|source| Error::Json {
        object: path.display().to_string(),
        expected: "an OCI image index",
        source,
    })?;
    Ok(index.manifests)
}

/// Every blob of a referrer, its manifest last.
pub(super) fn blobs(bundle: &Bundle) -> impl Iterator<Item = (LayerDigest, &[u8])> {
    let manifest = (LayerDigest::from_bytes(*bundle.digest.as_bytes()), bundle.manifest.as_slice());
    let parts = bundle.blobs.iter().map(|blob| (blob.descriptor.digest, blob.bytes.as_slice()));
    parts.chain([manifest])
}

/// `index.json` with the referrer in it; whatever else it holds stays.
pub(super) fn listed(index: &[u8], bundle: &Bundle, path: &Path) -> Result<Vec<u8>> {
    let json = |source| Error::Json {
        object: path.display().to_string(),
        expected: "an OCI image index",
        source,
    };
    let mut value: serde_json::Value = serde_json::from_slice(index).map_err(json)?;
    let manifests = value.get_mut("manifests").and_then(serde_json::Value::as_array_mut);
    let Some(manifests) = manifests else {
        let object = path.display().to_string();
        return Err(Error::image(object, "no manifests", "an OCI image index", ""));
    };
    let name = bundle.digest.to_string();
    if !manifests.iter().any(|one| one.get("digest").is_some_and(|digest| *digest == *name)) {
        manifests.push(serde_json::json!({
            "mediaType": MANIFEST_MEDIA_TYPE,
            "digest": name,
            "size": bundle.manifest.len(),
            "artifactType": ARTIFACT_TYPE,
        }));
    }
    serde_json::to_vec(&value).map_err(json)
}
