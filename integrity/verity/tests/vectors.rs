//! Root hashes, trees, superblocks and file digests equal those of `veritysetup` and `fsverity`.
//!
//! The vectors were made by `tests/vectors/make.sh`, with the versions in `tools.txt`.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::process::Command;

use hallmark_verity::{
    BLOCK, DataBlocks, FileHasher, RootHash, Salt, Superblock, Tree, TreeBuilder, VolumeParams,
    root_of,
};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

const UUID: [u8; 16] = [
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
];

/// What `seq 1 99999999 | head -c LEN` prints.
fn seq(len: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(len + 16);
    let mut n = 1;
    while data.len() < len {
        writeln!(data, "{n}").unwrap();
        n += 1;
    }
    data.truncate(len);
    data
}

fn tree_of(data: &[u8], salt: &Salt) -> Tree {
    let mut builder = TreeBuilder::new(salt);
    data.as_chunks::<BLOCK>().0.iter().for_each(|block| builder.push(block));
    builder.finish().unwrap()
}

/// What `veritysetup format DATA HASH` writes to HASH.
fn hash_device(tree: &Tree, salt: &Salt) -> Vec<u8> {
    let params = VolumeParams::new(salt.clone(), tree.data_blocks()).unwrap();
    let mut bytes = Superblock { uuid: UUID, params }.encode().to_vec();
    bytes.resize(BLOCK, 0);
    tree.write_to(&mut bytes).unwrap();
    bytes
}

#[test]
fn volumes_equal_veritysetup() {
    let vectors = include_str!("vectors/volumes.tsv");
    let data = seq(16385 * BLOCK);
    for line in vectors.lines() {
        let [blocks, salt, root, hash] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let blocks: usize = blocks.parse().unwrap();
        let salt: Salt = if salt == "-" { Salt::default() } else { salt.parse().unwrap() };
        let data = &data[..blocks * BLOCK];
        let tree = tree_of(data, &salt);
        assert_eq!(tree.root().to_string(), root, "{blocks} blocks, salt {salt}");
        assert_eq!(root_of(data, &salt, DataBlocks(blocks as u64)).unwrap(), tree.root());
        let bytes = hash_device(&tree, &salt);
        assert_eq!(hex::encode(Sha256::digest(&bytes)), hash, "{blocks} blocks, salt {salt}");
        let parsed = Superblock::parse(&bytes[..512]).unwrap();
        assert_eq!((parsed.uuid, parsed.params.data_blocks.0), (UUID, blocks as u64));
    }
    assert_eq!(vectors.lines().count(), 40);
}

#[test]
fn files_equal_fsverity() {
    let vectors = include_str!("vectors/files.tsv");
    for line in vectors.lines() {
        let (len, digest) = line.split_once('\t').unwrap();
        let data = seq(len.parse().unwrap());
        let found = FileHasher::digest_of(data.as_slice()).unwrap();
        assert_eq!(found.to_hex(), digest, "{len} bytes");
    }
    assert_eq!(vectors.lines().count(), 9);
}

#[test]
fn veritysetup_verifies_what_we_write() {
    let Some(version) = tool("veritysetup") else { return };
    let data = seq(300 * BLOCK);
    let salt = Salt::from_bytes(b"any salt").unwrap();
    let tree = tree_of(&data, &salt);
    let mut image = tempfile::NamedTempFile::new().unwrap();
    image.write_all(&data).unwrap();
    image.write_all(&hash_device(&tree, &salt)).unwrap();
    let verify = |root: RootHash| {
        Command::new("veritysetup")
            .arg("verify")
            .args([image.path(), image.path()])
            .arg(root.to_string())
            .arg(format!("--hash-offset={}", data.len()))
            .status()
            .unwrap()
            .success()
    };
    assert!(verify(tree.root()), "{version}");
    assert!(!verify(RootHash::from_bytes([1; 32])), "{version}");
}

/// The version of a reference tool, or a line that says it is missing.
fn tool(name: &str) -> Option<String> {
    let found = Command::new(name).arg("--version").output();
    let Ok(output) = found else {
        // Past what the test harness captures.
        let line = format!("skipped: needs {name}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn replaced_blocks_give_the_root_of_the_final_data(
        blocks in 1usize..400,
        salt in prop::collection::vec(any::<u8>(), 0..=256),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let salt = Salt::from_bytes(&salt).unwrap();
        let mut data = seq(blocks * BLOCK);
        let mut builder = TreeBuilder::new(&salt);
        data.as_chunks::<BLOCK>().0.iter().for_each(|block| builder.push(block));
        for (index, byte) in changes {
            let index = index.index(blocks);
            let block = &mut data.as_chunks_mut::<BLOCK>().0[index];
            block[usize::from(byte)] ^= byte;
            builder.replace(index as u64, block).unwrap();
        }
        let tree = builder.finish().unwrap();
        let mut slow = data.as_slice().take(u64::MAX);
        prop_assert_eq!(root_of(&mut slow, &salt, DataBlocks(blocks as u64)).unwrap(), tree.root());
    }
}
