//! The only door from a claim to a verified seal.
//!
//! Source: `DESIGN.md` (Schemas, What is defended); the order of the checks is the order of [`Claim::verify`].

use std::fmt;
use std::iter;
use std::str::FromStr;
use std::time::Duration;

use hallmark_verity::RootHash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::certificate::Certificate;
use crate::claim::Claim;
use crate::cms::{Content, Signature};
use crate::error::{Error, ErrorKind, Result};
use crate::keyring::{Keyring, Trust};
use crate::revocations::Revocations;
use crate::seal::Seal;
use crate::stack::StackId;
use crate::time::Timestamp;

/// How far the signer's clock may be ahead of ours.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

const OBJECT: &str = "seal";

/// A seal that a key of the keyring signed, that is not over and not revoked.
///
/// Only [`Claim::verify`] makes one, and it cannot be copied: whoever holds it holds the proof. It proves nothing
/// about the layers on this machine; the gate compares those with it.
#[derive(Debug)]
pub struct VerifiedSeal {
    seal: Seal,
    digest: SealDigest,
    signer: String,
    stack: Vec<RootHash>,
    /// As the claim had them.
    layer_signatures: Vec<Option<Vec<u8>>>,
    /// Whose signature of a layer counts: the seal's signer, and the keyring's certificates that may sign.
    layer_signers: Vec<Certificate>,
}

/// SHA-256 of a seal's exact bytes, `sha256:<64 hex>`: its name in messages and revocation lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SealDigest([u8; 32]);

impl Claim {
    /// Turns the claim into a fact, or says why it is none: the CMS is one over the seal's exact bytes, by a signer
    /// whose chain leads to the keyring; the seal is of a known version and layer format, `issued` is not in the
    /// future, `notAfter` is not past, nothing is revoked, the serial is not below the least one.
    ///
    /// A layer signature that does not verify refuses nothing here: [`VerifiedSeal::layer_signed`] tells, where
    /// the kernel has not already told.
    ///
    /// # Errors
    /// Every [`ErrorKind`] but `Key`; each says what was found and what was expected.
    pub fn verify(
        &self,
        keyring: &Keyring,
        revocations: &Revocations,
        now: Timestamp,
    ) -> Result<VerifiedSeal> {
        self.bounded()?;
        let signature = Signature::parse(&self.signature, Content::Detached, "seal's signature")?;
        // read before it is verified: the chain is judged at the moment the seal says
        let seal = Seal::parse(&self.seal)?;
        let digest = SealDigest::of(&self.seal);
        let trust = Trust { keyring, revocations, issued: Some(seal.issued), now };
        let signer =
            trust.signed_by(&signature, &signature.certificates, &self.seal, "seal's signature")?;
        in_time(&seal, now)?;
        revocations.of_seal(&seal, digest)?;
        self.one_for_each_layer(&seal)?;
        let layer_signers = iter::once(signer).chain(trust.signers()).cloned().collect();
        Ok(VerifiedSeal {
            digest,
            signer: described(signer),
            stack: seal.stack(),
            layer_signatures: self.layer_signatures.clone(),
            layer_signers,
            seal,
        })
    }

    /// One signature, or none, for each layer: anything else is not a claim about this seal.
    fn one_for_each_layer(&self, seal: &Seal) -> Result<()> {
        let (found, expected) = (self.layer_signatures.len(), seal.layers.len());
        if found == expected {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Layers,
            "claim",
            format_args!("{found} layer signatures"),
            format_args!("one (or null) for each of the seal's {expected} layers"),
        ))
    }
}

fn in_time(seal: &Seal, now: Timestamp) -> Result<()> {
    let latest = now.plus(CLOCK_SKEW);
    if seal.issued > latest {
        let found = format_args!("issued {}", seal.issued);
        let expected = format_args!("not after {latest}, this machine's time and five minutes");
        return Err(Error::new(ErrorKind::Expired, OBJECT, found, expected));
    }
    match seal.not_after {
        Some(last) if last < now => {
            let found = format_args!("notAfter {last}");
            Err(Error::new(ErrorKind::Expired, OBJECT, found, format_args!("{now} or later")))
        }
        _ => Ok(()),
    }
}

fn described(signer: &Certificate) -> String {
    format!("{} (sha256:{})", signer.name(), hex::encode(signer.fingerprint()))
}

impl VerifiedSeal {
    /// What was signed.
    #[must_use]
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// The seal's name.
    #[must_use]
    pub fn digest(&self) -> SealDigest {
        self.digest
    }

    /// Who signed: subject and fingerprint of the certificate, on one line.
    #[must_use]
    pub fn signer(&self) -> &str {
        &self.signer
    }

    /// The root hashes that are mounted, bottom first.
    #[must_use]
    pub fn stack(&self) -> &[RootHash] {
        &self.stack
    }

    /// The name of that stack.
    #[must_use]
    pub fn stack_id(&self) -> StackId {
        StackId::of(&self.stack)
    }

    /// Whether layer `index` of [`Seal::layers`] came with a signature of its own that verifies, by the seal's signer
    /// or one of the keyring: the signature the kernel checks. `false` beyond the last layer.
    ///
    /// It is computed when asked, some 100 µs: on a node whose kernel checked the signature nobody asks.
    #[must_use]
    pub fn layer_signed(&self, index: usize) -> bool {
        let layer = self.seal.layers.get(index);
        let signature = self.layer_signatures.get(index).and_then(Option::as_ref);
        let (Some(layer), Some(der)) = (layer, signature) else { return false };
        let parsed = Signature::parse(der, Content::Detached, "layer signature");
        parsed.is_ok_and(|signature| {
            let mut named = self.layer_signers.iter().filter(|one| signature.signer.names(one));
            named.any(|one| signature.made_by(one, &layer.root_hash.signed_bytes()).is_ok())
        })
    }
}

impl SealDigest {
    /// The digest of a seal's exact bytes.
    #[must_use]
    pub fn of(seal: &[u8]) -> Self {
        Self(Sha256::digest(seal).into())
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for SealDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl FromStr for SealDigest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = |hex: &&str| !hex.bytes().any(|byte| byte.is_ascii_uppercase());
        let mut bytes = [0; 32];
        match text
            .strip_prefix("sha256:")
            .filter(lower)
            .map(|text| hex::decode_to_slice(text, &mut bytes))
        {
            Some(Ok(())) => Ok(Self(bytes)),
            _ => {
                let shown: String = text.chars().take(80).collect();
                let expected = "\"sha256:\" and 64 lowercase hex characters";
                Err(Error::new(ErrorKind::Malformed, "digest", format_args!("{shown:?}"), expected))
            }
        }
    }
}

impl TryFrom<String> for SealDigest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SealDigest> for String {
    fn from(digest: SealDigest) -> Self {
        digest.to_string()
    }
}
