//! The whole of it against a content store of our own and this kernel's loop devices, EROFS and overlayfs. Root.

mod containerd;
mod flows;
mod registry;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use hallmark_seal::{
    Claim, LayerFormat, SchemaVersion, Seal, SealedLayer, SigningKey, Subject, Timestamp,
};
use hallmark_trust::config::{LayerSignature, NodeConfig, RegistryConfig, TrustConfig};
use hallmark_verity::{DataBlocks, DiffId, ImageDigest, LayerDigest, RootHash, Salt};

use crate::activate::Activations;
use crate::claims::Claims;
use crate::content::Content;
use crate::layout::Layout;
use crate::reclaim;
use crate::snapshotter::Snapshotter;
use crate::store::Store;

#[test]
fn the_example_configuration_is_every_default() {
    let example = include_str!("../../../config/hallmark.toml");
    assert_eq!(NodeConfig::parse(example).unwrap(), NodeConfig::default());
}

/// Key and certificate of the node's signer, PEM.
pub(crate) fn signer() -> &'static (Vec<u8>, Vec<u8>) {
    static SIGNER: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    SIGNER.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "30", "-subj", "/CN=node"])
            .args(["-addext", "keyUsage=critical,digitalSignature"])
            .arg("-keyout")
            .arg(path("key.pem"))
            .arg("-out")
            .arg(path("cert.pem"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        (std::fs::read(path("key.pem")).unwrap(), std::fs::read(path("cert.pem")).unwrap())
    })
}

/// The same claim as [`claim`]'s, but signed by the node's key.
pub(crate) fn sealed(roots: &[RootHash], first_signature: &[u8]) -> Claim {
    sealed_for(b"manifest", roots, first_signature)
}

/// The same for the image with this manifest.
pub(crate) fn sealed_for(manifest: &[u8], roots: &[RootHash], first_signature: &[u8]) -> Claim {
    let (key, certificate) = signer();
    let key = SigningKey::from_pem(key, certificate).unwrap();
    let mut claim = key.seal(&seal(manifest, roots)).unwrap();
    claim.layer_signatures[0] = Some(first_signature.to_vec());
    claim
}

/// A claim for layers of these root hashes, whose first has a layer signature. It does not verify.
pub(crate) fn claim(roots: &[RootHash], first_signature: &[u8]) -> Claim {
    let mut layer_signatures = vec![None; roots.len()];
    layer_signatures[0] = Some(first_signature.to_vec());
    Claim {
        seal: seal(b"manifest", roots).encode().unwrap(),
        signature: b"cms".to_vec(),
        layer_signatures,
    }
}

fn seal(manifest: &[u8], roots: &[RootHash]) -> Seal {
    let layer = |root_hash: &RootHash| SealedLayer {
        digest: LayerDigest::of(root_hash.as_bytes()),
        diff_id: DiffId::of(root_hash.as_bytes()),
        root_hash: *root_hash,
        salt: Salt::default(),
        data_blocks: DataBlocks(1),
    };
    Seal {
        schema_version: SchemaVersion,
        subject: Subject {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: ImageDigest::of(manifest),
            size: manifest.len() as u64,
        },
        repositories: vec!["registry.example/app".parse().unwrap()],
        layer_format: LayerFormat::HallmarkErofs1,
        issued: Timestamp::from(std::time::SystemTime::now()),
        not_after: None,
        serial: 1,
        layers: roots.iter().map(layer).collect(),
        pins: None,
    }
}

/// A snapshotter in a directory of its own, asking a content store of its own.
struct Node {
    directory: tempfile::TempDir,
    content: containerd::Store,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let content = containerd::Store::default();
        let socket = directory.path().join("containerd.sock");
        runtime.block_on(async { containerd::serve(&socket, content.clone()) });
        Self { directory, content, runtime }
    }

    /// Where this node's containerd would keep blobs; not made unless a test does.
    fn blobs(&self) -> PathBuf {
        self.directory.path().join("blobs")
    }

    fn layout(&self) -> Layout {
        let root = self.directory.path().join("root");
        Layout { claims: root.join("claims"), state: self.directory.path().join("state"), root }
    }

    /// What the daemon does at start; the one before must be gone.
    fn start(&self) -> Snapshotter {
        let layout = self.layout();
        layout.prepare().unwrap();
        let store = Store::open(&layout.root).unwrap();
        // what this kernel has: loop devices here, dm-verity in the guest
        let kind = reclaim::device_kind().unwrap();
        let adopted = reclaim::reclaim(&layout, &store, kind).unwrap();
        let policy = LayerSignature::WhenPresent;
        let activations = Activations::adopt(layout.clone(), kind, policy, adopted).unwrap();
        let socket = self.directory.path().join("containerd.sock");
        let content = {
            let _inside = self.runtime.enter();
            Content::new(&socket, &self.blobs(), self.runtime.handle().clone())
        };
        let keys = self.directory.path().join("keys.pem");
        std::fs::write(&keys, &signer().1).unwrap();
        let trust = TrustConfig { keys, ..TrustConfig::default() };
        let claims = Claims::new(&layout.claims, trust, RegistryConfig::default());
        let snapshotter = Snapshotter::new(layout, store, content, activations, claims);
        snapshotter.settle().unwrap();
        snapshotter
    }

    fn lowers(&self) -> Vec<PathBuf> {
        let lowers = self.layout().lowers();
        let names = crate::layout::names_in(&lowers).unwrap();
        let mut lowers: Vec<PathBuf> = names.iter().map(|name| lowers.join(name)).collect();
        lowers.sort();
        lowers
    }

    /// How many loop devices read files of ours; a device-mapper device that is left keeps its loop device.
    fn loops(&self) -> usize {
        let ours = |entry: std::fs::DirEntry| {
            let text = std::fs::read_to_string(entry.path().join("loop/backing_file"));
            text.is_ok_and(|text| Path::new(text.trim_end()).starts_with(self.directory.path()))
        };
        std::fs::read_dir("/sys/block").unwrap().flatten().map(ours).filter(|ours| *ours).count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // a test that failed leaves mounts: they must not outlive it
        for lower in self.lowers() {
            drop(crate::activate::unmount_lower(&lower));
        }
    }
}
