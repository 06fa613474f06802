//! The only door from a claim to a verified seal.
//!
//! Source: `DESIGN.md` (Schemas, What is defended); the order of the checks is the order of [`Claim::verify`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hallmark_verity::RootHash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::certificate::Certificate;
use crate::claim::Claim;
use crate::cms::{Content, Signature, SignerId};
use crate::error::{Error, ErrorKind, Result};
use crate::keyring::{Keyring, Trust};
use crate::revocations::Revocations;
use crate::seal::Seal;
use crate::stack::StackId;
use crate::time::Timestamp;

/// How far the signer's clock may be ahead of ours.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

const OBJECT: &str = "seal";
const LAYER_SIGNATURE: &str = "layer signature";

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
    /// Per layer: whether its own signature verified.
    signed: Vec<bool>,
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
    /// Layer signatures are looked at too, but one that does not verify refuses nothing here:
    /// [`VerifiedSeal::layer_signed`] tells, and the gate asks where the node wants signed devices.
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
        let signed = self.layers_signed(&seal, trust, &signature.certificates)?;
        Ok(VerifiedSeal { digest, signer: described(signer), stack: seal.stack(), signed, seal })
    }

    /// Which layers' own signatures are ones over their root hashes, by signers as good as the seal's.
    fn layers_signed(
        &self,
        seal: &Seal,
        trust: Trust<'_>,
        others: &[Certificate],
    ) -> Result<Vec<bool>> {
        let (found, expected) = (self.layer_signatures.len(), seal.layers.len());
        if found != expected {
            return Err(Error::new(
                ErrorKind::Layers,
                "claim",
                format_args!("{found} layer signatures"),
                format_args!("one (or null) for each of the seal's {expected} layers"),
            ));
        }
        let mut signers = LayerSigners { trust, others, known: Vec::new() };
        let root_hashes = seal.layers.iter().map(|layer| &layer.root_hash);
        let signed = root_hashes.zip(&self.layer_signatures).map(|(root_hash, der)| {
            der.as_ref().is_some_and(|der| signers.signed(der, root_hash).is_ok())
        });
        Ok(signed.collect())
    }
}

/// The signers of an image's layers: nearly always one, whose chain is walked once and not for every layer.
struct LayerSigners<'a> {
    trust: Trust<'a>,
    others: &'a [Certificate],
    known: Vec<(SignerId, Option<&'a Certificate>)>,
}

impl<'a> LayerSigners<'a> {
    fn signed(&mut self, der: &[u8], root_hash: &RootHash) -> Result<()> {
        let signature = Signature::parse(der, Content::Detached, LAYER_SIGNATURE)?;
        let signer = self.trusted(&signature.signer)?;
        signature.made_by(signer, &root_hash.signed_bytes())
    }

    fn trusted(&mut self, id: &SignerId) -> Result<&'a Certificate> {
        let known = self.known.iter().find(|(known, _)| known == id).map(|(_, signer)| *signer);
        let signer = known.unwrap_or_else(|| {
            let signer = self.trust.signer(id, self.others, LAYER_SIGNATURE).ok();
            self.known.push((id.clone(), signer));
            signer
        });
        signer.ok_or_else(|| {
            let expected = "a signer of the keyring";
            Error::new(ErrorKind::SignerUnknown, LAYER_SIGNATURE, id, expected)
        })
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

    /// Whether layer `index` of [`Seal::layers`] came with a signature of its own that verifies: the one the kernel
    /// checks. `false` beyond the last layer.
    #[must_use]
    pub fn layer_signed(&self, index: usize) -> bool {
        self.signed.get(index).copied().unwrap_or(false)
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
