//! A registry on the loopback interface: the pull half of the OCI distribution specification, over
//! archives that it holds in memory.
//!
//! One registry stands for all: containerd's hosts.toml sends every name here, and what a name says
//! of its host is not looked at.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;

use crate::images::oci::Archive;

/// What hosts.toml names.
pub(crate) const PORT: u16 = 5000;

/// `k8s/pause:3.9` → digest, and every blob and manifest by digest.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    tags: BTreeMap<String, String>,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Registry {
    /// Takes in the named image of each archive.
    pub(crate) fn of(archives: &[PathBuf]) -> Result<Self> {
        let mut registry = Self::default();
        for path in archives {
            let archive = Archive::read(path)?;
            let entry = archive.image_entry()?;
            let name = entry["annotations"]["io.containerd.image.name"].as_str();
            let (_, name) = name.and_then(|n| n.split_once('/')).context("name without a host")?;
            let digest = entry["digest"].as_str().context("entry without a digest")?;
            registry.tags.insert(name.to_owned(), digest.to_owned());
            registry.blobs.extend(archive.into_blobs());
        }
        Ok(registry)
    }

    /// The digest of the manifest of an image.
    pub(crate) fn digest(&self, image: &str) -> Result<&str> {
        let name = image.split_once('/').map_or(image, |(_, name)| name);
        let digest = self.tags.get(name).with_context(|| format!("no image {name}"))?;
        Ok(digest)
    }

    /// Serves for as long as this process lives.
    pub(crate) fn serve(self) -> Result<()> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).context("bind the registry")?;
        let registry = Arc::new(self);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let registry = Arc::clone(&registry);
                std::thread::spawn(move || registry.serve_one(stream));
            }
        });
        Ok(())
    }

    fn serve_one(&self, stream: TcpStream) {
        if let Err(error) = self.answer(stream) {
            crate::say(&format!("registry: {error:#}"));
        }
    }

    /// One request, one answer, and the end of the connection.
    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().context("no request")??;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let path = target.split('?').next().unwrap_or("");
        let reply = self.reply(path);
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{}Connection: close\r\n\r\n",
            reply.status,
            reply.kind,
            reply.body.len(),
            reply.digest.map(|d| format!("Docker-Content-Digest: {d}\r\n")).unwrap_or_default(),
        );
        stream.write_all(head.as_bytes())?;
        if method == "GET" {
            stream.write_all(&reply.body)?;
        }
        Ok(())
    }

    fn reply(&self, path: &str) -> Reply {
        if path == "/v2/" {
            return Reply::found("application/json", None, b"{}".to_vec());
        }
        let rest = path.strip_prefix("/v2/").unwrap_or("");
        let manifest = rest.split_once("/manifests/").and_then(|(name, reference)| {
            let digest = self.tags.get(&format!("{name}:{reference}")).map_or(reference, |d| d);
            let body = self.blobs.get(digest)?.clone();
            let parsed: serde_json::Value = serde_json::from_slice(&body).ok()?;
            let kind = parsed["mediaType"].as_str()?.to_owned();
            Some(Reply::found(&kind, Some(digest.to_owned()), body))
        });
        let blob = || {
            let (_, digest) = rest.split_once("/blobs/")?;
            let body = self.blobs.get(digest)?.clone();
            Some(Reply::found("application/octet-stream", Some(digest.to_owned()), body))
        };
        manifest.or_else(blob).unwrap_or_else(Reply::unknown)
    }
}

struct Reply {
    status: &'static str,
    kind: String,
    digest: Option<String>,
    body: Vec<u8>,
}

impl Reply {
    fn found(kind: &str, digest: Option<String>, body: Vec<u8>) -> Self {
        Self { status: "200 OK", kind: kind.to_owned(), digest, body }
    }

    fn unknown() -> Self {
        let body = json!({"errors": [{"code": "NAME_UNKNOWN"}]}).to_string().into_bytes();
        Self { status: "404 Not Found", kind: "application/json".into(), digest: None, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::sha256;
    use crate::images::oci::{Image, Layer};

    #[test]
    fn an_image_is_found_by_tag_and_by_digest_and_nothing_else_is() {
        let path = std::env::temp_dir().join(format!("hallmark-registry-{}", std::process::id()));
        let layers = vec![Layer::from_tar(b"one").unwrap()];
        let blob = layers[0].blob.clone();
        Image { name: "h.test/a/b:1".into(), layers, run: json!({}) }.write(&path).unwrap();
        let registry = Registry::of(std::slice::from_ref(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let digest = registry.digest("other.test/a/b:1").unwrap().to_owned();
        let tagged = registry.reply("/v2/a/b/manifests/1");
        assert_eq!(tagged.digest.as_deref(), Some(digest.as_str()));
        assert_eq!(tagged.kind, "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(digest, format!("sha256:{}", sha256(&tagged.body)));
        assert_eq!(registry.reply(&format!("/v2/a/b/manifests/{digest}")).body, tagged.body);
        let layer = registry.reply(&format!("/v2/a/b/blobs/sha256:{}", sha256(&blob)));
        assert_eq!(layer.body, blob);
        assert!(registry.reply("/v2/a/b/manifests/2").status.starts_with("404"));
        assert!(registry.reply("/v2/a/b/blobs/sha256:00").status.starts_with("404"));
    }
}
