//! An image wherever it lies: an OCI layout, an archive of one, or containerd's content store.
//!
//! A [`Store`] hands out blobs by digest and says which manifests it starts with; everything else is the same for all
//! three. Every document read here is compared with its digest; layers are compared where they are packed.

pub(crate) mod archive;
pub(crate) mod containerd;
pub(crate) mod layout;
pub(crate) mod oci;
mod proto;

use std::io::Read;
use std::path::PathBuf;

use hallmark_seal::Subject;
use hallmark_verity::{DiffId, ImageDigest, LayerDigest};

use crate::error::{Error, Result};
use oci::{Config, Descriptor, Index, Manifest, Platform};

/// Bytes of the largest index, manifest or configuration that is read: what containerd reads.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;
const MANIFEST_MEDIA_TYPES: [&str; 2] = hallmark_seal::SUBJECT_MEDIA_TYPES;

/// Where blobs come from.
pub(crate) trait Store {
    /// The descriptors it starts with: those of `index.json`, or the image's target in containerd.
    fn entries(&self) -> &[Descriptor];

    /// The descriptors of what may be a referrer, or anything else.
    ///
    /// # Errors
    /// Where the store does not answer.
    fn candidates(&self) -> Result<Vec<Descriptor>> {
        Ok(self.entries().to_vec())
    }

    /// A blob's bytes, not yet compared with its digest.
    ///
    /// # Errors
    /// Where the blob is not there.
    fn open(&self, digest: &str, size: u64) -> Result<Box<dyn Read + Send + '_>>;
}

/// What IMAGE on the command line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// A directory with `index.json`.
    Layout(PathBuf),
    /// A tar of such a directory.
    Archive(PathBuf),
    /// An image in containerd, `[NAMESPACE/]NAME`.
    Containerd(String),
}

impl Location {
    pub(crate) fn parse(image: &str) -> Result<Self> {
        if let Some(name) = image.strip_prefix("containerd://") {
            return if name.is_empty() {
                Err(Error::Usage {
                    found: "an image without a name".into(),
                    expected: "containerd://[NAMESPACE/]NAME".into(),
                })
            } else {
                Ok(Self::Containerd(name.to_owned()))
            };
        }
        let path = PathBuf::from(image);
        let kind = std::fs::metadata(&path).map_err(Error::file("open", &path))?;
        Ok(if kind.is_dir() { Self::Layout(path) } else { Self::Archive(path) })
    }
}

/// Which image of a store.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) platform: Platform,
    /// A name or digest, where there are several images.
    pub(crate) name: Option<String>,
}

/// One platform's image, read and consistent: as many diffIDs as layers, all digests of SHA-256.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) subject: Subject,
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Config,
    /// The image's name in the store, where there is one.
    pub(crate) name: Option<String>,
}

/// A layer as manifest and configuration describe it.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) media_type: String,
    pub(crate) digest: LayerDigest,
    pub(crate) size: u64,
    pub(crate) diff_id: DiffId,
}

/// A manifest that fits the selection.
struct Candidate {
    descriptor: Descriptor,
    bytes: Vec<u8>,
    config: Config,
    name: Option<String>,
}

impl Image {
    /// Finds the one image that the selection means.
    pub(crate) fn find(store: &dyn Store, selection: &Selection) -> Result<Self> {
        let mut search = Search { store, selection, found: Vec::new(), passed: Vec::new() };
        for entry in store.entries() {
            let name = entry.names().next().map(str::to_owned);
            let meant = selection.name.as_deref().is_none_or(|wanted| {
                entry.digest == wanted || entry.names().any(|name| name == wanted)
            });
            if meant {
                search.visit(entry, name.as_ref(), 0)?;
            }
        }
        search.only()?.image()
    }
}

struct Search<'a> {
    store: &'a dyn Store,
    selection: &'a Selection,
    found: Vec<Candidate>,
    /// Platforms that were not the one asked for.
    passed: Vec<String>,
}

impl Search<'_> {
    fn visit(&mut self, entry: &Descriptor, name: Option<&String>, depth: usize) -> Result<()> {
        if entry.artifact_type.is_some() || entry.annotations.contains_key(oci::REFERENCE_TYPE) {
            return Ok(());
        }
        if entry.is_index() {
            if depth == MAX_DEPTH {
                let found = format!("more than {MAX_DEPTH} indexes within each other");
                return Err(Error::image(&entry.digest, found, "an index of image manifests", ""));
            }
            let index: Index = document(self.store, entry)?.1;
            return index
                .manifests
                .iter()
                .try_for_each(|entry| self.visit(entry, name, depth.saturating_add(1)));
        }
        let known = MANIFEST_MEDIA_TYPES.contains(&entry.media_type.as_str());
        if !known || self.found.iter().any(|known| known.descriptor.digest == entry.digest) {
            return Ok(());
        }
        if let Some(platform) = entry.platform.as_ref().filter(|p| !p.is(&self.selection.platform))
        {
            self.passed.push(platform.to_string());
            return Ok(());
        }
        let (bytes, manifest): (_, Manifest) = document(self.store, entry)?;
        if manifest.artifact_type.is_some() || manifest.subject.is_some() {
            return Ok(());
        }
        let config: Config = document(self.store, &manifest.config)?.1;
        if config.platform.is(&self.selection.platform) {
            let (descriptor, name) = (entry.clone(), name.cloned());
            self.found.push(Candidate { descriptor, bytes, config, name });
        } else {
            self.passed.push(config.platform.to_string());
        }
        Ok(())
    }

    fn only(mut self) -> Result<Candidate> {
        let wanted = match &self.selection.name {
            Some(name) => format!("an image {name:?} for {}", self.selection.platform),
            None => format!("one image for {}", self.selection.platform),
        };
        match (self.found.pop(), self.found.as_slice()) {
            (Some(only), []) => Ok(only),
            (Some(last), others) => {
                let names = others.iter().chain([&last]).map(|candidate| {
                    candidate.name.as_deref().unwrap_or(candidate.descriptor.digest.as_str())
                });
                let names = names.collect::<Vec<_>>().join(", ");
                Err(Error::image(
                    "image",
                    format!("several: {names}"),
                    wanted,
                    "choose with --name",
                ))
            }
            (None, _) if self.passed.is_empty() => {
                Err(Error::image("image", "no image manifest", wanted, ""))
            }
            (None, _) => {
                let found = format!("images for {}", self.passed.join(", "));
                Err(Error::image("image", found, wanted, "choose with --platform"))
            }
        }
    }
}

impl Candidate {
    fn image(self) -> Result<Image> {
        let manifest: Manifest = parse(&self.bytes, "image manifest")?;
        let (found, expected) = (self.config.rootfs.diff_ids.len(), manifest.layers.len());
        if found != expected {
            return Err(Error::image(
                format!("image {}", self.descriptor.digest),
                format!("{found} diffIDs in the configuration"),
                format!("one for each of the manifest's {expected} layers"),
                "",
            ));
        }
        let layers = manifest.layers.iter().zip(&self.config.rootfs.diff_ids);
        let layers = layers.map(|(layer, diff_id)| {
            Ok(Layer {
                media_type: layer.media_type.clone(),
                digest: digest(&layer.digest)?,
                size: layer.size,
                diff_id: *diff_id,
            })
        });
        let subject = Subject {
            media_type: manifest.media_type.unwrap_or_else(|| self.descriptor.media_type.clone()),
            digest: ImageDigest::of(&self.bytes),
            size: self.descriptor.size,
        };
        let layers = layers.collect::<Result<_>>()?;
        Ok(Image { subject, layers, config: self.config, name: self.name })
    }
}

/// Reads a JSON blob whole; its bytes are the ones its digest is of.
fn document<T: serde::de::DeserializeOwned>(
    store: &dyn Store,
    entry: &Descriptor,
) -> Result<(Vec<u8>, T)> {
    let bytes = blob(store, &entry.digest, entry.size, MAX_DOCUMENT)?;
    let value = parse(&bytes, &entry.digest)?;
    Ok((bytes, value))
}

/// Reads a blob of at most `limit` bytes and compares it with its digest and size.
pub(crate) fn blob(store: &dyn Store, name: &str, size: u64, limit: u64) -> Result<Vec<u8>> {
    let object = format!("blob {name}");
    if size > limit {
        let expected = format!("at most {limit} bytes");
        return Err(Error::image(object, format!("{size} bytes"), expected, ""));
    }
    let expected = digest(name)?;
    let mut bytes = Vec::new();
    store
        .open(name, size)?
        .take(size.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(Error::file("read blob", std::path::Path::new(name)))?;
    let found = LayerDigest::of(&bytes);
    if found != expected || bytes.len() as u64 != size {
        let found = format!("{found} of {} bytes", bytes.len());
        return Err(Error::image(
            object,
            found,
            format!("{expected} of {size} bytes"),
            "fetch it anew",
        ));
    }
    Ok(bytes)
}

/// A blob's digest; only SHA-256 is known here.
pub(crate) fn digest(text: &str) -> Result<LayerDigest> {
    text.parse().map_err(|source: hallmark_verity::Error| {
        Error::image("digest", source.to_string(), "sha256", "")
    })
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], object: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json {
        object: object.to_owned(),
        expected: "an OCI or Docker document",
        source,
    })
}
