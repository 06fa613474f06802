//! Images for the tests: OCI layouts built from nothing, in a directory or as an archive.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A layout as a table of files, so that a test can change any of it.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Digest of the manifest for linux/amd64.
    pub(crate) manifest: String,
    /// Digests of its layers, bottom first.
    pub(crate) layers: Vec<String>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub(crate) fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

impl Image {
    /// An image of four layers, the same empty one twice, with the name `registry.example/app:1`.
    pub(crate) fn new() -> Self {
        Self::of(&[layer("bin/app", b"first"), layer("empty", b""), layer("etc/app", &[7; 10_000])])
    }

    fn of(tars: &[Vec<u8>; 3]) -> Self {
        let [base, empty, top] = tars;
        let mut image =
            Self { files: BTreeMap::new(), manifest: String::new(), layers: Vec::new() };
        let (config, manifest) = image.add_platform("amd64", &[base, empty, top, empty]);
        image.manifest = manifest["digest"].as_str().unwrap().to_owned();
        image.layers = config;
        let mut manifest = manifest;
        manifest["annotations"] = json!({"io.containerd.image.name": "registry.example/app:1"});
        image.set_index(&json!({"schemaVersion": 2, "manifests": [manifest], "kept": "as it is"}));
        image.files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        image
    }

    /// The same image within an index of two platforms and an attestation.
    pub(crate) fn multi_platform() -> Self {
        let mut image = Self::new();
        let tar = layer("bin/arm", b"other");
        let (_, arm) = image.add_platform("arm64", &[&tar]);
        let top: Value = serde_json::from_slice(&image.files["index.json"]).unwrap();
        let mut amd = top["manifests"][0].clone();
        amd["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let mut attestation = arm.clone();
        attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [arm, amd, attestation],
        });
        let index = image.add_blob(&serde_json::to_vec(&index).unwrap());
        let index = json!({
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": index.0, "size": index.1,
        });
        image.set_index(&json!({"schemaVersion": 2, "manifests": [index]}));
        image
    }

    /// The layers in another order under a manifest of its own: another image.
    pub(crate) fn reordered() -> Self {
        Self::of(&[layer("etc/app", &[7; 10_000]), layer("empty", b""), layer("bin/app", b"first")])
    }

    pub(crate) fn add_blob(&mut self, bytes: &[u8]) -> (String, usize) {
        let digest = digest(bytes);
        self.files.insert(blob_name(&digest), bytes.to_vec());
        (digest, bytes.len())
    }

    pub(crate) fn set_index(&mut self, index: &Value) {
        self.files.insert("index.json".into(), serde_json::to_vec(index).unwrap());
    }

    fn add_platform(&mut self, architecture: &str, tars: &[&Vec<u8>]) -> (Vec<String>, Value) {
        let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
        let config = json!({
            "os": "linux", "architecture": architecture,
            "config": {"Entrypoint": ["/bin/app"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.add_blob(&serde_json::to_vec(&config).unwrap());
        let layers: Vec<Value> = tars
            .iter()
            .enumerate()
            .map(|(index, tar)| {
                let (bytes, kind) =
                    if index == 0 { (gzip(tar), "tar+gzip") } else { (tar.to_vec(), "tar") };
                let (digest, size) = self.add_blob(&bytes);
                let media_type = format!("application/vnd.oci.image.layer.v1.{kind}");
                json!({"mediaType": media_type, "digest": digest, "size": size})
            })
            .collect();
        let digests = layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned());
        let digests = digests.collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "layers": layers,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1,
            },
        });
        let (digest, size) = self.add_blob(&serde_json::to_vec(&manifest).unwrap());
        (digests, json!({"mediaType": media_type, "digest": digest, "size": size}))
    }

    pub(crate) fn write_layout(&self, directory: &Path) {
        for (name, bytes) in &self.files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// With directory entries and `index.json` in the middle, as tools write it.
    pub(crate) fn write_archive(&self, path: &Path) {
        let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
        for directory in ["blobs/", "blobs/sha256/"] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, directory, std::io::empty()).unwrap();
        }
        for (name, bytes) in &self.files {
            append(&mut tar, name, bytes);
        }
        tar.into_inner().unwrap().flush().unwrap();
    }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, name, bytes).unwrap();
}

fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    if !content.is_empty() {
        append(&mut tar, name, content);
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
