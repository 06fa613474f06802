//! Hash trees, dm-verity superblocks and fs-verity digests. Pure: opens nothing.
//!
//! One algorithm and one block size, because a choice that is never made cannot be downgraded:
//! SHA-256 over blocks of [`BLOCK`] bytes, hash type 1 (the salt is hashed before the block).
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod descriptor;
mod digest;
mod error;
mod hasher;
mod rehash;
mod superblock;
mod tree;
mod volume;

pub use descriptor::FileHasher;
pub use digest::{DiffId, FileDigest, ImageDigest, LayerDigest, RootHash};
pub use error::{Error, ErrorKind};
pub use rehash::root_of;
pub use superblock::{SUPERBLOCK_LEN, Superblock};
pub use tree::{Tree, TreeBuilder};
pub use volume::{DataBlocks, MAX_SALT, Salt, VolumeParams};

/// Bytes in a data block and in a hash block, of volumes and of fs-verity files alike.
pub const BLOCK: usize = 4096;

/// Bytes in a SHA-256 digest.
const DIGEST: usize = 32;

/// Digests in one hash block: `BLOCK / DIGEST`.
const FANOUT: usize = 128;
