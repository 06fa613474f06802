//! A claim that is in the registry only, and comes to the node all the same.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hallmark_seal::ClaimFile;
use hallmark_seal::referrer::{ARTIFACT_TYPE, Bundle, MANIFEST_MEDIA_TYPE};
use hallmark_trust::config::{NodeConfig, RegistryClaims};
use hallmark_verity::{ImageDigest, RootHash};

use super::{Node, claim, sealed_for};
use crate::proto::types::Descriptor;
use crate::snapshotter::Snapshotter;
use crate::store::{Kind, Labels};

/// What is answered to which path; anything else is 404.
type Answers = BTreeMap<String, Vec<u8>>;

/// A registry of fixed answers, as long as the test runs. Its host and port.
fn serve(answers: Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(first)) = lines.next() else { continue };
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let path = first.split(' ').nth(1).unwrap().split('?').next().unwrap().to_owned();
            let (status, body) = match answers.get(&path) {
                Some(body) => ("200 OK", body.as_slice()),
                None => ("404 Not Found", &b"{}"[..]),
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
        }
    });
    host
}

/// The manifest of an image of one layer.
fn manifest(top: &Descriptor) -> Vec<u8> {
    let top = &top.digest;
    format!(r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{top}"}}]}}"#).into_bytes()
}

/// A node with an unpacked image whose manifest is said to come from `host`, and that asks registries.
struct Pulled {
    node: Node,
    snapshotter: Arc<Snapshotter>,
    top: String,
    roots: Vec<RootHash>,
    manifest: Vec<u8>,
}

impl Pulled {
    fn new() -> Self {
        let node = Node::new();
        let snapshotter = Arc::new(node.start());
        let layer = super::flows::layer(&node, "a");
        let top = super::flows::unpack(&snapshotter, &[&layer]);
        let snapshot = snapshotter.store.snapshot(&top).unwrap();
        let layers = snapshotter.store.layers_of(&snapshot).unwrap();
        let roots = layers.iter().map(|layer| layer.root_hash).collect();
        Self { node, snapshotter, top, roots, manifest: manifest(&layer) }
    }

    /// As after a pull that made no call to us, with the layer there: the next Prepare finds the manifest.
    fn pull(&self, host: &str) {
        self.node.content.pulled_from(host, "team/app");
        self.node.content.put(&ImageDigest::of(&self.manifest).to_string(), &self.manifest);
        let asking = Arc::clone(&self.snapshotter);
        std::thread::spawn(move || asking.claims.ask_registries());
    }

    fn prepare(&self) -> Duration {
        let started = Instant::now();
        let top = Some(self.top.as_str());
        self.snapshotter.create("default/9/box", Kind::Active, top, Labels::new()).unwrap();
        let took = started.elapsed();
        self.snapshotter.remove("default/9/box").unwrap();
        took
    }
}

/// What a registry answers that has a claim for an image, and something else that refers to it.
fn answers(pulled: &Pulled, list: impl Fn(&ImageDigest) -> String) -> Answers {
    let claim = sealed_for(&pulled.manifest, &pulled.roots, b"p7s");
    let bundle = Bundle::of(&claim).unwrap();
    let entry = |digest: &str, size: usize, artifact_type: &str| {
        format!(
            "{{\"mediaType\":\"{MANIFEST_MEDIA_TYPE}\",\"digest\":\"{digest}\",\"size\":{size},\"artifactType\":\"{artifact_type}\"}}"
        )
    };
    let ours = entry(&bundle.digest.to_string(), bundle.manifest.len(), ARTIFACT_TYPE);
    let other = entry(&ImageDigest::of(b"sbom").to_string(), 9, "application/sbom");
    // of our type, and not there
    let broken = entry(&ImageDigest::of(b"broken").to_string(), 9, ARTIFACT_TYPE);
    let entries = [other, broken, ours].join(",");
    let index = format!("{{\"schemaVersion\":2,\"manifests\":[{entries}]}}").into_bytes();
    let mut answers = Answers::from([
        (list(&ImageDigest::of(&pulled.manifest)), index),
        (format!("/v2/team/app/manifests/{}", bundle.digest), bundle.manifest.clone()),
    ]);
    for blob in &bundle.blobs {
        let path = format!("/v2/team/app/blobs/{}", blob.descriptor.digest);
        answers.insert(path, blob.bytes.clone());
    }
    answers
}

fn found_when_listed_at(list: impl Fn(&ImageDigest) -> String) {
    let pulled = Pulled::new();
    // claims of nobody's keep no registry from being asked
    let junk = ClaimFile::from(claim(&pulled.roots, b"junk")).encode().unwrap();
    std::fs::write(pulled.node.layout().claims.join("junk.json"), junk).unwrap();
    pulled.pull(&serve(answers(&pulled, list)));
    pulled.prepare();
    assert!(pulled.snapshotter.claims.any_counts(&pulled.roots));
    let signatures = pulled.snapshotter.claims.signatures(&pulled.roots).unwrap();
    assert_eq!(signatures[&pulled.roots[0]][0], b"p7s".to_vec());
    // and the next one needs no registry
    let asked = pulled.prepare();
    assert!(asked < Duration::from_secs(2), "{asked:?}");
}

#[test]
fn a_claim_is_found_among_the_referrers() {
    found_when_listed_at(|digest| format!("/v2/team/app/referrers/{digest}"));
}

#[test]
fn a_claim_is_found_under_the_tag() {
    found_when_listed_at(|digest| {
        format!("/v2/team/app/manifests/{}", digest.to_string().replace(':', "-"))
    });
}

#[test]
fn a_registry_that_is_gone_or_silent_costs_a_moment() {
    let pulled = Pulled::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pulled.pull(&closed.to_string());
    let took = pulled.prepare();
    assert!(took < Duration::from_secs(4), "{took:?}");
    let pulled = Pulled::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    pulled.pull(&silent.local_addr().unwrap().to_string());
    let took = pulled.prepare();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(9), "{took:?}");
}

#[test]
fn a_node_that_is_told_not_to_asks_no_registry() {
    let pulled = Pulled::new();
    let mut config = NodeConfig::default();
    config.registry.claims = RegistryClaims::Ignore;
    config.trust.keys = pulled.node.directory.path().join("keys.pem");
    pulled.snapshotter.reload(&config);
    pulled.pull(&serve(answers(&pulled, |digest| format!("/v2/team/app/referrers/{digest}"))));
    pulled.prepare();
    assert!(!pulled.snapshotter.claims.any(&pulled.roots));
    // and keys that are elsewhere after a reload are those that count
    config.trust.keys = "/nonexistent".into();
    let good = ClaimFile::from(sealed_for(&pulled.manifest, &pulled.roots, b"p7s"));
    std::fs::write(pulled.node.layout().claims.join("good.json"), good.encode().unwrap()).unwrap();
    pulled.snapshotter.claims.adopt_dropped().unwrap();
    assert!(pulled.snapshotter.claims.any_counts(&pulled.roots));
    pulled.snapshotter.reload(&config);
    assert!(!pulled.snapshotter.claims.any_counts(&pulled.roots));
}
