//! The OCI referrer that carries a claim beside its image.
//!
//! ```json
//! {"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
//!  "artifactType":"application/vnd.hallmark.seal.v1",
//!  "config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136f…","size":2},
//!  "layers":[
//!   {"mediaType":"application/vnd.hallmark.seal.v1+json","digest":"sha256:…","size":812},
//!   {"mediaType":"application/pkcs7-signature","digest":"sha256:…","size":1893},
//!   {"mediaType":"application/vnd.cncf.notary.dmverity.layer-signature+pkcs7","digest":"sha256:…","size":591,
//!    "annotations":{"io.cncf.notary.dmverity.layer-digest":"sha256:…",
//!                   "io.cncf.notary.dmverity.layer-roothash":"<64 hex>"}}],
//!  "subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:…","size":1234},
//!  "annotations":{"org.opencontainers.image.created":"2026-11-24T00:00:00Z"}}
//! ```
//! Layer signatures stand in the order of the image's layers; a layer without one is left out. They are found again
//! by their annotations, which are hints like everything here: what comes out is a [`Claim`].
//!
//! Source: OCI image-spec 1.1 (`subject`, `artifactType`, empty descriptor); the annotations are the ones Notary's
//! dm-verity signatures use, so that one reader serves both.

use std::collections::BTreeMap;

use hallmark_verity::{ImageDigest, LayerDigest, RootHash};
use serde::{Deserialize, Serialize};

use crate::claim::{Claim, MAX_SIGNATURE_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::seal::{MAX_LAYERS, MAX_SEAL_BYTES, SEAL_MEDIA_TYPE, Subject};

/// `artifactType` of the referrer.
pub const ARTIFACT_TYPE: &str = "application/vnd.hallmark.seal.v1";
/// Media type of the referrer itself.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of the config, which is [`EMPTY_CONFIG`].
pub const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// The config's bytes.
pub const EMPTY_CONFIG: &[u8] = b"{}";
/// Media type of the seal's CMS.
pub const SIGNATURE_MEDIA_TYPE: &str = "application/pkcs7-signature";
/// Media type of a layer's PKCS#7.
pub const LAYER_SIGNATURE_MEDIA_TYPE: &str =
    "application/vnd.cncf.notary.dmverity.layer-signature+pkcs7";
/// Annotation: the digest of the layer a signature is for.
pub const LAYER_DIGEST_ANNOTATION: &str = "io.cncf.notary.dmverity.layer-digest";
/// Annotation: the root hash a signature is over.
pub const LAYER_ROOT_HASH_ANNOTATION: &str = "io.cncf.notary.dmverity.layer-roothash";
/// Bytes of the largest referrer manifest that is read.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

const CREATED_ANNOTATION: &str = "org.opencontainers.image.created";
const OBJECT: &str = "referrer";

/// A blob's descriptor, as the manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// SHA-256 of its bytes.
    pub digest: LayerDigest,
    /// Its length in bytes.
    pub size: u64,
    /// More about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A blob with its descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A referrer to be stored: the manifest and what it lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The manifest's exact bytes.
    pub manifest: Vec<u8>,
    /// Their digest.
    pub digest: ImageDigest,
    /// Config first, then the layers; each once.
    pub blobs: Vec<Blob>,
}

/// A referrer's manifest, read. Like the claim it leads to, it states nothing anybody vouched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    subject: Subject,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u8,
    media_type: &'a str,
    artifact_type: &'a str,
    config: &'a Descriptor,
    layers: Vec<&'a Descriptor>,
    subject: &'a Subject,
    annotations: BTreeMap<&'a str, String>,
}

/// What is read of any manifest; registries and tools may add keys of their own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnyManifest {
    artifact_type: Option<String>,
    subject: Option<AnySubject>,
    layers: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnySubject {
    media_type: String,
    digest: ImageDigest,
    size: u64,
}

impl Bundle {
    /// The referrer of a claim: the same claim gives the same bytes.
    ///
    /// # Errors
    /// Those of [`Claim::alleged`]; `Layers` where the signatures are not as many as the layers.
    pub fn of(claim: &Claim) -> Result<Self> {
        let seal = claim.alleged()?;
        let (found, expected) = (claim.layer_signatures.len(), seal.layers.len());
        if found != expected {
            let expected = format_args!("one (or none) for each of {expected} layers");
            let found = format_args!("{found} layer signatures");
            return Err(Error::new(ErrorKind::Layers, OBJECT, found, expected));
        }
        let config = Blob::new(EMPTY_MEDIA_TYPE, EMPTY_CONFIG);
        let mut layers = vec![
            Blob::new(SEAL_MEDIA_TYPE, &claim.seal),
            Blob::new(SIGNATURE_MEDIA_TYPE, &claim.signature),
        ];
        for (layer, signature) in seal.layers.iter().zip(&claim.layer_signatures) {
            let Some(signature) = signature else { continue };
            let mut blob = Blob::new(LAYER_SIGNATURE_MEDIA_TYPE, signature);
            blob.descriptor.annotations = BTreeMap::from([
                (LAYER_DIGEST_ANNOTATION.to_owned(), layer.digest.to_string()),
                (LAYER_ROOT_HASH_ANNOTATION.to_owned(), layer.root_hash.to_string()),
            ]);
            layers.push(blob);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST_MEDIA_TYPE,
            artifact_type: ARTIFACT_TYPE,
            config: &config.descriptor,
            layers: layers.iter().map(|blob| &blob.descriptor).collect(),
            subject: &seal.subject,
            annotations: BTreeMap::from([(CREATED_ANNOTATION, seal.issued.to_string())]),
        };
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|source| Error::malformed(OBJECT, "an OCI manifest", source))?;
        let mut blobs = vec![config];
        for blob in layers {
            if !blobs.iter().any(|known| known.descriptor.digest == blob.descriptor.digest) {
                blobs.push(blob);
            }
        }
        Ok(Self { digest: ImageDigest::of(&manifest), manifest, blobs })
    }
}

impl Blob {
    fn new(media_type: &str, bytes: &[u8]) -> Self {
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: LayerDigest::of(bytes),
            size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            annotations: BTreeMap::new(),
        };
        Self { descriptor, bytes: bytes.to_vec() }
    }
}

impl Referrer {
    /// Reads a manifest; `None` for one of another artifact type, such as an image's.
    ///
    /// # Errors
    /// `Limit` and `Malformed` for one of ours that is not as described above.
    pub fn parse(manifest: &[u8]) -> Result<Option<Self>> {
        if manifest.len() > MAX_MANIFEST_BYTES {
            return Err(Error::limit(OBJECT, manifest.len(), MAX_MANIFEST_BYTES, "bytes"));
        }
        let wrong = |source| Error::malformed(OBJECT, "an OCI manifest", source);
        let read: AnyManifest = serde_json::from_slice(manifest).map_err(wrong)?;
        if read.artifact_type.as_deref() != Some(ARTIFACT_TYPE) {
            return Ok(None);
        }
        let missing =
            |what| Error::new(ErrorKind::Malformed, OBJECT, format_args!("no {what}"), what);
        let subject = read.subject.ok_or_else(|| missing("subject"))?;
        let layers = read.layers.ok_or_else(|| missing("layers"))?;
        let layers: Vec<Descriptor> = serde_json::from_value(layers).map_err(wrong)?;
        let referrer = Self {
            subject: Subject {
                media_type: subject.media_type,
                digest: subject.digest,
                size: subject.size,
            },
            layers,
        };
        referrer.bounded()?;
        Ok(Some(referrer))
    }

    /// The image manifest it refers to, as it says.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The blobs to read for [`claim`](Self::claim), in this order. Their sizes are within bounds.
    #[must_use]
    pub fn blobs(&self) -> &[Descriptor] {
        &self.layers
    }

    /// Puts the claim together from the blobs that [`blobs`](Self::blobs) lists.
    ///
    /// # Errors
    /// `Malformed` for a blob that is not the one described, `Subject` where the seal is another image's, `Layers`
    /// for a signature of a layer the seal does not have.
    pub fn claim(&self, blobs: Vec<Vec<u8>>) -> Result<Claim> {
        if blobs.len() != self.layers.len() {
            let expected = format_args!("{} blobs", self.layers.len());
            let found = format_args!("{} blobs", blobs.len());
            return Err(Error::new(ErrorKind::Malformed, OBJECT, found, expected));
        }
        for (descriptor, bytes) in self.layers.iter().zip(&blobs) {
            let digest = LayerDigest::of(bytes);
            if digest != descriptor.digest {
                let object = format!("blob {}", descriptor.digest);
                let expected = descriptor.digest;
                return Err(Error::new(ErrorKind::Malformed, object, digest, expected));
            }
        }
        let mut blobs = blobs.into_iter();
        let (Some(seal), Some(signature)) = (blobs.next(), blobs.next()) else {
            let expected = "a seal and its signature";
            return Err(Error::new(ErrorKind::Malformed, OBJECT, "fewer than 2 layers", expected));
        };
        let layer_signatures = self.by_layer(&seal, blobs)?;
        let claim = Claim { seal, signature, layer_signatures };
        claim.bounded()?;
        Ok(claim)
    }

    /// Lays the signatures beside the seal's layers.
    fn by_layer(
        &self,
        seal: &[u8],
        signatures: impl Iterator<Item = Vec<u8>>,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let seal = crate::Seal::parse(seal)?;
        if seal.subject.digest != self.subject.digest {
            let (found, expected) = (seal.subject.digest, self.subject.digest);
            return Err(Error::new(ErrorKind::Subject, "seal: subject", found, expected));
        }
        let mut by_layer = vec![None; seal.layers.len()];
        for (descriptor, signature) in self.layers.iter().skip(2).zip(signatures) {
            let (digest, root_hash) = descriptor.layer()?;
            let mut known = false;
            for (layer, place) in seal.layers.iter().zip(&mut by_layer) {
                if layer.digest == digest && layer.root_hash == root_hash {
                    known = true;
                    place.get_or_insert_with(|| signature.clone());
                }
            }
            if !known {
                let found = format_args!("a signature for {digest} with root hash {root_hash}");
                let expected = "signatures for the seal's layers only";
                return Err(Error::new(ErrorKind::Layers, OBJECT, found, expected));
            }
        }
        Ok(by_layer)
    }

    fn bounded(&self) -> Result<()> {
        let most = MAX_LAYERS.saturating_add(2);
        if self.layers.len() > most {
            return Err(Error::limit(OBJECT, self.layers.len(), most, "layers"));
        }
        for (index, descriptor) in self.layers.iter().enumerate() {
            let (media_type, limit) = match index {
                0 => (SEAL_MEDIA_TYPE, MAX_SEAL_BYTES),
                1 => (SIGNATURE_MEDIA_TYPE, MAX_SIGNATURE_BYTES),
                _ => (LAYER_SIGNATURE_MEDIA_TYPE, MAX_SIGNATURE_BYTES),
            };
            if descriptor.media_type != media_type {
                let object = format!("referrer: layers[{index}]");
                let found = format_args!("{:?}", descriptor.media_type);
                return Err(Error::new(ErrorKind::Malformed, object, found, media_type));
            }
            let size = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
            if size > limit {
                return Err(Error::limit(
                    format!("referrer: layers[{index}]"),
                    size,
                    limit,
                    "bytes",
                ));
            }
        }
        Ok(())
    }
}

impl Descriptor {
    /// The layer and root hash that a layer signature's annotations name.
    fn layer(&self) -> Result<(LayerDigest, RootHash)> {
        let wrong = |key: &str, found: &str| {
            let object = format!("layer signature {}: {key}", self.digest);
            let shown: String = found.chars().take(80).collect();
            Error::new(ErrorKind::Malformed, object, format_args!("{shown:?}"), "a digest")
        };
        let text = |key: &str| {
            self.annotations.get(key).map(String::as_str).ok_or_else(|| wrong(key, "nothing"))
        };
        let digest = text(LAYER_DIGEST_ANNOTATION)?;
        let root_hash = text(LAYER_ROOT_HASH_ANNOTATION)?;
        Ok((
            digest
                .parse()
                .map_err(|source| wrong(LAYER_DIGEST_ANNOTATION, digest).because(source))?,
            root_hash
                .parse()
                .map_err(|source| wrong(LAYER_ROOT_HASH_ANNOTATION, root_hash).because(source))?,
        ))
    }
}
