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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::path::Path;

    use hallmark_sys::dm::{self, Removal, VerityTable};
    use hallmark_sys::loopdev;

    use super::*;
    use crate::Strength;
    use crate::evidence::{Collector, Evidence, Volume};
    use crate::gate::layer::is_one_whole_layer;
    use crate::testing::{Layer, has_device_mapper, privately, sh};
    use hallmark_sys::procfs::Procfs;

    fn look(dir: &Path, layer: &Layer) -> Evidence {
        let lower = File::open(&layer.mount_point).unwrap();
        let collector = Collector::new(&Procfs::open().unwrap(), dir).unwrap();
        collector.collect(lower.as_fd(), &layer.mount_point).unwrap()
    }

    fn judged(evidence: &Evidence) -> Result<(), Refusal> {
        is_one_whole_layer(&LayerName { number: 1, digest: None }, evidence)
    }

    fn record(layer: &Layer, device: &dm::Device, uuid: &str) -> String {
        let record = ActivationRecord {
            schema_version: 1,
            root_hash: layer.root_hash,
            signed: false,
            salt: layer.params.salt.clone(),
            data_blocks: layer.params.data_blocks,
            name: device.name.clone(),
            dev: format!("{}:{}", device.major, device.minor),
            uuid: uuid.to_owned(),
            lower: layer.mount_point.clone(),
            kind: DeviceKind::DmVerity,
        };
        serde_json::to_string(&record).unwrap()
    }

    /// On a kernel with device-mapper: what it says of a device of ours, before and after a block
    /// did not match.
    #[test]
    fn a_real_device_is_strict_until_a_block_does_not_match() {
        privately(|dir| {
            if !has_device_mapper() {
                return;
            }
            let layer = Layer::pack(dir, "a", "hello");
            let image = File::open(&layer.image).unwrap();
            let under = loopdev::attach_read_only(image.as_fd()).unwrap();
            let number = (under.major, under.minor);
            let table = VerityTable {
                data: number,
                hash: number,
                hash_start_block: layer.params.hash_start_block(),
                data_blocks: layer.params.data_blocks.0,
                root_hash: layer.root_hash.as_bytes(),
                salt: layer.params.salt.as_bytes(),
                signature: None,
            };
            let id = std::process::id();
            let name = format!("hallmark-test-{id}");
            let uuid = format!("HALLMARK-{}-u-{id:016x}", layer.root_hash);
            let device = dm::create_verity(&name, &uuid, &table).unwrap();
            let node = loopdev::block_node(device.major, device.minor).unwrap();
            let mount_point = layer.mount_point.display();
            sh(&format!("mount -t erofs -o ro {} {mount_point}", node.display()));

            let found = look(dir, &layer);
            assert_eq!(found.strength(), Some(Strength::DmVerity));
            assert_eq!(found.root_hash(), Some(layer.root_hash));
            assert!(matches!(judged(&found), Err(Refusal::NotOurs { .. })), "no record yet");
            let path = dir.join(format!("{}.u.json", layer.root_hash));
            fs::write(&path, record(&layer, &device, "HALLMARK-other")).unwrap();
            assert!(matches!(judged(&look(dir, &layer)), Err(Refusal::NotOurs { .. })));
            fs::write(&path, record(&layer, &device, &uuid)).unwrap();
            judged(&look(dir, &layer)).unwrap();

            // a block in the middle of "large", never read so far
            layer.flip(layer.params.data_len() / 2);
            judged(&look(dir, &layer)).unwrap();
            let mut large = File::open(layer.mount_point.join("large")).unwrap();
            assert!(
                large.read_to_end(&mut Vec::new()).is_err(),
                "the kernel served a changed block"
            );
            assert!(matches!(judged(&look(dir, &layer)), Err(Refusal::Corrupted { .. })));

            drop(large);
            sh(&format!("umount {mount_point}"));
            dm::remove(&name, Removal::Deferred).unwrap();
        });
    }

    /// The same device with one option more: a table that is not strict is seen as such.
    #[test]
    fn a_real_device_with_an_option_is_seen() {
        privately(|dir| {
            if !has_device_mapper() {
                return;
            }
            let layer = Layer::pack(dir, "a", "hello");
            let id = std::process::id();
            let (image, name) = (layer.image.display(), format!("hallmark-opt-{id}"));
            let blocks = layer.params.data_blocks.0;
            sh(&format!(
                "veritysetup open --no-superblock --ignore-corruption --data-blocks={blocks} \
                 --hash-offset={} --salt={} {image} {name} {image} {}; dmsetup mknodes || true; \
                 mount -t erofs -o ro /dev/mapper/{name} {}",
                layer.params.hash_start_block() * BLOCK as u64,
                layer.params.salt,
                layer.root_hash,
                layer.mount_point.display(),
            ));
            let found = look(dir, &layer);
            let Volume::DmVerity(volume) = &found.volume else { panic!() };
            assert_eq!(volume.target.options, ["ignore_corruption"]);
            assert!(matches!(judged(&found), Err(Refusal::DmOption { .. })));
            sh(&format!("umount {}; veritysetup close {name}", layer.mount_point.display()));
        });
    }
}
