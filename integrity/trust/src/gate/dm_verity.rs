//! The one form of dm-verity device that counts.
//!
//! "The table shows the root hash" is not enough: `ignore_corruption` lets tampered blocks through,
//! `check_at_most_once` checks them once, a second target holds anything, and a device that others
//! created may serve pages cached before its table was loaded.

use hallmark_sys::dm::VerityStatus;
use hallmark_verity::BLOCK;

use super::refusal::{LayerName, Refusal};
use crate::evidence::{ActivationRecord, DeviceKind, DmVerity, Record, Rehashed};

/// Refuses every other form: version 1, sha256, blocks of 4096 bytes, the whole device, no option
/// but the signature's, no corrupted block so far, created by our daemon.
pub(super) fn is_strict(
    layer: &LayerName,
    device: (u32, u32),
    volume: &DmVerity,
) -> Result<(), Refusal> {
    let target = &volume.target;
    let block = u32::try_from(BLOCK).unwrap_or_default();
    let found =
        (target.version, target.algorithm.as_str(), target.data_block_size, target.hash_block_size);
    if found != (1, "sha256", block, block) {
        let (version, algorithm, data, hash) = found;
        let found = format!("version {version}, {algorithm}, blocks of {data} and {hash} bytes");
        return Err(Refusal::DmTable { layer: layer.clone(), found });
    }
    let sectors = 0..target.data_blocks.saturating_mul(BLOCK as u64 / 512);
    if volume.sectors != sectors {
        let found = format!("sectors {:?} of {} data blocks", volume.sectors, target.data_blocks);
        return Err(Refusal::DmTable { layer: layer.clone(), found });
    }
    if let Some(found) = target.options.first() {
        return Err(Refusal::DmOption { layer: layer.clone(), found: found.clone() });
    }
    if volume.status != VerityStatus::Verified {
        return Err(Refusal::Corrupted { layer: layer.clone() });
    }
    created_by_us(device, volume).map_err(|(found, expected)| Refusal::NotOurs {
        layer: layer.clone(),
        found,
        expected,
    })
}

/// The record must be of this device and of what its table says, in every field.
fn created_by_us(device: (u32, u32), volume: &DmVerity) -> Result<(), (String, String)> {
    let record = match &volume.record {
        Record::Found(record) => record,
        Record::Missing => return Err(("no activation record".to_owned(), "one".to_owned())),
        Record::Unusable(why) => return Err((why.clone(), "an activation record".to_owned())),
    };
    let target = &volume.target;
    let found = Facts {
        device: &format!("{}:{}", device.0, device.1),
        uuid: &volume.uuid,
        kind: DeviceKind::DmVerity,
        root_hash: &target.root_hash,
        signed: target.signed,
        salt: &target.salt,
        data_blocks: target.data_blocks,
    };
    let expected = Facts::recorded(record);
    if found != expected {
        return Err((found.to_string(), format!("{expected}, as recorded")));
    }
    let ours = format!("HALLMARK-{}-", record.root_hash);
    if volume.uuid.starts_with(&ours) {
        return Ok(());
    }
    Err((format!("uuid {}", volume.uuid), format!("one of our snapshotter's, {ours}…")))
}

/// What a record and a table both say of a device.
#[derive(PartialEq, Eq)]
struct Facts<'a> {
    device: &'a str,
    uuid: &'a str,
    kind: DeviceKind,
    root_hash: &'a [u8],
    signed: bool,
    salt: &'a [u8],
    data_blocks: u64,
}

impl<'a> Facts<'a> {
    fn recorded(record: &'a ActivationRecord) -> Self {
        Self {
            device: &record.dev,
            uuid: &record.uuid,
            kind: record.kind,
            root_hash: record.root_hash.as_bytes(),
            signed: record.signed,
            salt: record.salt.as_bytes(),
            data_blocks: record.data_blocks.0,
        }
    }
}

impl std::fmt::Display for Facts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            DeviceKind::DmVerity => "dm-verity",
            DeviceKind::Loop => "loop",
        };
        let signed = if self.signed { "signed" } else { "unsigned" };
        let (root_hash, salt) = (hex::encode(self.root_hash), hex::encode(self.salt));
        write!(f, "{kind} device {} with uuid {}, {signed} ", self.device, self.uuid)?;
        write!(f, "root hash {root_hash}, salt {salt}, {} data blocks", self.data_blocks)
    }
}

impl Rehashed {
    /// Whether the loop device shows the file from its start to its end, for reading only.
    pub(super) fn serves_whole_file(&self) -> bool {
        self.read_only && self.offset == 0 && self.size_limit == 0
    }

    /// What part of the file the loop device shows.
    pub(super) fn window(&self) -> String {
        let access = if self.read_only { "read-only" } else { "writable" };
        format!("{access}, offset {}, size limit {}", self.offset, self.size_limit)
    }
}
