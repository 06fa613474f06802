//! The signing side: a private key with its certificate.
//!
//! What is signed decides the form: a seal carries the signer's certificates, so that a node finds the chain; a
//! root hash and a policy carry none, because the kernel has its own keyring and a root hash is signed for every
//! layer. A root hash is signed by [`SigningKey::sign_root_hash`] and by nothing else.
//!
//! `ring` signs and verifies: constant-time, and three to ten times faster than the pure-Rust `rsa` at the dozen of
//! signatures a launch checks. It is C and assembly; the RustCrypto crates were the alternative.

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};

use hallmark_verity::RootHash;

use crate::certificate::{Certificate, KeyKind};
use crate::claim::Claim;
use crate::cms::{Parts, SignerId};
use crate::error::{Error, ErrorKind, Result};
use crate::pem;
use crate::policy::MAX_POLICY_BYTES;
use crate::seal::Seal;

const KEY: &str = "private key";

/// A private key and the certificate that names it. RSA of 2048 to 4096 bits, or P-256.
pub struct SigningKey {
    pair: Pair,
    /// The signer's own first, then what leads to a CA.
    certificates: Vec<Certificate>,
}

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
}

impl SigningKey {
    /// Reads a PKCS#8 private key and its certificate, both PEM; certificates after the first are the ones that
    /// lead to a CA and travel with each seal.
    ///
    /// # Errors
    /// `Key` for another kind of key, an encrypted one, one of another form, or one that is not the
    /// certificate's; `Malformed` for text that is not PEM; `Certificate` for one that may not sign.
    pub fn from_pem(key: &[u8], certificate: &[u8]) -> Result<Self> {
        let certificates = certificates(certificate)?;
        let Some(own) = certificates.first() else {
            let (found, expected) =
                ("no certificate", "a block \"CERTIFICATE\", the signer's first");
            return Err(Error::new(ErrorKind::Malformed, "signer's certificate", found, expected));
        };
        own.may_sign()?;
        let pair = Pair::parse(&key_der(key)?, own.key_kind()?)?;
        if own.key_bytes() != Some(pair.public()) {
            let found = "another key's public half";
            return Err(Error::new(ErrorKind::Key, KEY, found, format_args!("that of {own}")));
        }
        Ok(Self { pair, certificates })
    }

    /// Detached CMS over a root hash, without certificates: the PKCS#7 that the kernel checks when the device is
    /// made. Over [`RootHash::signed_bytes`].
    ///
    /// # Errors
    /// `Key` where the machine has no randomness.
    pub fn sign_root_hash(&self, root_hash: &RootHash) -> Result<Vec<u8>> {
        self.signed(&root_hash.signed_bytes(), None, &[])
    }

    /// Embedded CMS of an IPE policy, without certificates: what is written to securityfs.
    ///
    /// # Errors
    /// `Limit` for more DER than the kernel reads, `Key` as above.
    pub fn sign_policy(&self, policy: &[u8]) -> Result<Vec<u8>> {
        let der = self.signed(policy, Some(policy), &[])?;
        if der.len() > MAX_POLICY_BYTES {
            return Err(Error::limit("signed policy", der.len(), MAX_POLICY_BYTES, "bytes"));
        }
        Ok(der)
    }

    /// The whole claim: the seal's bytes, a CMS over them with the signer's certificates, and one signature a layer.
    ///
    /// # Errors
    /// Those of [`Seal::encode`], and `Key` as above.
    pub fn seal(&self, seal: &Seal) -> Result<Claim> {
        let bytes = seal.encode()?;
        let signature = self.signed(&bytes, None, &self.certificates)?;
        let mut layer_signatures: Vec<Option<Vec<u8>>> = Vec::with_capacity(seal.layers.len());
        for (index, layer) in seal.layers.iter().enumerate() {
            // ECDSA signatures differ each time: a repeated layer keeps the first, so that one file serves it
            let repeated =
                seal.layers.iter().take(index).position(|l| l.root_hash == layer.root_hash);
            let known = repeated.and_then(|first| layer_signatures.get(first).cloned().flatten());
            layer_signatures.push(Some(match known {
                Some(known) => known,
                None => self.sign_root_hash(&layer.root_hash)?,
            }));
        }
        Ok(Claim { seal: bytes, signature, layer_signatures })
    }

    /// Who signs, for people: the certificate's subject.
    #[must_use]
    pub fn signer(&self) -> &str {
        self.certificates.first().map_or("", Certificate::name)
    }

    fn signed(
        &self,
        message: &[u8],
        content: Option<&[u8]>,
        certificates: &[Certificate],
    ) -> Result<Vec<u8>> {
        let Some(own) = self.certificates.first() else {
            return Err(Error::new(ErrorKind::Key, KEY, "no certificate", "the signer's"));
        };
        let parts = Parts {
            signer: SignerId::of(own),
            key: own.key_kind()?,
            signature: self.pair.sign(message)?,
            certificates,
            content,
        };
        parts.encode()
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.signer())
    }
}

impl Pair {
    fn parse(pkcs8: &[u8], kind: KeyKind) -> Result<Self> {
        let rejected = |expected: &'static str| {
            move |source: ring::error::KeyRejected| {
                Error::new(ErrorKind::Key, KEY, source, expected).because(source)
            }
        };
        match kind {
            KeyKind::Rsa => RsaKeyPair::from_pkcs8(pkcs8)
                .map(Self::Rsa)
                .map_err(rejected("RSA of 2048 to 4096 bits, as the certificate's key is")),
            KeyKind::P256 => EcdsaKeyPair::from_pkcs8(
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                pkcs8,
                &SystemRandom::new(),
            )
            .map(Self::P256)
            .map_err(rejected("P-256, as the certificate's key is")),
            KeyKind::P384 => {
                let (found, expected) =
                    ("P-384", "RSA or P-256 (P-384 is verified, not used to sign)");
                Err(Error::new(ErrorKind::Key, KEY, found, expected))
            }
        }
    }

    fn public(&self) -> &[u8] {
        match self {
            Self::Rsa(pair) => pair.public_key().as_ref(),
            Self::P256(pair) => pair.public_key().as_ref(),
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        let signature = match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map(|()| signature)
            }
            Self::P256(pair) => pair.sign(&random, message).map(|made| made.as_ref().to_vec()),
        };
        signature.map_err(|source| {
            let (found, expected) = ("a key that does not sign", "a sound key, and randomness");
            Error::new(ErrorKind::Key, KEY, found, expected).because(source)
        })
    }
}

fn key_der(text: &[u8]) -> Result<Vec<u8>> {
    let expected = "one block \"PRIVATE KEY\" (PKCS#8; openssl pkcs8 -topk8 -nocrypt makes it)";
    let blocks = pem::blocks(text, KEY)?;
    // `openssl ecparam -genkey` writes the curve's name in front of the key
    let mut keys = blocks.into_iter().filter(|block| block.label != "EC PARAMETERS");
    match (keys.next(), keys.next()) {
        (Some(only), None) if only.label == "PRIVATE KEY" => Ok(only.der),
        (Some(other), None) => {
            let found = format_args!("a block {:?}", other.label);
            Err(Error::new(ErrorKind::Key, KEY, found, expected))
        }
        (None, _) => Err(Error::new(ErrorKind::Key, KEY, "no PEM block", expected)),
        (Some(_), Some(_)) => Err(Error::new(ErrorKind::Key, KEY, "several blocks", expected)),
    }
}

fn certificates(text: &[u8]) -> Result<Vec<Certificate>> {
    let blocks = pem::blocks(text, "signer's certificate")?;
    let blocks = blocks.iter().filter(|block| block.label == "CERTIFICATE");
    blocks.map(|block| Certificate::parse(&block.der)).collect()
}
