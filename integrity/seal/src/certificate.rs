//! One X.509 certificate: what it says of itself, what its key signed, and what it may be used for.
//!
//! Source: RFC 5280. Stricter than it where a signer of images has no use for the freedom: any critical extension
//! other than the four understood here is refused, name constraints included.

use std::fmt;

use der::asn1::{ObjectIdentifier, Uint};
use der::{Decode, Encode, Sequence};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use sha2::{Digest, Sha256};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage};
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::time::Timestamp;

/// Bytes of the largest certificate that is read.
pub(crate) const MAX_CERTIFICATE_BYTES: usize = 32 << 10;

pub(crate) const RSA_ENCRYPTION: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
pub(crate) const ECDSA_SHA256: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const CODE_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

const KEYS: &str = "RSA of 2048 to 4096 bits, P-256 or P-384";

/// A certificate with its exact bytes, in the one DER encoding it has.
#[derive(Clone)]
pub(crate) struct Certificate {
    der: Vec<u8>,
    tbs: Vec<u8>,
    parsed: x509_cert::Certificate,
    name: String,
}

/// A public key of a kind that this crate verifies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    Rsa,
    P256,
    P384,
}

/// The hash of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HashKind {
    Sha256,
    Sha384,
    Sha512,
}

#[derive(Sequence)]
struct RsaPublicKey {
    modulus: Uint,
    exponent: Uint,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Self> {
        let object = "certificate";
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(Error::limit(object, der.len(), MAX_CERTIFICATE_BYTES, "bytes"));
        }
        let wrong = |source| Error::malformed(object, "an X.509 certificate in DER", source);
        let parsed = x509_cert::Certificate::from_der(der).map_err(wrong)?;
        // the decoder sorts sets: only what encodes to the same bytes was the one encoding
        if parsed.to_der().map_err(wrong)? != der {
            let found = "an encoding that is not DER";
            return Err(Error::new(ErrorKind::Malformed, object, found, "DER"));
        }
        let tbs = parsed.tbs_certificate().to_der().map_err(wrong)?;
        let name = printable(&parsed.tbs_certificate().subject().to_string());
        Ok(Self { der: der.to_vec(), tbs, parsed, name })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the DER.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    pub(crate) fn parsed(&self) -> &x509_cert::TbsCertificate {
        self.parsed.tbs_certificate()
    }

    pub(crate) fn issuer_name(&self) -> String {
        printable(&self.parsed().issuer().to_string())
    }

    pub(crate) fn is_self_issued(&self) -> bool {
        self.parsed().issuer() == self.parsed().subject()
    }

    pub(crate) fn not_before(&self) -> Timestamp {
        Timestamp::from_unix_seconds(
            self.parsed().validity().not_before.to_unix_duration().as_secs(),
        )
    }

    fn not_after(&self) -> Timestamp {
        Timestamp::from_unix_seconds(
            self.parsed().validity().not_after.to_unix_duration().as_secs(),
        )
    }

    /// Refuses a moment outside of the validity, both ends included as RFC 5280 §4.1.2.5 has them.
    pub(crate) fn valid_at(&self, moment: Timestamp) -> Result<()> {
        let (first, last) = (self.not_before(), self.not_after());
        if (first..=last).contains(&moment) {
            return Ok(());
        }
        let expected = format_args!("a moment from {first} to {last}");
        Err(Error::new(ErrorKind::CertificateTime, self.to_string(), moment, expected))
    }

    pub(crate) fn key_kind(&self) -> Result<KeyKind> {
        let spki = self.parsed().subject_public_key_info();
        let other =
            |found: String| Error::new(ErrorKind::Certificate, self.to_string(), found, KEYS);
        if spki.algorithm.oid == RSA_ENCRYPTION {
            let bits =
                self.rsa_bits().ok_or_else(|| other("an RSA key that does not parse".into()))?;
            return if (2048..=4096).contains(&bits) {
                Ok(KeyKind::Rsa)
            } else {
                Err(other(format!("RSA of {bits} bits")))
            };
        }
        if spki.algorithm.oid != EC_PUBLIC_KEY {
            return Err(other(format!("key algorithm {}", spki.algorithm.oid)));
        }
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as().ok());
        match curve {
            Some(P256) => Ok(KeyKind::P256),
            Some(P384) => Ok(KeyKind::P384),
            Some(curve) => Err(other(format!("curve {curve}"))),
            None => Err(other("an elliptic curve without its name".into())),
        }
    }

    fn rsa_bits(&self) -> Option<usize> {
        let key = RsaPublicKey::from_der(self.key_bytes()?).ok()?;
        if key.exponent.as_bytes().is_empty() {
            return None;
        }
        let bytes = key.modulus.as_bytes();
        let leading = bytes.first()?.leading_zeros();
        bytes.len().checked_mul(8)?.checked_sub(usize::try_from(leading).ok()?)
    }

    /// The subject's public key: an RSAPublicKey, or a point.
    pub(crate) fn key_bytes(&self) -> Option<&[u8]> {
        self.parsed().subject_public_key_info().subject_public_key.as_bytes()
    }

    /// Whether this certificate's key made `signature` over `message`.
    pub(crate) fn made(&self, signature: &[u8], message: &[u8], hash: HashKind) -> Result<()> {
        let algorithm = algorithm(self.key_kind()?, hash).ok_or_else(|| {
            let expected = "SHA-256, or SHA-384 with ECDSA";
            Error::new(ErrorKind::Certificate, self.to_string(), "ECDSA with SHA-512", expected)
        })?;
        let key = UnparsedPublicKey::new(algorithm, self.key_bytes().unwrap_or_default());
        key.verify(message, signature).map_err(|source| {
            let (found, expected) = ("a signature that is not this key's", "one made by it");
            Error::new(ErrorKind::SignatureMismatch, self.to_string(), found, expected)
                .because(source)
        })
    }

    /// Whether `issuer` signed this certificate.
    pub(crate) fn issued_by(&self, issuer: &Self) -> Result<()> {
        let hash = signature_hash(self.parsed.signature_algorithm()).ok_or_else(|| {
            Error::new(
                ErrorKind::Certificate,
                self.to_string(),
                format_args!("signature algorithm {}", self.parsed.signature_algorithm().oid),
                "RSA PKCS#1 v1.5 or ECDSA with SHA-2",
            )
        })?;
        if self.parsed.signature_algorithm() != self.parsed().signature() {
            let (found, expected) = ("two signature algorithms", "the same within and without");
            return Err(Error::new(ErrorKind::Certificate, self.to_string(), found, expected));
        }
        issuer.made(self.parsed.signature().as_bytes().unwrap_or_default(), &self.tbs, hash)
    }

    /// Refuses a certificate that may not sign images.
    pub(crate) fn may_sign(&self) -> Result<()> {
        self.understood()?;
        if let Some(usage) = self.extension::<KeyUsage>()?
            && !usage.digital_signature()
        {
            let (found, expected) = ("a key usage without digitalSignature", "digitalSignature");
            return Err(Error::new(ErrorKind::Certificate, self.to_string(), found, expected));
        }
        if let Some(usage) = self.extension::<ExtendedKeyUsage>()?
            && !usage.0.iter().any(|purpose| [CODE_SIGNING, ANY_USAGE].contains(purpose))
        {
            let (found, expected) = ("an extended key usage without codeSigning", "codeSigning");
            return Err(Error::new(ErrorKind::Certificate, self.to_string(), found, expected));
        }
        Ok(())
    }

    /// Refuses a certificate that may not issue others with `below` intermediate certificates beneath it.
    pub(crate) fn may_issue(&self, below: usize) -> Result<()> {
        self.understood()?;
        let refuse = |found: String, expected: &str| {
            Err(Error::new(ErrorKind::Certificate, self.to_string(), found, expected))
        };
        let Some(constraints) = self.extension::<BasicConstraints>()?.filter(|basic| basic.ca)
        else {
            return refuse(
                "no CA".into(),
                "basic constraints with CA:TRUE, since it issued another",
            );
        };
        if let Some(longest) = constraints.path_len_constraint.map(usize::from)
            && below > longest
        {
            return refuse(
                format!("{below} intermediate certificates beneath"),
                &format!("at most {longest}, its path length"),
            );
        }
        match self.extension::<KeyUsage>()? {
            Some(usage) if !usage.key_cert_sign() => {
                refuse("a key usage without keyCertSign".into(), "keyCertSign")
            }
            _ => Ok(()),
        }
    }

    /// Refuses extensions twice, and critical ones that nothing here reads.
    fn understood(&self) -> Result<()> {
        let understood = [BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE, SUBJECT_ALT_NAME];
        let extensions = self.parsed().extensions().map_or(&[][..], Vec::as_slice);
        for (index, extension) in extensions.iter().enumerate() {
            let oid = extension.extn_id;
            if extensions.iter().skip(index.saturating_add(1)).any(|other| other.extn_id == oid) {
                let found = format!("extension {oid} twice");
                return Err(Error::new(ErrorKind::Certificate, self.to_string(), found, "once"));
            }
            if extension.critical && !understood.contains(&oid) {
                let found = format!("critical extension {oid}");
                let expected = "only basicConstraints, keyUsage, extKeyUsage, subjectAltName";
                return Err(Error::new(ErrorKind::Certificate, self.to_string(), found, expected));
            }
        }
        Ok(())
    }

    fn extension<'a, T>(&'a self) -> Result<Option<T>>
    where
        T: Decode<'a, Error = der::Error> + der::oid::AssociatedOid,
    {
        let found = self
            .parsed()
            .get_extension::<T>()
            .map_err(|source| Error::malformed(self.to_string(), "extensions in DER", source))?;
        Ok(found.map(|(_, extension)| extension))
    }
}

/// `certificate CN=…`.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate {}", self.name)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({}, sha256:{})", self.name, hex::encode(self.fingerprint()))
    }
}

impl Certificate {
    /// The subject's name, printable and on one line.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// A name as it may stand in a log line: no control characters, no line ends, bounded.
fn printable(name: &str) -> String {
    name.chars()
        .take(256)
        .map(|c| if c.is_control() || c == '\u{2028}' || c == '\u{2029}' { '\u{fffd}' } else { c })
        .collect()
}

fn signature_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<HashKind> {
    match algorithm.oid {
        RSA_SHA256 | ECDSA_SHA256 => Some(HashKind::Sha256),
        RSA_SHA384 | ECDSA_SHA384 => Some(HashKind::Sha384),
        RSA_SHA512 => Some(HashKind::Sha512),
        _ => None,
    }
}

fn algorithm(key: KeyKind, hash: HashKind) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (key, hash) {
        (KeyKind::Rsa, HashKind::Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (KeyKind::Rsa, HashKind::Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (KeyKind::Rsa, HashKind::Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (KeyKind::P256, HashKind::Sha256) => &signature::ECDSA_P256_SHA256_ASN1,
        (KeyKind::P256, HashKind::Sha384) => &signature::ECDSA_P256_SHA384_ASN1,
        (KeyKind::P384, HashKind::Sha256) => &signature::ECDSA_P384_SHA256_ASN1,
        (KeyKind::P384, HashKind::Sha384) => &signature::ECDSA_P384_SHA384_ASN1,
        (KeyKind::P256 | KeyKind::P384, HashKind::Sha512) => return None,
    })
}
