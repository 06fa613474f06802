//! The revocation list: seals, images, certificates, issuers and serials that no longer count.
//!
//! ```toml
//! version = 1
//! seals = ["sha256:<hex of the seal's bytes>"]
//! images = ["sha256:<manifest digest>"]
//! certificates = ["sha256:<hex of the DER>"]
//! [[issuers]]                       # nothing issued at or after this moment by this CA counts
//! certificate = "sha256:<hex of the DER>"
//! issued_before = "2026-01-01T00:00:00Z"
//! [[serials]]                       # the least serial accepted for a repository glob
//! repository = "registry.example/app"
//! minimum = 7
//! ```
//! Every key but `version` is optional. What an issuer issued is both: a seal signed under it, by its `issued`, and
//! a certificate, by its `notBefore`; a chain ends at the first certificate of the keyring, so a CA above a pinned
//! leaf is not looked at. A list has no date of its own: an offline node goes on with the one it has.

use std::fmt;

use hallmark_verity::ImageDigest;
use serde::{Deserialize, Serialize};

use crate::certificate::Certificate;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::RepositoryGlob;
use crate::seal::{SchemaVersion, Seal};
use crate::time::Timestamp;
use crate::verify::SealDigest;

/// Bytes of the largest list.
const MAX_BYTES: usize = 1 << 20;
const OBJECT: &str = "revocations";

/// What is revoked. The default revokes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocations {
    #[serde(rename = "version")]
    _version: SchemaVersion,
    #[serde(default)]
    seals: Vec<SealDigest>,
    #[serde(default)]
    images: Vec<ImageDigest>,
    #[serde(default)]
    certificates: Vec<Fingerprint>,
    #[serde(default)]
    issuers: Vec<Issuer>,
    #[serde(default)]
    serials: Vec<Serial>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Issuer {
    certificate: Fingerprint,
    issued_before: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serial {
    repository: RepositoryGlob,
    minimum: u64,
}

/// SHA-256 of a certificate's DER, `sha256:<hex>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
struct Fingerprint([u8; 32]);

impl Revocations {
    /// Reads a revocation list.
    ///
    /// # Errors
    /// `Limit`, `Version` or `Malformed`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versions {
            version: Option<toml::Value>,
        }
        if bytes.len() > MAX_BYTES {
            return Err(Error::limit(OBJECT, bytes.len(), MAX_BYTES, "bytes"));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|source| Error::malformed(OBJECT, "TOML text", source))?;
        if let Ok(Versions { version: Some(found) }) = toml::from_str(text)
            && found.as_integer() != Some(1)
        {
            return Err(Error::new(ErrorKind::Version, "revocations: version", found, 1));
        }
        toml::from_str(text)
            .map_err(|source| Error::malformed(OBJECT, "a revocation list of version 1", source))
    }

    /// Refuses a seal that is named, or whose image or serial is.
    pub(crate) fn of_seal(&self, seal: &Seal, digest: SealDigest) -> Result<()> {
        if self.seals.contains(&digest) {
            return Err(revoked(format!("seal {digest}"), "a seal that is not revoked"));
        }
        if self.images.contains(&seal.subject.digest) {
            let image = format!("image {}", seal.subject.digest);
            return Err(revoked(image, "an image that is not revoked"));
        }
        for rule in self.serials.iter().filter(|rule| seal.serial < rule.minimum) {
            if let Some(glob) = seal.repositories.iter().find(|glob| glob.meets(&rule.repository)) {
                return Err(Error::new(
                    ErrorKind::Serial,
                    format!("seal {digest} for {glob}"),
                    format_args!("serial {}", seal.serial),
                    format_args!("at least {} for {}", rule.minimum, rule.repository),
                ));
            }
        }
        Ok(())
    }

    /// Refuses a chain, signer first, that holds a revoked certificate, or something issued too late.
    pub(crate) fn of_chain(&self, chain: &[&Certificate], issued: Option<Timestamp>) -> Result<()> {
        let mut beneath: Option<&Certificate> = None;
        for certificate in chain {
            let fingerprint = Fingerprint(certificate.fingerprint());
            if self.certificates.contains(&fingerprint) {
                let expected = "a certificate that is not revoked";
                return Err(revoked(format!("{certificate} ({fingerprint})"), expected));
            }
            for issuer in self.issuers.iter().filter(|issuer| issuer.certificate == fingerprint) {
                let too_late = |moment: &Timestamp| *moment >= issuer.issued_before;
                if let Some(moment) = issued.filter(too_late) {
                    return Err(issued_late("a seal", certificate, moment, issuer));
                }
                if let Some(moment) = beneath.map(Certificate::not_before).filter(too_late) {
                    return Err(issued_late("a certificate", certificate, moment, issuer));
                }
            }
            beneath = Some(certificate);
        }
        Ok(())
    }
}

fn revoked(object: String, expected: &str) -> Error {
    Error::new(ErrorKind::Revoked, object, "on the revocation list", expected)
}

fn issued_late(what: &str, by: &Certificate, moment: Timestamp, issuer: &Issuer) -> Error {
    Error::new(
        ErrorKind::Revoked,
        by.to_string(),
        format_args!("{what} issued under it at {moment}"),
        format_args!("nothing issued from {} on, says the revocation list", issuer.issued_before),
    )
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse::<SealDigest>().map(|digest| Self(digest.to_bytes()))
    }
}
