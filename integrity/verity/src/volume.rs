//! The parameters of a volume that its root hash depends on, besides the data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Cause, Error};
use crate::{BLOCK, FANOUT};

/// The longest salt, in bytes, that a superblock can hold.
pub const MAX_SALT: usize = 256;

/// A dm-verity salt of 0 to [`MAX_SALT`] bytes; its text is lowercase hex, empty for no salt.
///
/// A dm table writes the empty salt as `-`: see [`Salt::to_table`].
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Salt(Vec<u8>);

impl Salt {
    /// The salt with these bytes.
    ///
    /// # Errors
    /// [`Salt`](crate::ErrorKind::Salt) for more than [`MAX_SALT`] bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_SALT {
            return Err(Cause::SaltLen(bytes.len()).into());
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The salt as an argument of a dm-verity table: hex, or `-` for none.
    #[must_use]
    pub fn to_table(&self) -> String {
        if self.0.is_empty() { "-".into() } else { self.to_string() }
    }
}

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salt({self})")
    }
}

impl FromStr for Salt {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > 2 * MAX_SALT {
            return Err(Cause::SaltLen(text.len().div_ceil(2)).into());
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(Cause::SaltHex.into());
        }
        hex::decode(text).map(Self).ok().ok_or_else(|| Cause::SaltHex.into())
    }
}

impl TryFrom<String> for Salt {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Salt> for String {
    fn from(salt: Salt) -> Self {
        salt.to_string()
    }
}

/// A number of data blocks of [`BLOCK`] bytes: the length of the data device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataBlocks(pub u64);

impl fmt::Display for DataBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The geometry of a volume whose superblock and hash tree follow its data in the same file.
///
/// | block | what |
/// |---|---|
/// | 0 to `data_blocks` − 1 | data |
/// | `data_blocks` | superblock, zero padded |
/// | `data_blocks` + 1 | hash tree, [`tree_blocks`](Self::tree_blocks) long |
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeParams {
    /// What is hashed before each block.
    pub salt: Salt,
    /// The length of the data.
    pub data_blocks: DataBlocks,
}

impl VolumeParams {
    /// The parameters of a volume that can exist.
    ///
    /// # Errors
    /// [`Blocks`](crate::ErrorKind::Blocks) for no data block, or for more than a file can hold.
    pub fn new(salt: Salt, data_blocks: DataBlocks) -> Result<Self, Error> {
        match data_blocks.0 {
            0 => Err(Cause::NoBlocks.into()),
            // With its tree such a volume is still shorter than 2^62 bytes.
            n if n > 1 << 49 => Err(Cause::TooManyBlocks(n).into()),
            _ => Ok(Self { salt, data_blocks }),
        }
    }

    /// Bytes of data; also the offset of the superblock.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.data_blocks.0.saturating_mul(BLOCK as u64)
    }

    /// The block where the hash tree starts: `hash_start_block` of a dm-verity table.
    #[must_use]
    pub fn hash_start_block(&self) -> u64 {
        self.data_blocks.0.saturating_add(1)
    }

    /// Blocks of the hash tree; 0 for a volume of one data block, whose root hash is its leaf.
    #[must_use]
    pub fn tree_blocks(&self) -> u64 {
        levels(self.data_blocks).into_iter().fold(0, u64::saturating_add)
    }

    /// Bytes of the whole file: data, superblock block and tree.
    #[must_use]
    pub fn image_len(&self) -> u64 {
        self.hash_start_block().saturating_add(self.tree_blocks()).saturating_mul(BLOCK as u64)
    }
}

/// Hash blocks of each level of a tree, leaf level first.
///
/// Source: cryptsetup `lib/verity/verity_hash.c`, `hash_levels`.
pub(crate) fn levels(data_blocks: DataBlocks) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut blocks = data_blocks.0;
    while blocks > 1 {
        blocks = blocks.div_ceil(FANOUT as u64);
        levels.push(blocks);
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn salt_text() {
        for (text, table) in [("", "-"), ("00ff", "00ff"), (&"ab".repeat(256), &"ab".repeat(256))] {
            let salt: Salt = text.parse().unwrap();
            assert_eq!((salt.to_string().as_str(), salt.to_table().as_str()), (text, table));
        }
        for bad in ["0", "0G", "-", "AB", " 00", "0x00", &"ab".repeat(257)] {
            assert_eq!(bad.parse::<Salt>().unwrap_err().kind(), ErrorKind::Salt, "{bad}");
        }
        assert!(Salt::from_bytes(&[0; 257]).is_err());
    }

    #[test]
    fn geometry() {
        for (blocks, tree) in
            [(1, 0), (2, 1), (128, 1), (129, 3), (16384, 129), (16385, 1 + 2 + 129)]
        {
            let volume = VolumeParams::new(Salt::default(), DataBlocks(blocks)).unwrap();
            assert_eq!(volume.tree_blocks(), tree, "{blocks} blocks");
            assert_eq!(volume.image_len(), (blocks + 1 + tree) * 4096);
        }
        for bad in [0, (1 << 49) + 1, u64::MAX] {
            let error = VolumeParams::new(Salt::default(), DataBlocks(bad)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Blocks);
        }
    }

    #[test]
    fn data_blocks_is_a_bare_number_in_json() {
        assert_eq!(serde_json::to_string(&DataBlocks(7)).unwrap(), "7");
        assert!(serde_json::from_str::<DataBlocks>("-1").is_err());
    }
}
