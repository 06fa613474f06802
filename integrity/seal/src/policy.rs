//! Signed IPE policies: a CMS with the policy's text within.
//!
//! On a kernel with IPE the kernel itself checks the signature; this is for the node without, and for people.
//! The bytes are not read here: the policy language is `hallmark-trust`'s.

use crate::cms::{Content, Signature};
use crate::error::{Error, Result};
use crate::keyring::{Keyring, Trust};
use crate::revocations::Revocations;
use crate::time::Timestamp;

/// Bytes of the largest signed policy: a write to securityfs of more is refused (measured on 6.12 and 7.3).
pub const MAX_POLICY_BYTES: usize = 65_535;

const OBJECT: &str = "signed policy";

/// The text within a signed policy, once its signature is found to be one of the keyring's.
///
/// The kernel looks at no clock; here the certificates must be valid at `now`, as for a seal.
///
/// # Errors
/// `Limit`, `Malformed` and `SignatureForm` for what is no signed policy; `SignerUnknown`, `Certificate`,
/// `CertificateTime`, `SignatureMismatch` and `Revoked` for one that does not count.
pub fn open_policy(
    der: &[u8],
    keyring: &Keyring,
    revocations: &Revocations,
    now: Timestamp,
) -> Result<Vec<u8>> {
    if der.len() > MAX_POLICY_BYTES {
        return Err(Error::limit(OBJECT, der.len(), MAX_POLICY_BYTES, "bytes"));
    }
    let signature = Signature::parse(der, Content::Embedded, OBJECT)?;
    let trust = Trust { keyring, revocations, issued: None, now };
    let content = signature.content.clone().unwrap_or_default();
    trust.signed_by(&signature, &signature.certificates, &content, OBJECT)?;
    Ok(content)
}
