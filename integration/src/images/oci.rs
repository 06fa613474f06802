//! OCI image archives: read whole, built from layers, taken apart and put together otherwise.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::cache::sha256;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// One layer, compressed.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) diff_id: String,
    pub(crate) blob: Vec<u8>,
    media_type: &'static str,
}

impl Layer {
    /// Compresses a tar. The same tar gives the same bytes.
    pub(crate) fn from_tar(tar: &[u8]) -> Result<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(tar)?;
        Ok(Self { diff_id: diff_id(tar), blob: encoder.finish()?, media_type: GZIP })
    }

    /// The same with zstd, at its usual level.
    pub(crate) fn zstd(tar: &[u8]) -> Result<Self> {
        let blob = zstd::encode_all(tar, zstd::DEFAULT_COMPRESSION_LEVEL)?;
        Ok(Self { diff_id: diff_id(tar), blob, media_type: ZSTD })
    }
}

fn diff_id(tar: &[u8]) -> String {
    format!("sha256:{}", sha256(tar))
}

/// An image: its layers, bottom first, and what its configuration says of running it.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) layers: Vec<Layer>,
    /// The `config` object of the image configuration.
    pub(crate) run: Value,
}

impl Image {
    /// Writes the image as an archive that `nerdctl load` and `ctr image import` take.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": self.run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes();
        let layers: Vec<Value> =
            self.layers.iter().map(|l| descriptor(l.media_type, &l.blob)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config), "layers": layers,
        })
        .to_string()
        .into_bytes();
        let mut entry = descriptor(MANIFEST, &manifest);
        let tag = self.name.rsplit(':').next().unwrap_or("latest");
        entry["platform"] = json!({"architecture": "amd64", "os": "linux"});
        entry["annotations"] = json!({
            "io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        let mut archive = Archive { index, blobs: BTreeMap::new() };
        for blob in self.layers.iter().map(|l| l.blob.clone()).chain([config, manifest]) {
            archive.add(blob);
        }
        archive.write(path)
    }

    /// Reads the one image of an archive that this module wrote, whatever was added since.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let archive = Archive::read(path)?;
        let entry = archive.image_entry()?;
        let name = entry["annotations"]["io.containerd.image.name"]
            .as_str()
            .context("image without a name")?
            .to_owned();
        let manifest = archive.json(&entry["digest"])?;
        let config = archive.json(&manifest["config"]["digest"])?;
        let blobs = manifest["layers"].as_array().context("manifest without layers")?;
        let ids = config["rootfs"]["diff_ids"].as_array().context("config without diff_ids")?;
        let mut layers = Vec::new();
        for (blob, id) in blobs.iter().zip(ids) {
            let diff_id = id.as_str().context("a diff_id is no string")?.to_owned();
            let media_type = if blob["mediaType"] == ZSTD { ZSTD } else { GZIP };
            let blob = archive.blob(&blob["digest"])?.clone();
            layers.push(Layer { diff_id, blob, media_type });
        }
        Ok(Self { name, layers, run: config["config"].clone() })
    }
}

/// The blobs and the index of an archive.
#[derive(Debug)]
pub(crate) struct Archive {
    pub(crate) index: Value,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Default for Archive {
    fn default() -> Self {
        Self { index: json!({"schemaVersion": 2, "manifests": []}), blobs: BTreeMap::new() }
    }
}

impl Archive {
    /// Adds everything of another archive.
    pub(crate) fn take_in(&mut self, other: Self) -> Result<()> {
        let entries = other.index["manifests"].as_array().context("index without manifests")?;
        let all = self.index["manifests"].as_array_mut().context("index without manifests")?;
        all.extend(entries.iter().cloned());
        self.blobs.extend(other.blobs);
        Ok(())
    }

    /// Reads an OCI archive.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut archive = Self::default();
        for entry in tar::Archive::new(file).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            if name == "index.json" {
                archive.index = serde_json::from_slice(&bytes)?;
            } else if let Some(hex) = name.strip_prefix("blobs/sha256/").filter(|h| !h.is_empty()) {
                archive.blobs.insert(format!("sha256:{hex}"), bytes);
            }
        }
        Ok(archive)
    }

    /// Writes it, blobs in the order of their digests.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut out = tar::Builder::new(std::io::BufWriter::new(file));
        append(&mut out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut out, "index.json", self.index.to_string().as_bytes())?;
        for (digest, bytes) in &self.blobs {
            append(&mut out, &format!("blobs/{}", digest.replacen(':', "/", 1)), bytes)?;
        }
        out.into_inner()?.flush()?;
        Ok(())
    }

    /// Adds a blob.
    pub(crate) fn add(&mut self, bytes: Vec<u8>) {
        self.blobs.insert(format!("sha256:{}", sha256(&bytes)), bytes);
    }

    /// Every blob by its digest.
    pub(crate) fn into_blobs(self) -> BTreeMap<String, Vec<u8>> {
        self.blobs
    }

    /// A blob by a digest of a descriptor.
    pub(crate) fn blob(&self, digest: &Value) -> Result<&Vec<u8>> {
        let digest = digest.as_str().context("descriptor without a digest")?;
        self.blobs.get(digest).with_context(|| format!("no blob {digest} in the archive"))
    }

    /// A JSON blob by a digest of a descriptor.
    pub(crate) fn json(&self, digest: &Value) -> Result<Value> {
        Ok(serde_json::from_slice(self.blob(digest)?)?)
    }

    /// The index entry of the named image, not of its referrers.
    pub(crate) fn image_entry(&self) -> Result<&Value> {
        let entries = self.index["manifests"].as_array().context("index without manifests")?;
        entries
            .iter()
            .find(|e| e["annotations"]["io.containerd.image.name"].is_string())
            .context("no named image in the index")
    }
}

fn append<W: Write>(out: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len().try_into()?);
    header.set_mode(0o644);
    header.set_cksum();
    Ok(out.append_data(&mut header, name, bytes)?)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_comes_back_as_written() {
        let layers = vec![Layer::from_tar(b"one").unwrap(), Layer::from_tar(b"two").unwrap()];
        let image = Image { name: "a.test/b:1".into(), layers, run: json!({"Cmd": ["/bin/true"]}) };
        let path = std::env::temp_dir().join(format!("hallmark-oci-{}.tar", std::process::id()));
        image.write(&path).unwrap();
        let back = Image::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((back.name, back.run), (image.name, image.run));
        assert_eq!(back.layers[1].blob, image.layers[1].blob);
        assert_eq!(back.layers[0].diff_id, format!("sha256:{}", sha256("one")));
    }
}
