//! One lower: is it a whole layer, and the sealed one?

use hallmark_seal::SealedLayer;

use super::dm_verity;
use super::refusal::{LayerName, Refusal};
use crate::evidence::{Evidence, Volume};

/// `EROFS_SUPER_MAGIC_V1` of Linux include/uapi/linux/magic.h.
pub(super) const EROFS: u64 = 0xE0F5_E1E2;

/// The options a layer's superblock may have, besides a SELinux label of its own. What else EROFS
/// knows (`device=`, `fsoffset=`, `domain_id=`, `inode_share`) shows other bytes than the signed ones.
const OPTIONS: [&str; 8] = [
    "ro",
    "user_xattr",
    "acl",
    "seclabel",
    "cache_strategy=disabled",
    "cache_strategy=readahead",
    "cache_strategy=readaround",
    "dax=never",
];

/// The descriptor is a whole superblock on a block device that says what it holds, and nothing else.
pub(super) fn is_one_whole_layer(layer: &LayerName, evidence: &Evidence) -> Result<(), Refusal> {
    let layer = || layer.clone();
    if evidence.file_system != EROFS {
        return Err(Refusal::FileSystem { layer: layer(), found: evidence.file_system });
    }
    if !evidence.is_mount_root || evidence.shown_root != "/" {
        let found =
            if evidence.is_mount_root { &evidence.shown_root } else { "a directory inside" };
        return Err(Refusal::NotRoot { layer: layer(), found: found.to_owned() });
    }
    if let Some(found) = evidence.mounted_beneath.clone() {
        return Err(Refusal::MountedBeneath { layer: layer(), found });
    }
    let labelled =
        |option: &str| option.starts_with("context=") || option.starts_with("rootcontext=");
    let mut options = evidence.options.iter().map(String::as_str);
    if let Some(found) = options.find(|option| !OPTIONS.contains(option) && !labelled(option)) {
        return Err(Refusal::SuperblockOption { layer: layer(), found: found.to_owned() });
    }
    match &evidence.volume {
        Volume::DmVerity(volume) => dm_verity::is_strict(&layer(), evidence.device, volume),
        Volume::Rehashed(loop_device) if loop_device.serves_whole_file() => Ok(()),
        Volume::Rehashed(loop_device) => {
            Err(Refusal::LoopDevice { layer: layer(), found: loop_device.window() })
        }
        Volume::Unverified(found) => {
            Err(Refusal::Unverified { layer: layer(), found: found.clone() })
        }
    }
}

/// The volume is the sealed one: root hash, salt and length.
pub(super) fn is_as_sealed(
    layer: &LayerName,
    evidence: &Evidence,
    sealed: &SealedLayer,
) -> Result<(), Refusal> {
    let layer = || layer.clone();
    let found = evidence.root_hash();
    if found != Some(sealed.root_hash) {
        return Err(Refusal::RootHash { layer: layer(), found, expected: sealed.root_hash });
    }
    let (salt, data_blocks) = match &evidence.volume {
        Volume::DmVerity(volume) => (volume.target.salt.as_slice(), volume.target.data_blocks),
        Volume::Rehashed(volume) => (volume.params.salt.as_bytes(), volume.params.data_blocks.0),
        Volume::Unverified(found) => {
            return Err(Refusal::Unverified { layer: layer(), found: found.clone() });
        }
    };
    if salt != sealed.salt.as_bytes() {
        let (found, expected) = (hex::encode(salt), sealed.salt.to_string());
        return Err(Refusal::Salt { layer: layer(), found, expected });
    }
    if data_blocks != sealed.data_blocks.0 {
        let expected = sealed.data_blocks.0;
        return Err(Refusal::DataBlocks { layer: layer(), found: data_blocks, expected });
    }
    Ok(())
}
