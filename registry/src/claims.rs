//! Claims of an image: its manifest's referrers of our type, looked up and pushed.
//!
//! A registry that knows referrers lists them (`referrers/<digest>`); for one that does not, whoever pushes keeps an
//! index under the tag `sha256-<hex>`.

use std::collections::BTreeMap;

use hallmark_seal::Claim;
use hallmark_seal::referrer::{ARTIFACT_TYPE, Bundle, MANIFEST_MEDIA_TYPE, Referrer};
use hallmark_verity::ImageDigest;
use serde::{Deserialize, Serialize};
use ureq::http::StatusCode;

use crate::Repository;
use crate::error::{Error, ErrorKind, Result};
use crate::session::{Answer, Ask, Session};

/// Bytes of an index of referrers.
const MAX_INDEX: u64 = 4 << 20;
/// Bytes of a referrer's manifest.
const MAX_MANIFEST: u64 = 1 << 20;
/// Pages of a list of referrers.
const MAX_PAGES: usize = 8;
/// Referrers of our type that are read.
const MAX_REFERRERS: usize = 64;
/// Bytes of a blob's answer when it is the blob's own error page.
const MAX_NOTICE: u64 = 64 << 10;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// How a referrer that was pushed is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// The registry lists it.
    ByRegistry,
    /// The index under the image's tag `sha256-<hex>` lists it.
    ByTag,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Entry>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

impl Repository {
    /// The claims that the first server which has any holds for the image with this manifest. Those that are broken
    /// are left out: others may be sound.
    ///
    /// # Errors
    /// `Unreachable`, `Refused` or `Malformed` where no server could tell.
    pub fn claims(&self, subject: &ImageDigest) -> Result<Vec<Claim>> {
        let mut failed = None;
        let mut told = false;
        for session in &self.sessions {
            match session.claims(subject) {
                Ok(claims) if claims.is_empty() => told = true,
                Ok(claims) => return Ok(claims),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if !told => Err(error),
            _ => Ok(Vec::new()),
        }
    }

    /// Puts a referrer beside its image, on the registry itself.
    ///
    /// # Errors
    /// `Unreachable`, `Refused` or `Malformed`; what was pushed by then stays, and pushing again is harmless.
    pub fn push(&self, bundle: &Bundle) -> Result<Listed> {
        let session = self.sessions.last().ok_or_else(|| {
            Error::new(ErrorKind::Settings, format!("repository {}: no server", self.name))
        })?;
        for blob in &bundle.blobs {
            session.push_blob(&blob.descriptor.digest.to_string(), &blob.bytes)?;
        }
        let answer = session.put_manifest(
            &bundle.digest.to_string(),
            MANIFEST_MEDIA_TYPE,
            &bundle.manifest,
        )?;
        if answer.headers.contains_key("oci-subject") {
            return Ok(Listed::ByRegistry);
        }
        session.list_by_tag(bundle)?;
        Ok(Listed::ByTag)
    }
}

impl Session {
    fn claims(&self, subject: &ImageDigest) -> Result<Vec<Claim>> {
        let (mut claims, mut failed) = (Vec::new(), None);
        for digest in self.referrers(subject)? {
            match self.claim(subject, &digest) {
                Ok(claim) => claims.push(claim),
                Err(error) if error.kind() == ErrorKind::Unreachable => {
                    failed = Some(error);
                    break;
                }
                // somebody's broken referrer must not hide the others
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if claims.is_empty() => Err(error),
            _ => Ok(claims),
        }
    }

    /// The digests of the referrers of our type.
    fn referrers(&self, subject: &ImageDigest) -> Result<Vec<String>> {
        let artifact_type = ARTIFACT_TYPE;
        let mut url = self.url(&format!("referrers/{subject}?artifactType={artifact_type}"));
        let mut found = Vec::new();
        for page in 0..MAX_PAGES {
            let answer = self.read(&url, INDEX, MAX_INDEX)?;
            // a registry without the call answers anything but 200
            if page == 0 && answer.status != StatusCode::OK {
                let tagged = self.read(&self.url(&tag(subject)), INDEX, MAX_INDEX)?;
                return match tagged.status {
                    StatusCode::OK => Ok(ours(&parse(&tagged)?)),
                    StatusCode::NOT_FOUND => Ok(Vec::new()),
                    _ => Err(refused("referrers of", &subject.to_string(), &tagged)),
                };
            }
            found.extend(ours(&parse(&answer)?));
            match next(&answer).and_then(|link| self.resolve(&link)) {
                Some(link) if found.len() < MAX_REFERRERS => url = link,
                _ => break,
            }
        }
        found.truncate(MAX_REFERRERS);
        Ok(found)
    }

    fn resolve(&self, link: &str) -> Option<String> {
        let mut headers = ureq::http::HeaderMap::new();
        headers.insert("link", link.parse().ok()?);
        self.location(&headers, "link")
    }

    fn claim(&self, subject: &ImageDigest, digest: &str) -> Result<Claim> {
        let url = self.url(&format!("manifests/{digest}"));
        let answer = self.read(&url, MANIFEST_MEDIA_TYPE, MAX_MANIFEST)?;
        if answer.status != StatusCode::OK {
            return Err(refused("referrer", digest, &answer));
        }
        let found = ImageDigest::of(&answer.body);
        let wrong = |why: String| Error::malformed(format!("referrer {digest}: {why}"));
        if found.to_string() != digest {
            return Err(wrong(format!("its bytes hash to {found}")));
        }
        let referrer = Referrer::parse(&answer.body)
            .map_err(|error| wrong("not as described".to_owned()).because(error))?
            .ok_or_else(|| wrong("of another artifact type".to_owned()))?;
        if referrer.subject().digest != *subject {
            return Err(wrong(format!("its subject is {}", referrer.subject().digest)));
        }
        let mut blobs = Vec::new();
        for blob in referrer.blobs() {
            let url = self.url(&format!("blobs/{}", blob.digest));
            let limit = blob.size.max(MAX_NOTICE);
            let answer = self.read(&url, "application/octet-stream", limit)?;
            if answer.status != StatusCode::OK {
                return Err(refused("blob", &blob.digest.to_string(), &answer));
            }
            blobs.push(answer.body);
        }
        referrer.claim(blobs).map_err(|error| wrong("no claim".to_owned()).because(error))
    }

    fn push_blob(&self, digest: &str, bytes: &[u8]) -> Result<()> {
        let octets = "application/octet-stream";
        let url = self.url("blobs/uploads/");
        let begun = self.write("POST", &url, octets, &[])?;
        if begun.status != StatusCode::ACCEPTED {
            return Err(refused("upload of blob", digest, &begun));
        }
        let location = self.location(&begun.headers, "location").ok_or_else(|| {
            Error::malformed(format!("upload of blob {digest}: no location on this server"))
        })?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let ended = self.write("PUT", &url, octets, bytes)?;
        match ended.status {
            StatusCode::CREATED => Ok(()),
            _ => Err(refused("upload of blob", digest, &ended)),
        }
    }

    fn put_manifest(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Result<Answer> {
        let url = self.url(&format!("manifests/{reference}"));
        let answer = self.write("PUT", &url, media_type, bytes)?;
        match answer.status {
            StatusCode::CREATED => Ok(answer),
            _ => Err(refused("upload of manifest", reference, &answer)),
        }
    }

    /// Adds a referrer to the index under its subject's tag. Two who do so at once may lose one: the spec's own
    /// weakness, which pushing again mends.
    fn list_by_tag(&self, bundle: &Bundle) -> Result<()> {
        let wrong = |source| Error::malformed("referrer").because(source);
        let referrer = Referrer::parse(&bundle.manifest).map_err(wrong)?;
        let referrer = referrer.ok_or_else(|| Error::malformed("referrer: another type"))?;
        let tag = tag(&referrer.subject().digest);
        let answer = self.read(&self.url(&tag), INDEX, MAX_INDEX)?;
        let mut index = match answer.status {
            StatusCode::OK => parse(&answer)?,
            StatusCode::NOT_FOUND => Index {
                schema_version: 2,
                media_type: Some(INDEX.to_owned()),
                manifests: Vec::new(),
                rest: BTreeMap::new(),
            },
            _ => return Err(refused("index of referrers", &tag, &answer)),
        };
        let digest = bundle.digest.to_string();
        if index.manifests.iter().any(|entry| entry.digest == digest) {
            return Ok(());
        }
        index.manifests.push(Entry {
            media_type: MANIFEST_MEDIA_TYPE.to_owned(),
            digest,
            size: u64::try_from(bundle.manifest.len()).unwrap_or(u64::MAX),
            artifact_type: Some(ARTIFACT_TYPE.to_owned()),
            rest: BTreeMap::new(),
        });
        let bytes =
            serde_json::to_vec(&index).map_err(|it| Error::malformed("index").because(it))?;
        let reference = tag.strip_prefix("manifests/").unwrap_or(&tag);
        self.put_manifest(reference, INDEX, &bytes).map(drop)
    }

    fn read(&self, url: &str, media_type: &str, limit: u64) -> Result<Answer> {
        self.ask(Ask { method: "GET", url, media_type, body: None, limit })
    }

    fn write(
        &self,
        method: &'static str,
        url: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Answer> {
        self.ask(Ask { method, url, media_type, body: Some(bytes), limit: MAX_NOTICE })
    }
}

/// The tag that stands for a digest's referrers, as a path.
fn tag(subject: &ImageDigest) -> String {
    format!("manifests/{}", subject.to_string().replace(':', "-"))
}

fn parse(answer: &Answer) -> Result<Index> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| Error::malformed("index of referrers").because(error))
}

/// The entries that are of our type, or of none that is told.
fn ours(index: &Index) -> Vec<String> {
    let is_ours = |entry: &&Entry| {
        entry.artifact_type.as_deref().is_none_or(|it| it == ARTIFACT_TYPE)
            && entry.size <= MAX_MANIFEST
            && entry.digest.parse::<ImageDigest>().is_ok()
    };
    let ours = index.manifests.iter().filter(is_ours);
    ours.map(|entry| entry.digest.clone()).take(MAX_REFERRERS).collect()
}

/// `<…>; rel="next"`.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.headers.get("link")?.to_str().ok()?;
    let (target, relation) = link.strip_prefix('<')?.split_once('>')?;
    relation.contains("next").then(|| target.to_owned())
}

fn refused(what: &str, name: &str, answer: &Answer) -> Error {
    let notice: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
    let status = answer.status.as_u16();
    Error::new(ErrorKind::Refused, format!("{what} {name}: status {status}: {}", notice.trim()))
}
