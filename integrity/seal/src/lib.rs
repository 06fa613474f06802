//! The seal: the signed statement of an image's layers. Pure: opens nothing.
//!
//! A seal comes to a node as a [`Claim`] (somebody's allegation). [`Claim::verify`] is the only way to a
//! [`VerifiedSeal`], and the gate accepts nothing else. [`SigningKey`] makes them on the build side.
//!
//! Signatures are the form that the kernel verifies: CMS SignedData with one signer, no signed attributes, SHA-256,
//! RSA PKCS#1 v1.5 or ECDSA (module `cms`). Keys are X.509 certificates (module `keyring`).
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod certificate;
mod claim;
mod cms;
mod error;
mod keyring;
mod pem;
mod policy;
pub mod referrer;
mod repository;
mod revocations;
mod seal;
mod sign;
mod stack;
mod time;
mod verify;

pub use claim::{
    Claim, ClaimFile, Insertion, MAX_CLAIM_FILE_BYTES, MAX_CLAIMS, MAX_SIGNATURE_BYTES,
};
pub use error::{Error, ErrorKind, Result};
pub use keyring::Keyring;
pub use policy::{MAX_POLICY_BYTES, open_policy};
pub use repository::RepositoryGlob;
pub use revocations::Revocations;
pub use seal::{
    LayerFormat, MAX_LAYERS, MAX_REPOSITORIES, MAX_SEAL_BYTES, Pins, SEAL_MEDIA_TYPE,
    SUBJECT_MEDIA_TYPES, SchemaVersion, Seal, SealedLayer, Subject,
};
pub use sign::SigningKey;
pub use stack::{StackId, stack};
pub use time::Timestamp;
pub use verify::{SealDigest, VerifiedSeal};
