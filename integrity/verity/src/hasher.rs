//! SHA-256 of the salt and a block: what a hash tree is made of.
//!
//! One digest is a chain of 65 or so compressions, each of which waits for the one before it, and a processor with
//! instructions for SHA-256 idles half of that time. So two blocks are hashed in turn, compression by compression: two
//! chains that do not wait for each other, a fifth faster than one after the other. A third and a fourth add nothing.

use sha2::compress256;
use sha2::digest::generic_array::GenericArray;

use crate::volume::Salt;
use crate::{BLOCK, DIGEST, FANOUT};

/// Bytes that one compression takes.
const STEP: usize = 64;

/// Bytes at the end of a padded message that hold its length.
const LENGTH: usize = 8;

/// The initial hash value of FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// SHA-256 with a salt already hashed.
#[derive(Clone)]
pub(crate) struct Hasher {
    /// After every whole step of the salt.
    state: [u32; 8],
    /// What of the salt is left: less than a step.
    rest: Vec<u8>,
    /// Of salt and block, in bits.
    message_bits: u64,
}

impl Hasher {
    pub(crate) fn new(salt: &Salt) -> Self {
        let (steps, rest) = salt.as_bytes().as_chunks::<STEP>();
        let mut state = INITIAL;
        steps.iter().for_each(|step| compress(&mut state, step));
        let bytes = salt.as_bytes().len().saturating_add(BLOCK);
        Self { state, rest: rest.to_vec(), message_bits: (bytes as u64).saturating_mul(8) }
    }

    /// The digest of one block.
    pub(crate) fn block(&self, block: &[u8; BLOCK]) -> [u8; DIGEST] {
        let [digest] = self.lanes([block]);
        digest
    }

    /// The digests of blocks, in order.
    pub(crate) fn blocks<'a>(
        &'a self,
        blocks: &'a [[u8; BLOCK]],
    ) -> impl Iterator<Item = [u8; DIGEST]> + 'a {
        let (pairs, odd) = blocks.as_chunks::<2>();
        let pairs = pairs.iter().flat_map(|[first, second]| self.lanes([first, second]));
        pairs.chain(odd.iter().map(|block| self.block(block)))
    }

    /// The digest of a hash block that holds these digests, at most [`FANOUT`].
    pub(crate) fn digests(&self, digests: &[[u8; DIGEST]]) -> [u8; DIGEST] {
        let mut block = [[0; DIGEST]; FANOUT];
        block.iter_mut().zip(digests).for_each(|(place, digest)| *place = *digest);
        let block = block.as_flattened().first_chunk();
        // 128 digests of 32 bytes
        block.map_or([0; DIGEST], |block| self.block(block))
    }

    fn lanes<const N: usize>(&self, blocks: [&[u8; BLOCK]; N]) -> [[u8; DIGEST]; N] {
        let mut states = [self.state; N];
        // the first step begins with what is left of the salt; without any it is a step like the others
        let started = if self.rest.is_empty() { 0 } else { STEP.saturating_sub(self.rest.len()) };
        let parts = blocks.map(|block| block.split_at(started));
        if started > 0 {
            for (state, (start, _)) in states.iter_mut().zip(parts) {
                let mut step = [0; STEP];
                step.iter_mut()
                    .zip(self.rest.iter().chain(start))
                    .for_each(|(to, from)| *to = *from);
                compress(state, &step);
            }
        }
        let parts = parts.map(|(_, rest)| rest.as_chunks::<STEP>());
        let steps = parts.first().map_or(0, |(steps, _)| steps.len());
        for index in 0..steps {
            for (state, (steps, _)) in states.iter_mut().zip(&parts) {
                steps.get(index).into_iter().for_each(|step| compress(state, step));
            }
        }
        for (state, (_, end)) in states.iter_mut().zip(parts) {
            self.pad(state, end);
        }
        states.map(digest)
    }

    /// The last steps: the end of the message, a bit, zeros and the length.
    fn pad(&self, state: &mut [u32; 8], end: &[u8]) {
        let mut step = [0; STEP];
        step.iter_mut().zip(end.iter().chain([&0x80])).for_each(|(to, from)| *to = *from);
        if end.len() >= STEP.saturating_sub(LENGTH) {
            compress(state, &step);
            step = [0; STEP];
        }
        if let Some(length) = step.last_chunk_mut::<LENGTH>() {
            *length = self.message_bits.to_be_bytes();
        }
        compress(state, &step);
    }
}

fn compress(state: &mut [u32; 8], step: &[u8; STEP]) {
    compress256(state, std::slice::from_ref(GenericArray::from_slice(step)));
}

fn digest(state: [u32; 8]) -> [u8; DIGEST] {
    let mut digest = [0; DIGEST];
    let words = state.into_iter().flat_map(u32::to_be_bytes);
    digest.iter_mut().zip(words).for_each(|(to, from)| *to = from);
    digest
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::MAX_SALT;

    #[test]
    fn every_length_of_salt_gives_the_digest_of_salt_and_block() {
        let mut blocks = [[0; BLOCK]; 3];
        for (number, byte) in blocks.as_flattened_mut().iter_mut().enumerate() {
            *byte = u8::try_from((number ^ (number >> 8)) & 0xff).unwrap();
        }
        for length in 0..=MAX_SALT {
            let salt: Vec<u8> = (0..length).map(|at| u8::try_from(at & 0xff).unwrap()).collect();
            let hasher = Hasher::new(&Salt::from_bytes(&salt).unwrap());
            let expected: Vec<[u8; DIGEST]> = blocks
                .iter()
                .map(|block| Sha256::new_with_prefix(&salt).chain_update(block).finalize().into())
                .collect();
            assert_eq!(hasher.blocks(&blocks).collect::<Vec<_>>(), expected, "{length} bytes");
            assert_eq!(hasher.block(&blocks[2]), expected[2], "{length} bytes");
        }
    }

    #[test]
    fn a_hash_block_that_is_not_full_ends_in_zeros() {
        let hasher = Hasher::new(&Salt::default());
        for count in [0, 1, FANOUT - 1, FANOUT] {
            let mut block = vec![[7; DIGEST]; count];
            let digest = hasher.digests(&block);
            block.resize(FANOUT, [0; DIGEST]);
            assert_eq!(digest, <[u8; DIGEST]>::from(Sha256::digest(block.as_flattened())));
        }
    }
}
