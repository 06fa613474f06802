//! CMS SignedData, in the one form that the kernel's verifier and this crate both accept.
//!
//! ```text
//! ContentInfo { signedData, [0] SignedData {
//!   version 1, digestAlgorithms { sha256 },
//!   encapContentInfo { data, [0] content OPTIONAL },   -- absent: detached; present: an IPE policy
//!   [0] certificates OPTIONAL,                          -- in a seal's, not in the kernel's
//!   signerInfos { exactly one SignerInfo {
//!     version 1, issuerAndSerialNumber, sha256,         -- no signed attributes
//!     rsaEncryption | ecdsa-with-SHA256, signature } } } }
//! ```
//!
//! `openssl smime -sign -noattr -binary -outform DER` writes it. Refused, because the kernel refuses it or because
//! no signer of ours needs it: BER, signed or unsigned attributes, several signers, subjectKeyIdentifier, CRLs,
//! other hashes, RSA-PSS. Without signed attributes the signature is over the content itself: there is no second
//! digest to compare and no attribute to confuse with content.
//!
//! Source: RFC 5652 §5; kernel `crypto/asymmetric_keys/pkcs7_parser.c`, `pkcs7_verify.c`.

use der::asn1::{Any, ObjectIdentifier, OctetString, SetOfVec};
use der::{Decode, Encode, Sequence, Tag, Tagged};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::certificate::{Certificate, ECDSA_SHA256, HashKind, KeyKind, RSA_ENCRYPTION};
use crate::error::{Error, ErrorKind, Result};

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");

/// Certificates that one CMS may carry.
const MAX_CERTIFICATES: usize = 16;

#[derive(Sequence)]
struct ContentInfo {
    content_type: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    content: Any,
}

#[derive(Sequence)]
struct SignedData {
    version: u8,
    digest_algorithms: SetOfVec<AlgorithmIdentifierOwned>,
    encap_content_info: EncapsulatedContentInfo,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    certificates: Option<Vec<Any>>, // a set, but OpenSSL's PKCS#7 does not sort it
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    crls: Option<SetOfVec<Any>>,
    signer_infos: SetOfVec<Any>,
}

#[derive(Sequence)]
struct EncapsulatedContentInfo {
    content_type: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    content: Option<Any>,
}

#[derive(Sequence)]
struct SignerInfo {
    version: u8,
    sid: Any,
    digest_algorithm: AlgorithmIdentifierOwned,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    signed_attributes: Option<SetOfVec<Any>>,
    signature_algorithm: AlgorithmIdentifierOwned,
    signature: OctetString,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    unsigned_attributes: Option<SetOfVec<Any>>,
}

/// Who signed: the issuer's name and the serial number of the certificate.
#[derive(Clone, Debug, PartialEq, Eq, Sequence)]
pub(crate) struct SignerId {
    issuer: Name,
    serial_number: SerialNumber,
}

impl SignerId {
    pub(crate) fn of(certificate: &Certificate) -> Self {
        let tbs = certificate.parsed();
        Self { issuer: tbs.issuer().clone(), serial_number: tbs.serial_number().clone() }
    }

    pub(crate) fn names(&self, certificate: &Certificate) -> bool {
        let tbs = certificate.parsed();
        self.issuer == *tbs.issuer() && self.serial_number == *tbs.serial_number()
    }
}

impl std::fmt::Display for SignerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let serial = hex::encode(self.serial_number.as_bytes());
        write!(f, "serial {serial} of {:?}", self.issuer.to_string())
    }
}

/// Which of the two forms a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Detached,
    Embedded,
}

/// A CMS of the accepted form. Parsed, not verified.
pub(crate) struct Signature {
    pub(crate) signer: SignerId,
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) content: Option<Vec<u8>>,
    algorithm: KeyFamily,
    value: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyFamily {
    Rsa,
    Ecdsa,
}

impl Signature {
    /// Reads a CMS; `object` names it in errors.
    pub(crate) fn parse(der: &[u8], content: Content, object: &str) -> Result<Self> {
        let wrong = |source| Error::malformed(object, "CMS SignedData in DER", source);
        let form = |found: String, expected: &'static str| {
            Error::new(ErrorKind::SignatureForm, object, found, expected)
        };
        let info = ContentInfo::from_der(der).map_err(wrong)?;
        if info.content_type != SIGNED_DATA {
            return Err(form(format!("content type {}", info.content_type), "signedData"));
        }
        // a signer alone must not be able to be written in two ways: what decodes must encode to the same bytes
        let data: SignedData = info.content.decode_as().map_err(wrong)?;
        if data.to_der().map_err(wrong)? != info.content.to_der().map_err(wrong)? {
            let found = "an encoding that is not DER";
            return Err(Error::new(ErrorKind::Malformed, object, found, "CMS SignedData in DER"));
        }
        data.outer_form(content, object)?;
        let signer = data.only_signer(object)?;
        Ok(Self {
            signer: signer.id(object)?,
            algorithm: signer.form(object)?,
            certificates: data.certificates(object)?,
            content: data.encap_content_info.content(object)?,
            value: signer.signature.into_bytes().into_vec(),
        })
    }

    /// Whether the key of `certificate` made this signature over `content`.
    pub(crate) fn made_by(&self, certificate: &Certificate, content: &[u8]) -> Result<()> {
        let family = match certificate.key_kind()? {
            KeyKind::Rsa => KeyFamily::Rsa,
            KeyKind::P256 | KeyKind::P384 => KeyFamily::Ecdsa,
        };
        if family != self.algorithm {
            return Err(Error::new(
                ErrorKind::SignatureMismatch,
                certificate.to_string(),
                format_args!("a signature of {:?}", self.algorithm),
                format_args!("one of {family:?}, as its key is"),
            ));
        }
        certificate.made(&self.value, content, HashKind::Sha256)
    }
}

impl SignedData {
    fn outer_form(&self, content: Content, object: &str) -> Result<()> {
        let form = |found: String, expected: &str| {
            Err(Error::new(ErrorKind::SignatureForm, object, found, expected))
        };
        if self.version != 1 {
            return form(format!("SignedData version {}", self.version), "version 1");
        }
        if self.crls.is_some() {
            return form("revocation lists in the signature".into(), "none");
        }
        let inner = &self.encap_content_info;
        if inner.content_type != DATA {
            return form(format!("content of type {}", inner.content_type), "type data");
        }
        match (content, &inner.content) {
            (Content::Detached, Some(_)) => form("content within".into(), "a detached signature"),
            (Content::Embedded, None) => form("no content within".into(), "embedded content"),
            _ => self.digests(object),
        }
    }

    fn digests(&self, object: &str) -> Result<()> {
        match self.digest_algorithms.as_ref() {
            [one] => sha256(one, object),
            other => {
                let found = format!("{} digest algorithms", other.len());
                Err(Error::new(ErrorKind::SignatureForm, object, found, "sha256 alone"))
            }
        }
    }

    fn only_signer(&self, object: &str) -> Result<SignerInfo> {
        let [signer] = self.signer_infos.as_ref() else {
            let found = format!("{} signers", self.signer_infos.len());
            return Err(Error::new(ErrorKind::SignatureForm, object, found, "exactly one signer"));
        };
        signer.decode_as().map_err(|source| Error::malformed(object, "a SignerInfo", source))
    }

    fn certificates(&self, object: &str) -> Result<Vec<Certificate>> {
        let all = self.certificates.as_deref().unwrap_or_default();
        if all.len() > MAX_CERTIFICATES {
            return Err(Error::limit(object, all.len(), MAX_CERTIFICATES, "certificates"));
        }
        let certificate = |any: &Any| {
            let der = any
                .to_der()
                .map_err(|source| Error::malformed(object, "X.509 certificates", source))?;
            Certificate::parse(&der)
        };
        all.iter().map(certificate).collect()
    }
}

impl EncapsulatedContentInfo {
    fn content(&self, object: &str) -> Result<Option<Vec<u8>>> {
        let octets = |any: &Any| {
            let octets: OctetString = any
                .decode_as()
                .map_err(|source| Error::malformed(object, "content as an OCTET STRING", source))?;
            Ok(octets.into_bytes().into_vec())
        };
        self.content.as_ref().map(octets).transpose()
    }
}

impl SignerInfo {
    fn id(&self, object: &str) -> Result<SignerId> {
        if self.sid.tag() != Tag::Sequence {
            return Err(Error::new(
                ErrorKind::SignatureForm,
                object,
                "a signer by key identifier",
                "issuer and serial number",
            ));
        }
        self.sid
            .decode_as()
            .map_err(|source| Error::malformed(object, "issuer and serial number", source))
    }

    fn form(&self, object: &str) -> Result<KeyFamily> {
        let form = |found: String, expected: &str| {
            Error::new(ErrorKind::SignatureForm, object, found, expected)
        };
        if self.version != 1 {
            return Err(form(format!("SignerInfo version {}", self.version), "version 1"));
        }
        if self.signed_attributes.is_some() {
            return Err(form("signed attributes".into(), "none (openssl: -noattr)"));
        }
        if self.unsigned_attributes.is_some() {
            return Err(form("unsigned attributes".into(), "none"));
        }
        sha256(&self.digest_algorithm, object)?;
        let parameters = self.signature_algorithm.parameters.as_ref();
        match self.signature_algorithm.oid {
            RSA_ENCRYPTION if parameters.is_none_or(Any::is_null) => Ok(KeyFamily::Rsa),
            ECDSA_SHA256 if parameters.is_none() => Ok(KeyFamily::Ecdsa),
            other => {
                let expected = "rsaEncryption or ecdsa-with-SHA256";
                Err(form(format!("signature algorithm {other}"), expected))
            }
        }
    }
}

fn sha256(algorithm: &AlgorithmIdentifierOwned, object: &str) -> Result<()> {
    if algorithm.oid == SHA256 && algorithm.parameters.as_ref().is_none_or(Any::is_null) {
        return Ok(());
    }
    let found = format!("digest algorithm {}", algorithm.oid);
    Err(Error::new(ErrorKind::SignatureForm, object, found, "sha256"))
}

/// What a new CMS is made of.
pub(crate) struct Parts<'a> {
    pub(crate) signer: SignerId,
    pub(crate) key: KeyKind,
    pub(crate) signature: Vec<u8>,
    pub(crate) certificates: &'a [Certificate],
    pub(crate) content: Option<&'a [u8]>,
}

impl Parts<'_> {
    /// The DER of a CMS of the accepted form.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        self.encoded().map_err(|source| Error::malformed("signature", "CMS SignedData", source))
    }

    fn encoded(&self) -> der::Result<Vec<u8>> {
        let digest = AlgorithmIdentifierOwned { oid: SHA256, parameters: Some(Any::null()) };
        let (oid, parameters) = match self.key {
            KeyKind::Rsa => (RSA_ENCRYPTION, Some(Any::null())),
            KeyKind::P256 | KeyKind::P384 => (ECDSA_SHA256, None),
        };
        let signer = SignerInfo {
            version: 1,
            sid: Any::encode_from(&self.signer)?,
            digest_algorithm: digest.clone(),
            signed_attributes: None,
            signature_algorithm: AlgorithmIdentifierOwned { oid, parameters },
            signature: OctetString::new(self.signature.as_slice())?,
            unsigned_attributes: None,
        };
        let mut certificates: Vec<&[u8]> = self.certificates.iter().map(Certificate::der).collect();
        certificates.sort_unstable();
        let certificates: Vec<Any> =
            certificates.into_iter().map(Any::from_der).collect::<der::Result<_>>()?;
        let content = self.content.map(OctetString::new).transpose()?;
        let data = SignedData {
            version: 1,
            digest_algorithms: SetOfVec::try_from(vec![digest])?,
            encap_content_info: EncapsulatedContentInfo {
                content_type: DATA,
                content: content.map(|octets| Any::encode_from(&octets)).transpose()?,
            },
            certificates: Some(certificates).filter(|all| !all.is_empty()),
            crls: None,
            signer_infos: SetOfVec::try_from(vec![Any::encode_from(&signer)?])?,
        };
        ContentInfo { content_type: SIGNED_DATA, content: Any::encode_from(&data)? }.to_der()
    }
}
