//! The keyring of a node, and the chain from a signer to it.
//!
//! A certificate in the keyring is trusted as it stands, CA or leaf. A signer counts when its certificate is in the
//! keyring, or when at most three others lead from it to one that is: each issued by the next, whose basic
//! constraints say CA.
//!
//! **Time.** Every certificate of the chain, the keyring's included, must be valid at the moment the seal says it was
//! issued *and* now. `issued` alone is the signer's own word: with it a stolen key would sign for ever, dated back
//! into its certificate's life. So a certificate's end is the end of its seals; an image that must run longer is
//! sealed anew. The kernel, which checks a layer's signature again, looks at no clock.
//!
//! **Revocation** is applied to the chain that was found ([`Revocations`]).

use crate::certificate::Certificate;
use crate::cms::{Signature, SignerId};
use crate::error::{Error, ErrorKind, Result};
use crate::pem;
use crate::revocations::Revocations;
use crate::time::Timestamp;

/// Bytes of the largest keyring file.
const MAX_KEYRING_BYTES: usize = 1 << 20;
/// Certificates in it.
const MAX_CERTIFICATES: usize = 256;
/// Certificates in a chain, signer and anchor included.
const MAX_CHAIN: usize = 4;
/// Signatures that are checked for one chain: a hostile bundle of certificates costs no more.
const MAX_CHECKS: usize = 32;

const OBJECT: &str = "keyring";

/// The certificates a node trusts.
#[derive(Clone, Debug)]
pub struct Keyring {
    anchors: Vec<Certificate>,
}

impl Keyring {
    /// Reads X.509 certificates in PEM, CA and leaf; text between the blocks is skipped.
    ///
    /// # Errors
    /// `Malformed` for text that is not PEM, a block that is no certificate, or none at all: a keyring that trusts
    /// nobody is a mistake. `Limit` for more than 1 MiB or 256 certificates.
    pub fn from_pem(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_KEYRING_BYTES {
            return Err(Error::limit(OBJECT, bytes.len(), MAX_KEYRING_BYTES, "bytes"));
        }
        let blocks = pem::blocks(bytes, OBJECT)?;
        if blocks.len() > MAX_CERTIFICATES {
            return Err(Error::limit(OBJECT, blocks.len(), MAX_CERTIFICATES, "certificates"));
        }
        if blocks.is_empty() {
            let expected = "at least one block \"CERTIFICATE\"";
            return Err(Error::new(ErrorKind::Malformed, OBJECT, "no certificate", expected));
        }
        let certificate = |block: &pem::Block<'_>| {
            if block.label != "CERTIFICATE" {
                let found = format_args!("a block {:?}", block.label);
                let expected = "blocks \"CERTIFICATE\" only";
                return Err(Error::new(ErrorKind::Malformed, OBJECT, found, expected));
            }
            Certificate::parse(&block.der)
        };
        Ok(Self { anchors: blocks.iter().map(certificate).collect::<Result<_>>()? })
    }

    /// Subjects of the certificates, for people.
    pub fn subjects(&self) -> impl Iterator<Item = &str> {
        self.anchors.iter().map(Certificate::name)
    }

    fn holds(&self, certificate: &Certificate) -> bool {
        self.anchors.iter().any(|anchor| anchor.der() == certificate.der())
    }
}

/// What a signature is judged by.
#[derive(Clone, Copy)]
pub(crate) struct Trust<'a> {
    pub(crate) keyring: &'a Keyring,
    pub(crate) revocations: &'a Revocations,
    /// When the seal says it was issued; a policy does not say.
    pub(crate) issued: Option<Timestamp>,
    pub(crate) now: Timestamp,
}

impl<'a> Trust<'a> {
    /// The signer's certificate, after: it is known, it made the signature over `content`, it may sign, a chain
    /// leads to the keyring, and nothing of the chain is over or revoked.
    pub(crate) fn signed_by(
        &self,
        signature: &Signature,
        others: &'a [Certificate],
        content: &[u8],
        object: &str,
    ) -> Result<&'a Certificate> {
        let signer = self.find(&signature.signer, others, object)?;
        signature.made_by(signer, content)?;
        self.chain(signer, others)?;
        Ok(signer)
    }

    /// The keyring's own certificates that may sign now: not over, not revoked.
    pub(crate) fn signers(&self) -> impl Iterator<Item = &'a Certificate> {
        self.keyring.anchors.iter().filter(|anchor| {
            anchor.may_sign().is_ok()
                && self.valid(anchor).is_ok()
                && self.revocations.of_chain(&[*anchor], self.issued).is_ok()
        })
    }

    fn find(
        &self,
        id: &SignerId,
        others: &'a [Certificate],
        object: &str,
    ) -> Result<&'a Certificate> {
        let known = self.keyring.anchors.iter().chain(others);
        known.into_iter().find(|certificate| id.names(certificate)).ok_or_else(|| {
            Error::new(
                ErrorKind::SignerUnknown,
                object,
                format_args!(
                    "a signer, {id}, whose certificate is neither there nor in the keyring"
                ),
                "the signer's certificate",
            )
        })
    }

    /// The certificates from `signer` to one of the keyring.
    fn chain(
        &self,
        signer: &'a Certificate,
        others: &'a [Certificate],
    ) -> Result<Vec<&'a Certificate>> {
        signer.may_sign()?;
        let mut search = Search { trust: *self, others, path: vec![signer], checks: 0, why: None };
        if !search.reaches_keyring()? {
            return Err(search.why.unwrap_or_else(|| self.unknown(signer)));
        }
        let chain = search.path;
        self.revocations.of_chain(&chain, self.issued)?;
        Ok(chain)
    }

    fn unknown(&self, signer: &Certificate) -> Error {
        let fingerprint = hex::encode(signer.fingerprint());
        let found = if signer.is_self_issued() {
            format!("a self-signed certificate sha256:{fingerprint} that is not in the keyring")
        } else {
            let issuer = signer.issuer_name();
            format!("certificate sha256:{fingerprint} of issuer {issuer:?}, not in the keyring")
        };
        let expected = format_args!(
            "the certificate or its issuer's among the {} of the keyring",
            self.keyring.anchors.len()
        );
        Error::new(ErrorKind::SignerUnknown, signer.to_string(), found, expected)
    }

    fn valid(&self, certificate: &Certificate) -> Result<()> {
        if let Some(issued) = self.issued {
            certificate.valid_at(issued)?;
        }
        certificate.valid_at(self.now)
    }
}

/// A depth-first walk from the signer upwards, bounded in length and in signatures checked.
struct Search<'a> {
    trust: Trust<'a>,
    others: &'a [Certificate],
    path: Vec<&'a Certificate>,
    checks: usize,
    /// Why the first path that had the right names was not taken.
    why: Option<Error>,
}

impl<'a> Search<'a> {
    fn reaches_keyring(&mut self) -> Result<bool> {
        let Some(last) = self.path.last().copied() else { return Ok(false) };
        if let Err(error) = self.trust.valid(last) {
            self.why.get_or_insert(error);
            return Ok(false);
        }
        if self.trust.keyring.holds(last) {
            return Ok(true);
        }
        // the issuer of a self-issued certificate is itself: another of the same name did not issue it
        if self.path.len() >= MAX_CHAIN || last.is_self_issued() {
            return Ok(false);
        }
        let issuers = self.trust.keyring.anchors.iter().chain(self.others);
        let wanted = last.parsed().issuer();
        let issuers: Vec<_> = issuers.filter(|one| one.parsed().subject() == wanted).collect();
        for issuer in issuers {
            if self.path.iter().any(|taken| taken.der() == issuer.der()) {
                continue;
            }
            self.count(last)?;
            let below = self.path.len().saturating_sub(1);
            if let Err(error) = issuer.may_issue(below).and_then(|()| last.issued_by(issuer)) {
                self.why.get_or_insert(error);
                continue;
            }
            self.path.push(issuer);
            if self.reaches_keyring()? {
                return Ok(true);
            }
            self.path.pop();
        }
        Ok(false)
    }

    fn count(&mut self, last: &Certificate) -> Result<()> {
        self.checks = self.checks.saturating_add(1);
        if self.checks > MAX_CHECKS {
            return Err(Error::limit(
                last.to_string(),
                self.checks,
                MAX_CHECKS,
                "possible issuers",
            ));
        }
        Ok(())
    }
}
