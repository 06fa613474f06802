//! What is read of OCI and Docker documents. Unknown keys are somebody else's business.
//!
//! Source: OCI image-spec 1.1, `descriptor.md`, `image-index.md`, `manifest.md`, `config.md`; Docker image manifest
//! v2 schema 2.

use std::collections::BTreeMap;

use hallmark_verity::DiffId;
use serde::Deserialize;

pub(crate) const INDEX_MEDIA_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// BuildKit marks its attestations with it; they are manifests of no platform.
pub(crate) const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// A blob and what it is. The digest is text: it may be of an algorithm that only matters once it is read.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) artifact_type: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) media_type: Option<String>,
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) subject: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    pub(crate) rootfs: RootFs,
    #[serde(default)]
    pub(crate) config: Process,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    pub(crate) diff_ids: Vec<DiffId>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Process {
    #[serde(rename = "Entrypoint")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(rename = "Env")]
    pub(crate) env: Option<Vec<String>>,
}

impl Platform {
    /// Reads `os/architecture` or `os/architecture/variant`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split('/').collect::<Vec<_>>().as_slice() {
            [os, architecture] if !os.is_empty() && !architecture.is_empty() => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: None,
            }),
            [os, architecture, variant]
                if [os, architecture, variant].iter().all(|s| !s.is_empty()) =>
            {
                Ok(Self {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: Some((*variant).to_owned()),
                })
            }
            _ => {
                Err(format!("found {text:?}, expected os/architecture or os/architecture/variant"))
            }
        }
    }

    /// Whether an image for `self` is one for `wanted`; a variant counts only where one is asked for.
    pub(crate) fn is(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_none() || self.variant == wanted.variant)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Descriptor {
    /// The image names a builder or containerd wrote beside it.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        [CONTAINERD_NAME, REF_NAME]
            .iter()
            .filter_map(|key| self.annotations.get(*key))
            .map(String::as_str)
    }

    /// Whether it is an index of manifests.
    pub(crate) fn is_index(&self) -> bool {
        INDEX_MEDIA_TYPES.contains(&self.media_type.as_str())
    }
}
