//! Digests that must not be mistaken for each other.
//!
//! | type | over | text |
//! |---|---|---|
//! | [`LayerDigest`] | the compressed blob of a layer | `sha256:<64 hex>` |
//! | [`DiffId`] | the tar of a layer | `sha256:<64 hex>` |
//! | [`ImageDigest`] | an image manifest | `sha256:<64 hex>` |
//! | [`FileDigest`] | a file, as fs-verity measures it | `sha256:<64 hex>` |
//! | [`RootHash`] | a dm-verity volume | `<64 hex>` |
//!
//! The hex is lowercase and nothing else parses: two texts are equal exactly when the digests are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::DIGEST;
use crate::error::{Cause, Error};

fn parse_hex(text: &str) -> Option<[u8; DIGEST]> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; DIGEST];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

/// At most as much of a hostile text as is useful in a message.
fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal, $cause:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name([u8; DIGEST]);

        impl $name {
            /// The digest with these 32 bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; DIGEST]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; DIGEST] {
                &self.0
            }

            /// The 64 lowercase hex characters.
            #[must_use]
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                text.strip_prefix($prefix)
                    .and_then(parse_hex)
                    .map(Self)
                    .ok_or_else(|| Cause::$cause { what: $what, found: excerpt(text) }.into())
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(digest: $name) -> Self {
                digest.to_string()
            }
        }
    };
}

digest! {
    /// SHA-256 of a layer's blob as the registry holds it, compressed or not: the `digest` of its
    /// descriptor.
    LayerDigest, "layer digest", "sha256:", Digest
}
digest! {
    /// SHA-256 of a layer's tar, every byte of it: the entry of `rootfs.diff_ids` in the image
    /// configuration.
    DiffId, "diffID", "sha256:", Digest
}
digest! {
    /// SHA-256 of an image manifest's bytes.
    ImageDigest, "image digest", "sha256:", Digest
}
digest! {
    /// The fs-verity digest of a file: what `FS_IOC_MEASURE_VERITY` and `fsverity digest` say.
    FileDigest, "file digest", "sha256:", Digest
}
digest! {
    /// The root hash of a dm-verity volume, in the form of the kernel's table argument.
    RootHash, "root hash", "", Hex
}

macro_rules! of_bytes {
    ($($name:ident),*) => {$(
        impl $name {
            /// The digest of `bytes`.
            #[must_use]
            pub fn of(bytes: &[u8]) -> Self {
                Self(Sha256::digest(bytes).into())
            }
        }
    )*};
}

of_bytes!(LayerDigest, DiffId, ImageDigest);

impl RootHash {
    /// The bytes that a layer signature covers: the 64 lowercase hex characters, no newline.
    ///
    /// The kernel checks a PKCS#7 over the root hash argument as it stands in the table, not over
    /// the 32 bytes. Source: kernel `drivers/md/dm-verity-verify-sig.c`, `verity_verify_root_hash`.
    #[must_use]
    pub fn signed_bytes(&self) -> [u8; 64] {
        const HEX: [u8; 16] = *b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            let digit = |n: u8| HEX.get(usize::from(n & 15)).copied().unwrap_or_default();
            *pair = [digit(byte >> 4), digit(byte)];
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn only_one_text_form_is_accepted() {
        let good = format!("sha256:{HEX}");
        assert_eq!(good.parse::<LayerDigest>().unwrap().to_string(), good);
        assert_eq!(HEX.parse::<RootHash>().unwrap().to_string(), HEX);
        let bad = [
            String::new(),
            "sha256:".into(),
            HEX.into(),
            format!("SHA256:{HEX}"),
            format!("sha512:{HEX}"),
            format!(" sha256:{HEX}"),
            format!("sha256:{HEX}\n"),
            format!("sha256:{}", HEX.to_uppercase()),
            format!("sha256:{}", &HEX[1..]),
            format!("sha256:{HEX}00"),
            format!("sha256:{}g", &HEX[1..]),
            format!("sha256:é{}", &HEX[2..]),
        ];
        for text in bad {
            let error = text.parse::<DiffId>().expect_err(&text);
            assert_eq!(error.kind(), ErrorKind::Digest);
        }
        for text in [format!("sha256:{HEX}"), HEX.to_uppercase(), format!("{HEX}\n")] {
            assert!(text.parse::<RootHash>().is_err(), "{text}");
        }
    }

    #[test]
    fn digest_of_bytes_is_sha256() {
        assert_eq!(ImageDigest::of(b"test").to_string(), format!("sha256:{HEX}"));
    }

    #[test]
    fn signed_bytes_are_the_text_of_the_root_hash() {
        let root: RootHash = HEX.parse().unwrap();
        assert_eq!(root.signed_bytes(), *HEX.as_bytes());
    }

    #[test]
    fn serde_uses_the_text() {
        let root: RootHash = HEX.parse().unwrap();
        assert_eq!(serde_json::to_string(&root).unwrap(), format!("\"{HEX}\""));
        assert_eq!(serde_json::from_str::<RootHash>(&format!("\"{HEX}\"")).unwrap(), root);
        assert!(serde_json::from_str::<ImageDigest>(&format!("\"{HEX}\"")).is_err());
        assert!(serde_json::from_str::<ImageDigest>("[1,2]").is_err());
    }

    #[test]
    fn a_long_hostile_text_is_cut_in_the_message() {
        let error = "x".repeat(1 << 20).parse::<DiffId>().unwrap_err();
        assert!(error.to_string().len() < 300);
    }
}
