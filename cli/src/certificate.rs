//! Making an X.509 certificate: version 3, signed with SHA-256, with what UEFI's db, the kernel's keyrings and this
//! project's verifier ask for.
//!
//! | extension | of a signer | of a CA |
//! |---|---|---|
//! | subjectKeyIdentifier, authorityKeyIdentifier | yes | yes |
//! | basicConstraints (critical) | CA:FALSE | CA:TRUE, pathlen 0 |
//! | keyUsage (critical) | digitalSignature | keyCertSign |
//!
//! Key identifiers are the first 20 bytes of the SHA-256 of the key (RFC 7093 §2, method 1): the kernel finds keys by
//! them. Source: RFC 5280 §4.1, §4.2.1.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use der::asn1::{BitString, ObjectIdentifier, OctetString};
use der::oid::AssociatedOid;
use der::{Any, Encode, Sequence};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use sha2::{Digest, Sha256};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use crate::error::{Error, Result};

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// Bits of an RSA key: what every kernel and firmware verifies.
const RSA_BITS: usize = 2048;
/// How long before now a certificate begins: other machines' clocks are not exact.
const BACKDATED: Duration = Duration::from_secs(3600);

/// What kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Algorithm {
    /// RSA of 2048 bits: kernels and firmware verify it everywhere
    Rsa2048,
    /// ECDSA on P-256: small; needs CONFIG_CRYPTO_ECDSA in the kernel
    P256,
}

/// A new private key.
pub(crate) struct Key {
    pkcs8: Vec<u8>,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    P256(Box<EcdsaKeyPair>),
}

/// Who a certificate is for and who signs it.
pub(crate) struct Request<'a> {
    pub(crate) common_name: &'a str,
    pub(crate) role: Role,
    pub(crate) days: u32,
    pub(crate) key: &'a Key,
    /// `None` for a certificate that signs itself.
    pub(crate) issuer: Option<(&'a Key, &'a str)>,
}

/// What a certificate may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sign images and policies.
    Signer,
    /// Issue certificates.
    Authority,
}

#[derive(Sequence)]
struct ToBeSigned {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial_number: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: Name,
    validity: Validity,
    subject: Name,
    key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

#[derive(Sequence)]
struct Signed {
    tbs: ToBeSigned,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

impl Key {
    /// Makes a key from the kernel's randomness.
    pub(crate) fn generate(algorithm: Algorithm) -> Result<Self> {
        let broken = |found: String| Error::Keygen {
            object: "private key",
            found,
            expected: "a new key, and randomness to make it",
        };
        let random = SystemRandom::new();
        match algorithm {
            Algorithm::Rsa2048 => {
                use rsa::pkcs8::EncodePrivateKey as _;
                let key = rsa::PrivateKey::new(&mut getrandom::SysRng, RSA_BITS)
                    .map_err(|error| broken(error.to_string()))?;
                let pkcs8 = key.to_pkcs8_der().map_err(|error| broken(error.to_string()))?;
                let pair = RsaKeyPair::from_pkcs8(pkcs8.as_bytes())
                    .map_err(|error| broken(error.to_string()))?;
                Ok(Self { pkcs8: pkcs8.as_bytes().to_vec(), pair: Pair::Rsa(Box::new(pair)) })
            }
            Algorithm::P256 => {
                let kind = &ECDSA_P256_SHA256_ASN1_SIGNING;
                let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random)
                    .map_err(|error| broken(error.to_string()))?;
                let pair = EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random)
                    .map_err(|error| broken(error.to_string()))?;
                Ok(Self { pkcs8: pkcs8.as_ref().to_vec(), pair: Pair::P256(Box::new(pair)) })
            }
        }
    }

    /// The private key, PKCS#8 in DER.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    fn public(&self) -> &[u8] {
        match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref(),
            Pair::P256(pair) => pair.public_key().as_ref(),
        }
    }

    fn identifier(&self) -> Vec<u8> {
        Sha256::digest(self.public()).iter().copied().take(20).collect()
    }

    fn spki(&self) -> der::Result<SubjectPublicKeyInfoOwned> {
        let (oid, parameters) = match self.pair {
            Pair::Rsa(_) => (RSA_ENCRYPTION, Any::null()),
            Pair::P256(_) => (EC_PUBLIC_KEY, Any::encode_from(&P256)?),
        };
        Ok(SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned { oid, parameters: Some(parameters) },
            subject_public_key: BitString::from_bytes(self.public())?,
        })
    }

    fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        match self.pair {
            Pair::Rsa(_) => {
                AlgorithmIdentifierOwned { oid: RSA_SHA256, parameters: Some(Any::null()) }
            }
            Pair::P256(_) => AlgorithmIdentifierOwned { oid: ECDSA_SHA256, parameters: None },
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map(|()| signature)
            }
            Pair::P256(pair) => pair.sign(&random, message).map(|made| made.as_ref().to_vec()),
        };
        signature.map_err(|error| wrong("signature", &error))
    }
}

impl Request<'_> {
    /// The certificate, in DER.
    pub(crate) fn certificate(&self) -> Result<Vec<u8>> {
        let (issuer_key, issuer_name) = self.issuer.unwrap_or((self.key, self.common_name));
        let algorithm = issuer_key.signature_algorithm();
        let tbs = ToBeSigned {
            version: 2,
            serial_number: serial_number()?,
            signature: algorithm.clone(),
            issuer: name(issuer_name)?,
            validity: self.validity()?,
            subject: name(self.common_name)?,
            key: self.key.spki().map_err(|error| wrong("public key", &error))?,
            extensions: self.extensions(issuer_key).map_err(|error| wrong("extensions", &error))?,
        };
        let encoded = |error: der::Error| wrong("certificate", &error);
        let signature = issuer_key.sign(&tbs.to_der().map_err(encoded)?)?;
        let signature = BitString::from_bytes(&signature).map_err(encoded)?;
        Signed { tbs, algorithm, signature }.to_der().map_err(encoded)
    }

    fn validity(&self) -> Result<Validity> {
        let now = SystemTime::now();
        let length = Duration::from_secs(u64::from(self.days).saturating_mul(86_400));
        let (begin, end) = (now.checked_sub(BACKDATED), now.checked_add(length));
        let time = |moment: Option<SystemTime>| {
            let moment = moment.ok_or_else(|| wrong("validity", &"a date that does not exist"))?;
            Time::try_from(moment).map_err(|error| wrong("validity", &error))
        };
        Ok(Validity::new(time(begin)?, time(end)?))
    }

    fn extensions(&self, issuer: &Key) -> der::Result<Vec<Extension>> {
        let (constraints, usage) = match self.role {
            Role::Signer => {
                let none = BasicConstraints { ca: false, path_len_constraint: None };
                (none, KeyUsage(KeyUsages::DigitalSignature.into()))
            }
            Role::Authority => {
                let one = BasicConstraints { ca: true, path_len_constraint: Some(0) };
                (one, KeyUsage(KeyUsages::KeyCertSign.into()))
            }
        };
        let authority = AuthorityKeyIdentifier {
            key_identifier: Some(OctetString::new(issuer.identifier())?),
            ..AuthorityKeyIdentifier::default()
        };
        let subject = SubjectKeyIdentifier(OctetString::new(self.key.identifier())?);
        Ok(vec![
            extension(&constraints, Criticality::Critical)?,
            extension(&usage, Criticality::Critical)?,
            extension(&subject, Criticality::Not)?,
            extension(&authority, Criticality::Not)?,
        ])
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Criticality {
    Critical,
    Not,
}

fn extension<T: Encode + AssociatedOid>(value: &T, how: Criticality) -> der::Result<Extension> {
    Ok(Extension {
        extn_id: T::OID,
        critical: how == Criticality::Critical,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}

/// 16 random bytes, positive and of full length.
fn serial_number() -> Result<SerialNumber> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|error| wrong("serial number", &error))?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    SerialNumber::new(&bytes).map_err(|error| wrong("serial number", &error))
}

/// `CN=…`, whatever characters the name has; control characters and more than 64 characters are refused.
fn name(common_name: &str) -> Result<Name> {
    let length = common_name.chars().count();
    if !(1..=64).contains(&length) || common_name.chars().any(char::is_control) {
        return Err(Error::Usage {
            found: format!("--cn {common_name:?}"),
            expected: "1 to 64 characters, none of them a control character".into(),
        });
    }
    let escaped: String = common_name
        .chars()
        .flat_map(|c| {
            [Some('\\').filter(|_| c.is_ascii_punctuation() && c != '-' && c != '.'), Some(c)]
        })
        .flatten()
        .collect();
    Name::from_str(&format!("CN={escaped}")).map_err(|error| wrong("name", &error))
}

fn wrong(object: &'static str, found: &dyn std::fmt::Display) -> Error {
    Error::Keygen { object, found: found.to_string(), expected: "one that a certificate can hold" }
}
