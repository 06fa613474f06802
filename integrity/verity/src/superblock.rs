//! The dm-verity superblock as `veritysetup` writes it, little endian.
//!
//! | offset | bytes | field           | here |
//! |-------:|------:|-----------------|------|
//! |      0 |     8 | signature       | `verity\0\0` |
//! |      8 |     4 | version         | 1 |
//! |     12 |     4 | hash_type       | 1: the salt is hashed before the block |
//! |     16 |    16 | uuid            | any |
//! |     32 |    32 | algorithm       | `sha256`, zero padded |
//! |     64 |     4 | data_block_size | 4096 bytes |
//! |     68 |     4 | hash_block_size | 4096 bytes |
//! |     72 |     8 | data_blocks     | blocks, at least 1 |
//! |     80 |     2 | salt_size       | bytes, at most 256 |
//! |     82 |     6 | padding         | zero |
//! |     88 |   256 | salt            | zero padded |
//! |    344 |   168 | padding         | zero |
//!
//! The kernel never reads it, and neither does anything here that decides: parameters come from
//! the seal. It is on the disk so that `veritysetup` can check and open an image.
//!
//! Source: cryptsetup `lib/verity/verity.c`, `struct verity_sb`.

use crate::BLOCK;
use crate::error::{Cause, Error};
use crate::volume::{DataBlocks, MAX_SALT, Salt, VolumeParams};

/// Bytes of a superblock; the rest of its block is zero.
pub const SUPERBLOCK_LEN: usize = 512;

const SIGNATURE: &[u8; 8] = b"verity\0\0";
const ALGORITHM: &[u8] = b"sha256";
const VERSION: u32 = 1;
const HASH_TYPE: u32 = 1;

/// What a superblock says beyond its fixed fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Names the volume; no digest depends on it.
    pub uuid: [u8; 16],
    /// Salt and data blocks.
    pub params: VolumeParams,
}

impl Superblock {
    /// The bytes on disk.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_LEN] {
        let salt = self.params.salt.as_bytes();
        let block_size = u32::try_from(BLOCK).unwrap_or_default();
        let salt_size = u16::try_from(salt.len()).unwrap_or_default();
        let mut bytes = [0; SUPERBLOCK_LEN];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, SIGNATURE, 8);
        put(&mut rest, &VERSION.to_le_bytes(), 4);
        put(&mut rest, &HASH_TYPE.to_le_bytes(), 4);
        put(&mut rest, &self.uuid, 16);
        put(&mut rest, ALGORITHM, 32);
        put(&mut rest, &block_size.to_le_bytes(), 4);
        put(&mut rest, &block_size.to_le_bytes(), 4);
        put(&mut rest, &self.params.data_blocks.0.to_le_bytes(), 8);
        put(&mut rest, &salt_size.to_le_bytes(), 8);
        put(&mut rest, salt, MAX_SALT);
        bytes
    }

    /// Reads a superblock that [`encode`](Self::encode) can have written, and no other.
    ///
    /// # Errors
    /// [`Superblock`](crate::ErrorKind::Superblock) for a wrong length, another version, hash type,
    /// algorithm or block size, or padding that is not zero; [`Salt`](crate::ErrorKind::Salt) and
    /// [`Blocks`](crate::ErrorKind::Blocks) for values that no volume has.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; SUPERBLOCK_LEN] =
            bytes.try_into().ok().ok_or(Cause::SuperblockLen(bytes.len()))?;
        let mut rest = bytes.as_slice();
        let signature = take::<8>(&mut rest);
        if &signature != SIGNATURE {
            let found = format!("{:?}", signature.escape_ascii().to_string());
            return Err(field("signature", found, "\"verity\\0\\0\""));
        }
        expect_u32(&mut rest, "version", VERSION, "1")?;
        expect_u32(&mut rest, "hash_type", HASH_TYPE, "1")?;
        let uuid = take::<16>(&mut rest);
        let algorithm = take::<32>(&mut rest);
        if padded(&algorithm, ALGORITHM.len(), "algorithm")? != ALGORITHM {
            let found = format!("{:?}", algorithm.escape_ascii().to_string());
            return Err(field("algorithm", found, "\"sha256\""));
        }
        let block_size = u32::try_from(BLOCK).unwrap_or_default();
        expect_u32(&mut rest, "data_block_size", block_size, "4096")?;
        expect_u32(&mut rest, "hash_block_size", block_size, "4096")?;
        let data_blocks = DataBlocks(u64::from_le_bytes(take(&mut rest)));
        let salt_size = usize::from(u16::from_le_bytes(take(&mut rest)));
        padded(&take::<6>(&mut rest), 0, "salt_size")?;
        let salt = take::<MAX_SALT>(&mut rest);
        if salt_size > MAX_SALT {
            return Err(Cause::SaltLen(salt_size).into());
        }
        let salt = Salt::from_bytes(padded(&salt, salt_size, "salt")?)?;
        padded(rest, 0, "salt")?;
        Ok(Self { uuid, params: VolumeParams::new(salt, data_blocks)? })
    }
}

/// Copies `value` to the start of `rest` and moves on by `width` bytes.
fn put(rest: &mut &mut [u8], value: &[u8], width: usize) {
    let (head, tail) = std::mem::take(rest).split_at_mut(width);
    head.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
    *rest = tail;
}

/// Takes the next `N` bytes; the caller's layout adds up to the length it checked.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

/// The first `len` bytes of a field whose others must be zero.
fn padded<'a>(bytes: &'a [u8], len: usize, after: &'static str) -> Result<&'a [u8], Error> {
    let (value, padding) = bytes.split_at_checked(len).ok_or(Cause::Padding(after))?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Cause::Padding(after).into());
    }
    Ok(value)
}

fn expect_u32(
    rest: &mut &[u8],
    name: &'static str,
    value: u32,
    expected: &'static str,
) -> Result<(), Error> {
    match u32::from_le_bytes(take(rest)) {
        found if found == value => Ok(()),
        found => Err(field(name, found.to_string(), expected)),
    }
}

fn field(field: &'static str, found: String, expected: &'static str) -> Error {
    Cause::Field { field, found, expected }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn sample() -> Superblock {
        let salt = Salt::from_bytes(&[0xab; 32]).unwrap();
        Superblock {
            uuid: [7; 16],
            params: VolumeParams::new(salt, DataBlocks(0x0102_0304)).unwrap(),
        }
    }

    #[test]
    fn parses_what_it_encodes() {
        for len in [0, 1, 32, 255, 256] {
            let salt = Salt::from_bytes(&vec![0xcd; len]).unwrap();
            let params = VolumeParams::new(salt, DataBlocks(1)).unwrap();
            let superblock = Superblock { uuid: [1; 16], params };
            assert_eq!(Superblock::parse(&superblock.encode()).unwrap(), superblock);
        }
    }

    #[test]
    fn every_changed_byte_is_refused_or_seen() {
        let good = sample();
        for at in 0..SUPERBLOCK_LEN {
            let mut bytes = good.encode();
            bytes[at] ^= 0x80;
            match Superblock::parse(&bytes) {
                Err(_) => {}
                Ok(other) => {
                    assert_ne!(other, good, "byte {at}");
                    // uuid, data_blocks, salt_size, salt: the only free fields
                    assert!(matches!(at, 16..32 | 72..82 | 88..120), "byte {at}");
                }
            }
        }
    }

    #[test]
    fn refuses_what_no_volume_has() {
        let mut bytes = sample().encode();
        bytes[72..80].fill(0);
        assert_eq!(Superblock::parse(&bytes).unwrap_err().kind(), ErrorKind::Blocks);
        let mut bytes = sample().encode();
        bytes[80..82].copy_from_slice(&257u16.to_le_bytes());
        assert_eq!(Superblock::parse(&bytes).unwrap_err().kind(), ErrorKind::Salt);
        for len in [0, 511, 513] {
            let error = Superblock::parse(&vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Superblock);
        }
    }
}
