//! What can be wrong with a seal, a claim, a certificate or a key.
//!
//! One opaque error: the [`ErrorKind`] says who has to act, the message names the object, what was found
//! and what was expected. A claim that does not verify is an answer as well: the gate turns it into a refusal.

use std::error::Error as StdError;
use std::fmt::Display;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a seal, claim, certificate, key or policy was not accepted.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Report>);

#[derive(Debug, thiserror::Error)]
#[error("{object}: found {found}, expected {expected}")]
struct Report {
    kind: ErrorKind,
    object: String,
    found: String,
    expected: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The class of an [`Error`], by what has to change for it to go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A certificate may not do what it was used for: key usage, constraints, unknown critical extension.
    Certificate,
    /// A certificate of the chain is not yet valid or no longer valid.
    CertificateTime,
    /// The seal's own time is over, or lies in the future.
    Expired,
    /// A private key cannot be read, is of another kind, or is not the certificate's.
    Key,
    /// A layer format that this program does not know.
    LayerFormat,
    /// No layers, or a number of layer signatures that is not the number of layers.
    Layers,
    /// More bytes or entries than are ever read.
    Limit,
    /// The bytes do not parse.
    Malformed,
    /// A revocation list names the seal, the image, a certificate or its issuer.
    Revoked,
    /// The seal's serial is below the least one accepted for its repositories.
    Serial,
    /// A CMS of another form than the kernel's verifier and this crate accept.
    SignatureForm,
    /// The signature is not one over these bytes by that key.
    SignatureMismatch,
    /// No chain from the signer's certificate to one of the keyring.
    SignerUnknown,
    /// The subject is not a platform image manifest, or not the one asked for.
    Subject,
    /// A `schemaVersion` that this program does not know.
    Version,
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        object: impl Into<String>,
        found: impl Display,
        expected: impl Display,
    ) -> Self {
        Self(Box::new(Report {
            kind,
            object: object.into(),
            found: found.to_string(),
            expected: expected.to_string(),
            source: None,
        }))
    }

    pub(crate) fn because(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Bytes that do not parse; the parser's own words are *found* and stay the source.
    pub(crate) fn malformed(
        object: impl Into<String>,
        expected: &'static str,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self::new(ErrorKind::Malformed, object, &source, expected).because(source)
    }

    /// More than `limit`, counted in `unit`.
    pub(crate) fn limit(
        object: impl Into<String>,
        found: usize,
        limit: usize,
        unit: &'static str,
    ) -> Self {
        Self::new(
            ErrorKind::Limit,
            object,
            format_args!("{found} {unit}"),
            format_args!("at most {limit} {unit}"),
        )
    }

    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the error is about: `seal`, `certificate CN=…`, `layer 2`.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.0.object
    }

    /// What was there.
    #[must_use]
    pub fn found(&self) -> &str {
        &self.0.found
    }

    /// What should have been there.
    #[must_use]
    pub fn expected(&self) -> &str {
        &self.0.expected
    }
}
