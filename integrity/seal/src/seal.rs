//! The seal: what is signed, as a value and as bytes.
//!
//! ```json
//! {"schemaVersion":1,
//!  "subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:…","size":1234},
//!  "repositories":["registry.example/app"],
//!  "layerFormat":"hallmark-erofs.1",
//!  "issued":"2026-11-24T00:00:00Z","notAfter":"2027-11-24T00:00:00Z","serial":1,
//!  "layers":[{"digest":"sha256:…","diffID":"sha256:…","rootHash":"<64 hex>","salt":"<hex>","dataBlocks":123}],
//!  "pins":{"entrypoint":["/bin/app"],"env":["A=b"]}}
//! ```
//!
//! `notAfter`, `pins` and each pin are optional; any other key, and any key twice, is refused. The writer writes
//! exactly this order without white space; the reader takes any order, because what is signed is the bytes.
//! Source: `DESIGN.md`, Schemas.

use hallmark_verity::{DataBlocks, DiffId, ImageDigest, LayerDigest, RootHash, Salt, VolumeParams};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::repository::RepositoryGlob;
use crate::stack::{StackId, stack};
use crate::time::Timestamp;

/// Media type of a seal's bytes.
pub const SEAL_MEDIA_TYPE: &str = "application/vnd.hallmark.seal.v1+json";
/// Media types of what may be sealed: one platform's image manifest, never an index.
pub const SUBJECT_MEDIA_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Bytes of the largest seal.
pub const MAX_SEAL_BYTES: usize = 1 << 20;
/// Layers of the largest image: overlayfs takes 500 lowers.
pub const MAX_LAYERS: usize = 500;
/// Repository globs of one seal.
pub const MAX_REPOSITORIES: usize = 64;

const OBJECT: &str = "seal";

/// What a seal states about one image. Holding one says that the bytes parsed and nothing else:
/// [`Claim::verify`](crate::Claim::verify) says who signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seal {
    /// Always 1.
    pub schema_version: SchemaVersion,
    /// The platform image manifest that was sealed.
    pub subject: Subject,
    /// The repositories it is meant for; at least one.
    pub repositories: Vec<RepositoryGlob>,
    /// How a layer tar becomes a root hash.
    pub layer_format: LayerFormat,
    /// When the signer says it was made.
    pub issued: Timestamp,
    /// The last moment it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// Grows with each seal of the same repositories.
    pub serial: u64,
    /// The image's layers, bottom first, repeats included; at least one.
    pub layers: Vec<SealedLayer>,
    /// What a container of the image must be started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pins: Option<Pins>,
}

/// The one `schemaVersion` there is: 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SchemaVersion;

/// The descriptor of the sealed image manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// One of [`SUBJECT_MEDIA_TYPES`].
    pub media_type: String,
    /// Digest of the manifest's bytes.
    pub digest: ImageDigest,
    /// Size of the manifest in bytes.
    pub size: u64,
}

/// One layer: what came in, and the volume it becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SealedLayer {
    /// Digest of the compressed blob.
    pub digest: LayerDigest,
    /// Digest of the uncompressed tar.
    #[serde(rename = "diffID")]
    pub diff_id: DiffId,
    /// Root hash of the packed layer's hash tree.
    pub root_hash: RootHash,
    /// Salt of the hash tree.
    pub salt: Salt,
    /// Length of the data device in 4096-byte blocks.
    pub data_blocks: DataBlocks,
}

/// How layers are packed: part of what is signed, since another writer would give other root hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LayerFormat {
    /// EROFS image, hash tree behind it; the format of the crate `hallmark-erofs`.
    #[default]
    #[serde(rename = "hallmark-erofs.1")]
    HallmarkErofs1,
}

/// What the gate compares with the container's process, where present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pins {
    /// The first arguments of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Variables, `NAME=value`, that the environment must hold unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
}

impl Seal {
    /// Reads a seal's exact bytes.
    ///
    /// # Errors
    /// `Limit`, `Malformed`, `Version`, `LayerFormat`, `Subject` and `Layers`, as their names say.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_SEAL_BYTES {
            return Err(Error::limit(OBJECT, bytes.len(), MAX_SEAL_BYTES, "bytes"));
        }
        known_versions(bytes)?;
        let seal: Self = serde_json::from_slice(bytes)
            .map_err(|source| Error::malformed(OBJECT, "a seal of version 1", source))?;
        seal.bounded()?;
        Ok(seal)
    }

    /// The bytes that are signed.
    ///
    /// # Errors
    /// The same as [`parse`](Self::parse): what could not be read back is not written.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.bounded()?;
        let bytes = serde_json::to_vec(self)
            .map_err(|source| Error::malformed(OBJECT, "a seal of version 1", source))?;
        if bytes.len() > MAX_SEAL_BYTES {
            return Err(Error::limit(OBJECT, bytes.len(), MAX_SEAL_BYTES, "bytes"));
        }
        Ok(bytes)
    }

    /// The root hashes that are mounted, bottom first: the topmost copy of each.
    #[must_use]
    pub fn stack(&self) -> Vec<RootHash> {
        let all: Vec<RootHash> = self.layers.iter().map(|layer| layer.root_hash).collect();
        stack(&all)
    }

    /// The name of that stack.
    #[must_use]
    pub fn stack_id(&self) -> StackId {
        StackId::of(&self.stack())
    }

    fn bounded(&self) -> Result<()> {
        self.some_layers()?;
        let repositories = self.repositories.len();
        if repositories == 0 {
            let expected = "at least one repository (\"**\" is every one)";
            return Err(Error::new(ErrorKind::Malformed, OBJECT, "no repositories", expected));
        }
        if repositories > MAX_REPOSITORIES {
            return Err(Error::limit(OBJECT, repositories, MAX_REPOSITORIES, "repositories"));
        }
        if !SUBJECT_MEDIA_TYPES.contains(&self.subject.media_type.as_str()) {
            return Err(Error::new(
                ErrorKind::Subject,
                "seal: subject",
                format_args!("media type {:?}", self.subject.media_type),
                format_args!("an image manifest, {}", SUBJECT_MEDIA_TYPES.join(" or ")),
            ));
        }
        Ok(())
    }
}

impl Seal {
    fn some_layers(&self) -> Result<()> {
        let layers = self.layers.len();
        if layers == 0 {
            return Err(Error::new(ErrorKind::Layers, OBJECT, "no layers", "at least one layer"));
        }
        if layers > MAX_LAYERS {
            return Err(Error::limit(OBJECT, layers, MAX_LAYERS, "layers"));
        }
        for (index, layer) in self.layers.iter().enumerate() {
            layer.params().map_err(|source| {
                let object = format!("seal: layer {index}");
                Error::malformed(object, "a salt and a number of blocks that a volume has", source)
            })?;
        }
        Ok(())
    }
}

impl SealedLayer {
    /// The volume's parameters, which its root hash depends on.
    ///
    /// # Errors
    /// Where no volume has these; never of a parsed seal.
    pub fn params(&self) -> Result<VolumeParams, hallmark_verity::Error> {
        VolumeParams::new(self.salt.clone(), self.data_blocks)
    }
}

/// Reads the two keys that say whether the rest can be understood, so that a seal of a later version is
/// refused for that and not for the first key it has more.
fn known_versions(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        schema_version: Option<serde_json::Value>,
        layer_format: Option<serde_json::Value>,
    }
    let Ok(versions) = serde_json::from_slice::<Versions>(bytes) else {
        return Ok(()); // the full parse names the place
    };
    if let Some(found) = versions.schema_version.filter(|found| found.as_u64() != Some(1)) {
        let object = "seal: schemaVersion";
        return Err(Error::new(ErrorKind::Version, object, shown(&found), 1));
    }
    if let Some(found) = versions.layer_format
        && serde_json::from_value::<LayerFormat>(found.clone()).is_err()
    {
        let object = "seal: layerFormat";
        return Err(Error::new(ErrorKind::LayerFormat, object, shown(&found), LayerFormat::NAME));
    }
    Ok(())
}

fn shown(value: &serde_json::Value) -> String {
    value.to_string().chars().take(64).collect()
}

impl LayerFormat {
    const NAME: &str = "\"hallmark-erofs.1\"";
}

impl TryFrom<u64> for SchemaVersion {
    type Error = Error;

    fn try_from(version: u64) -> Result<Self> {
        match version {
            1 => Ok(Self),
            found => Err(Error::new(ErrorKind::Version, "schemaVersion", found, 1)),
        }
    }
}

impl From<SchemaVersion> for u64 {
    fn from(_: SchemaVersion) -> Self {
        1
    }
}
