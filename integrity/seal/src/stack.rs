//! The stack of an image, and its name.
//!
//! overlayfs refuses the same superblock twice (ELOOP), and a lower copy of a layer decides nothing that its upper
//! copy does not. So the stack is the image's root hashes, bottom first, with every copy but the topmost left out.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use hallmark_verity::RootHash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};

/// The name of a stack: SHA-256 over its root hashes' 64 lowercase hex characters, bottom first, each followed by
/// a line feed. It is the name of the file that holds the claims for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StackId([u8; 32]);

impl StackId {
    /// The name of the stack of `layers`, bottom first. Repeats are left out here as well, so a whole layer list
    /// and its [`stack`] have the same name.
    #[must_use]
    pub fn of(layers: &[RootHash]) -> Self {
        let mut hash = Sha256::new();
        for root_hash in stack(layers) {
            hash.update(root_hash.signed_bytes());
            hash.update(b"\n");
        }
        Self(hash.finalize().into())
    }

    /// The file in the claims directory: `<64 hex>.json`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{self}.json")
    }
}

/// `layers`, bottom first, without every copy but the topmost of a repeated root hash.
#[must_use]
pub fn stack(layers: &[RootHash]) -> Vec<RootHash> {
    let mut seen = HashSet::with_capacity(layers.len());
    let mut stack: Vec<RootHash> =
        layers.iter().rev().copied().filter(|layer| seen.insert(*layer)).collect();
    stack.reverse();
    stack
}

impl fmt::Display for StackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for StackId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "64 lowercase hex characters";
        let wrong = || {
            let shown: String = text.chars().take(80).collect();
            Error::new(ErrorKind::Malformed, "stack id", format_args!("{shown:?}"), expected)
        };
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|source| wrong().because(source))?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for StackId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<StackId> for String {
    fn from(id: StackId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_hash(byte: u8) -> RootHash {
        hex::encode([byte; 32]).parse().unwrap()
    }

    #[test]
    fn the_topmost_copy_stays() {
        let [a, b, c] = [1, 2, 3].map(root_hash);
        for (layers, expected) in [
            (vec![], vec![]),
            (vec![a], vec![a]),
            (vec![a, b, c], vec![a, b, c]),
            (vec![b, a, c, a], vec![b, c, a]),
            (vec![a, a, a], vec![a]),
        ] {
            assert_eq!(stack(&layers), expected);
            assert_eq!(stack(&expected), expected);
            assert_eq!(StackId::of(&layers), StackId::of(&expected));
        }
        assert_ne!(StackId::of(&[a, b]), StackId::of(&[b, a]));
        assert_ne!(StackId::of(&[a]), StackId::of(&[a, b]));
    }

    /// `for b in 01 02; do printf "$b%.0s" {1..32}; echo; done | sha256sum`
    #[test]
    fn the_name_is_that_of_sha256sum() {
        let id = StackId::of(&[root_hash(1), root_hash(2)]);
        let text = "097a423f961e262d02e6f2985ee598715c961978e909dc851be6a3bb95059a71";
        assert_eq!(id.to_string(), text);
        assert_eq!(text.parse::<StackId>().unwrap(), id);
        assert_eq!(id.file_name(), format!("{text}.json"));
        assert_eq!(
            text.to_uppercase().parse::<StackId>().unwrap_err().kind(),
            ErrorKind::Malformed
        );
        assert_eq!("00".parse::<StackId>().unwrap_err().kind(), ErrorKind::Malformed);
    }
}
