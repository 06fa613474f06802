//! Activation records: what our snapshotter says it created.
//!
//! `/run/hallmark/devices/<root hash>.<s or u>.json`, one a device:
//! ```json
//! {"schemaVersion":1,"rootHash":"<64 hex>","signed":true,"salt":"<hex>","dataBlocks":123,
//!  "name":"hallmark-…","dev":"254:3","uuid":"HALLMARK-…","lower":"/run/hallmark/l/a1","kind":"dm-verity"}
//! ```
//! A table of device-mapper says what a device is now, not what it was: pages cached before a
//! genuine table was loaded stay. The record closes that gap, and only that: it names the device
//! that our daemon created with verity as its first table. Everything else the kernel is asked.

use std::path::{Path, PathBuf};

use hallmark_verity::{DataBlocks, RootHash, Salt};
use serde::{Deserialize, Serialize};

use crate::strict_file::{self, Readers, StrictFileError};

/// The longest record that is read, in bytes.
const LIMIT: u64 = 64 << 10;

/// One activated layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ActivationRecord {
    /// Always 1.
    pub schema_version: u32,
    /// The root hash it was activated with.
    pub root_hash: RootHash,
    /// Whether the kernel was given a signature.
    pub signed: bool,
    /// The salt of the hash tree.
    pub salt: Salt,
    /// Blocks of 4096 bytes.
    pub data_blocks: DataBlocks,
    /// The device's name.
    pub name: String,
    /// `MAJOR:MINOR`.
    pub dev: String,
    /// The device-mapper uuid, with a random part; empty for a loop device.
    pub uuid: String,
    /// Where the layer is mounted.
    pub lower: PathBuf,
    /// What it is.
    pub kind: DeviceKind,
}

/// What an activated layer lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A dm-verity device.
    #[serde(rename = "dm-verity")]
    DmVerity,
    /// A loop device without verity.
    #[serde(rename = "loop")]
    Loop,
}

/// Whether our daemon says that it created a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// It says so.
    Found(Box<ActivationRecord>),
    /// There is no record.
    Missing,
    /// There is one that does not count, and why.
    Unusable(String),
}

impl ActivationRecord {
    /// The record's file name.
    pub fn file_name(root_hash: &RootHash, signed: Signed) -> String {
        format!("{root_hash}.{}.json", signed.letter())
    }
}

/// Which of the two devices of a root hash is meant: they never stand in for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// The one whose signature the kernel checked.
    Yes,
    /// The one without.
    No,
}

impl Signed {
    /// `s` or `u`.
    pub fn letter(self) -> char {
        match self {
            Self::Yes => 's',
            Self::No => 'u',
        }
    }
}

/// Reads the record of a device, if there is one that counts.
pub(super) fn read(devices: &Path, root_hash: &RootHash, signed: Signed) -> Record {
    let path = devices.join(ActivationRecord::file_name(root_hash, signed));
    let bytes = match strict_file::read(&path, LIMIT, Readers::Any) {
        Ok(bytes) => bytes,
        Err(StrictFileError::Missing { .. }) => return Record::Missing,
        Err(e) => return Record::Unusable(crate::chain(&e)),
    };
    match serde_json::from_slice::<ActivationRecord>(&bytes) {
        Ok(record) if record.schema_version == 1 => Record::Found(Box::new(record)),
        Ok(record) => {
            Record::Unusable(format!("{}: schemaVersion {}", path.display(), record.schema_version))
        }
        Err(e) => Record::Unusable(format!("{}: {e}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_record_of_root_counts() {
        if !crate::testing::is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root_hash = RootHash::from_bytes([7; 32]);
        assert_eq!(read(dir.path(), &root_hash, Signed::Yes), Record::Missing);
        let path = dir.path().join(format!("{root_hash}.s.json"));
        let text = format!(
            "{{\"schemaVersion\":1,\"rootHash\":\"{root_hash}\",\"signed\":true,\"salt\":\"aa\",\
             \"dataBlocks\":3,\"name\":\"n\",\"dev\":\"254:1\",\"uuid\":\"u\",\"lower\":\"/l\",\
             \"kind\":\"dm-verity\"}}"
        );
        std::fs::write(&path, &text).unwrap();
        let Record::Found(record) = read(dir.path(), &root_hash, Signed::Yes) else { panic!() };
        assert_eq!(record.dev, "254:1");
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(read(dir.path(), &root_hash, Signed::No), Record::Missing);
        for bad in [
            text.replace("\"schemaVersion\":1", "\"schemaVersion\":2"),
            text.replace("{\"schema", "{\"more\":1,\"schema"),
            text[..text.len() / 2].to_owned(),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(read(dir.path(), &root_hash, Signed::Yes), Record::Unusable(_)));
        }
        std::fs::write(&path, &text).unwrap();
        std::os::unix::fs::chown(&path, Some(1), None).unwrap();
        assert!(matches!(read(dir.path(), &root_hash, Signed::Yes), Record::Unusable(_)));
    }
}
