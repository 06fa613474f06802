//! Claims: seals with their signatures, not yet verified, and the file that holds them.
//!
//! `<claims>/<StackId>.json`, at most 4 MiB and 64 claims:
//! ```json
//! {"schemaVersion":1,"claims":[{"seal":"<base64>","signature":"<base64 DER>",
//!   "layerSignatures":["<base64 DER>",null]}]}
//! ```
//! Base64 is RFC 4648 §4 with padding. Anybody may have written the file; [`Claim::verify`] decides.

use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::seal::{MAX_LAYERS, MAX_SEAL_BYTES, SchemaVersion, Seal};
use crate::stack::StackId;

/// Bytes of the largest claims file.
pub const MAX_CLAIM_FILE_BYTES: usize = 4 << 20;
/// Claims in one file.
pub const MAX_CLAIMS: usize = 64;
/// Bytes of the largest CMS that is read.
pub const MAX_SIGNATURE_BYTES: usize = 64 << 10;

const FILE: &str = "claims file";

/// An allegation that somebody sealed an image.
///
/// Holding one tells you that somebody put these bytes together, and nothing else: not that the seal parses, that
/// the signature is one, that a key we trust made it, or that the image exists. [`alleged`](Self::alleged) reads
/// what it would state, to find or to file it; [`verify`](Self::verify) turns it into a
/// [`VerifiedSeal`](crate::VerifiedSeal).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// The seal's exact bytes.
    #[serde(with = "encoded")]
    pub seal: Vec<u8>,
    /// Detached CMS over them, DER.
    #[serde(with = "encoded")]
    pub signature: Vec<u8>,
    /// Per layer of the seal, repeats included: detached PKCS#7 over the root hash's 64 hex characters, DER.
    #[serde(with = "encoded_list")]
    pub layer_signatures: Vec<Option<Vec<u8>>>,
}

impl Claim {
    /// What the seal would state if it were signed: for finding and filing, never for deciding.
    ///
    /// # Errors
    /// Those of [`Seal::parse`].
    pub fn alleged(&self) -> Result<Seal> {
        Seal::parse(&self.seal)
    }

    /// Where the claim belongs in the claims directory.
    ///
    /// # Errors
    /// Those of [`Seal::parse`].
    pub fn stack_id(&self) -> Result<StackId> {
        Ok(self.alleged()?.stack_id())
    }

    pub(crate) fn bounded(&self) -> Result<()> {
        if self.seal.len() > MAX_SEAL_BYTES {
            return Err(Error::limit("claim: seal", self.seal.len(), MAX_SEAL_BYTES, "bytes"));
        }
        if self.layer_signatures.len() > MAX_LAYERS {
            let found = self.layer_signatures.len();
            return Err(Error::limit("claim: layerSignatures", found, MAX_LAYERS, "entries"));
        }
        let signatures = self.layer_signatures.iter().flatten().chain([&self.signature]);
        match signatures.map(Vec::len).find(|length| *length > MAX_SIGNATURE_BYTES) {
            Some(found) => {
                Err(Error::limit("claim: signature", found, MAX_SIGNATURE_BYTES, "bytes"))
            }
            None => Ok(()),
        }
    }
}

/// The claims for one stack, as one file holds them. Nothing in it is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimFile {
    schema_version: SchemaVersion,
    claims: Vec<Claim>,
}

/// What [`ClaimFile::insert`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// The claim is new in this file.
    Added,
    /// The very same claim was there.
    Known,
}

impl ClaimFile {
    /// Reads a claims file's bytes. The seals in it are not parsed.
    ///
    /// # Errors
    /// `Limit`, `Version` or `Malformed`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_CLAIM_FILE_BYTES {
            return Err(Error::limit(FILE, bytes.len(), MAX_CLAIM_FILE_BYTES, "bytes"));
        }
        known_version(bytes)?;
        let file: Self = serde_json::from_slice(bytes)
            .map_err(|source| Error::malformed(FILE, "claims of version 1", source))?;
        file.bounded()?;
        Ok(file)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// `Limit` where the file would be longer than is ever read.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.bounded()?;
        let bytes = serde_json::to_vec(self)
            .map_err(|source| Error::malformed(FILE, "claims of version 1", source))?;
        if bytes.len() > MAX_CLAIM_FILE_BYTES {
            return Err(Error::limit(FILE, bytes.len(), MAX_CLAIM_FILE_BYTES, "bytes"));
        }
        Ok(bytes)
    }

    /// The claims, in the file's order.
    #[must_use]
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// Adds a claim behind the others; the same one twice stays one.
    ///
    /// # Errors
    /// `Limit` where the file is full; it is then unchanged.
    pub fn insert(&mut self, claim: Claim) -> Result<Insertion> {
        claim.bounded()?;
        if self.claims.contains(&claim) {
            return Ok(Insertion::Known);
        }
        let count = self.claims.len().saturating_add(1);
        if count > MAX_CLAIMS {
            return Err(Error::limit(FILE, count, MAX_CLAIMS, "claims"));
        }
        self.claims.push(claim);
        if let Err(error) = self.encode() {
            self.claims.pop();
            return Err(error);
        }
        Ok(Insertion::Added)
    }

    /// Adds a claim that anybody may have sent. One that `counts` vouches for comes first in the file, and where the
    /// file is full it takes the place of the last claim that does not count, or of the last: whoever sends claims
    /// can fill the file, but not keep out the one that a launch needs.
    ///
    /// # Errors
    /// `Limit` where the file is full and the claim does not count; the file is then unchanged.
    pub fn insert_ranked(
        &mut self,
        claim: Claim,
        counts: &dyn Fn(&Claim) -> bool,
    ) -> Result<Insertion> {
        if !counts(&claim) {
            return self.insert(claim);
        }
        claim.bounded()?;
        if self.claims.contains(&claim) {
            return Ok(Insertion::Known);
        }
        let mut ranked = self.clone();
        ranked.claims.insert(0, claim);
        while let Err(error) = ranked.encode() {
            let last = ranked.claims.len().saturating_sub(1);
            if last == 0 {
                return Err(error);
            }
            let worst = ranked.claims.iter().rposition(|other| !counts(other)).unwrap_or(last);
            ranked.claims.remove(worst);
        }
        *self = ranked;
        Ok(Insertion::Added)
    }

    /// Puts the claims that `counts` vouches for first, otherwise in their order.
    pub fn rank(&mut self, counts: &dyn Fn(&Claim) -> bool) {
        self.claims.sort_by_cached_key(|claim| !counts(claim));
    }

    fn bounded(&self) -> Result<()> {
        if self.claims.len() > MAX_CLAIMS {
            return Err(Error::limit(FILE, self.claims.len(), MAX_CLAIMS, "claims"));
        }
        self.claims.iter().try_for_each(Claim::bounded)
    }
}

impl From<Claim> for ClaimFile {
    fn from(claim: Claim) -> Self {
        Self { schema_version: SchemaVersion, claims: vec![claim] }
    }
}

fn known_version(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        schema_version: Option<u64>,
    }
    match serde_json::from_slice::<Versions>(bytes) {
        Ok(Versions { schema_version: Some(found) }) if found != 1 => {
            Err(Error::new(ErrorKind::Version, "claims file: schemaVersion", found, 1))
        }
        _ => Ok(()), // the full parse names the place
    }
}

mod encoded {
    use base64::Engine as _;

    use super::{Deserialize, Deserializer, STANDARD, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

mod encoded_list {
    use base64::Engine as _;

    use super::{Deserialize, Deserializer, STANDARD, Serializer};

    pub(super) fn serialize<S: Serializer>(
        list: &[Option<Vec<u8>>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer
            .collect_seq(list.iter().map(|entry| entry.as_ref().map(|der| STANDARD.encode(der))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Option<Vec<u8>>>, D::Error> {
        Vec::<Option<String>>::deserialize(deserializer)?
            .into_iter()
            .map(|entry| {
                entry
                    .map(|text| STANDARD.decode(text).map_err(serde::de::Error::custom))
                    .transpose()
            })
            .collect()
    }
}
