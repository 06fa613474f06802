//! What state.json holds.
//!
//! | key | value |
//! |---|---|
//! | `schemaVersion` | 1 |
//! | `ociVersion` | of the configuration |
//! | `id`, `bundle`, `rootfs` | text; the last two absolute |
//! | `pid`, `pidStartTime` | of the first process: number, and ticks since boot |
//! | `created` | RFC 3339 |
//! | `cgroupPaths` | controller → directory; cgroup2 has the key `""` |
//! | `cgroupDriver` | `cgroupfs` or `systemd` |
//! | `namespacePaths` | kind → `/proc/<pid>/ns/…`, of every namespace the container has for itself |
//! | `hardening` | what the gate added, for `exec`: `denyWriteExecute`, `droppedCapabilities` (names) |
//! | `verdict` | what the gate found |
//! | `resources` | the limits in force, when `update` has changed them |
//! | `annotations` | of the configuration |
//! | `config` | config.json as it was read |

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cgroup::{Driver, Resources};
use crate::error::{Context, Error, Result};

/// The version this runtime writes and reads.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// The content of a state file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) schema_version: u32,
    pub(crate) oci_version: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) pid: i32,
    pub(crate) pid_start_time: u64,
    pub(crate) created: String,
    pub(crate) cgroup_paths: BTreeMap<String, String>,
    pub(crate) cgroup_driver: Driver,
    pub(crate) namespace_paths: BTreeMap<String, String>,
    pub(crate) hardening: Hardening,
    pub(crate) verdict: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<Resources>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) config: Box<RawValue>,
}

/// What the gate adds to the configuration of every process of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "two switches, as the file has them")]
pub(crate) struct Hardening {
    /// `PR_SET_MDWE`
    pub(crate) deny_write_execute: bool,
    /// No PTRACE_POKETEXT and POKEDATA.
    #[serde(default)]
    pub(crate) deny_pokes: bool,
    pub(crate) dropped_capabilities: Vec<String>,
}

impl Record {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let record: Self = serde_json::from_str(text).context(|| "state.json")?;
        if record.schema_version != SCHEMA_VERSION {
            return Err(Error::system(format!(
                "state.json: found schemaVersion {}, expected {SCHEMA_VERSION}",
                record.schema_version
            )));
        }
        Ok(record)
    }

    pub(crate) fn text(&self) -> Result<String> {
        serde_json::to_string(self).context(|| "state.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_another_version_is_refused() {
        let record = Record {
            schema_version: 1,
            oci_version: "1.2.0".into(),
            id: "c".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            pid: 7,
            pid_start_time: 9,
            created: "2026-11-24T00:00:00Z".into(),
            cgroup_paths: BTreeMap::from([(String::new(), "/sys/fs/cgroup/c".into())]),
            cgroup_driver: Driver::Cgroupfs,
            namespace_paths: BTreeMap::new(),
            hardening: Hardening::default(),
            verdict: serde_json::json!({"outcome": "audit"}),
            resources: None,
            annotations: BTreeMap::new(),
            config: RawValue::from_string("{\"b\":1,  \"a\":2}".into()).unwrap(),
        };
        let text = record.text().unwrap();
        assert!(text.contains("{\"b\":1,  \"a\":2}"), "the configuration was rewritten: {text}");
        assert_eq!(Record::parse(&text).unwrap().text().unwrap(), text);
        let newer = text.replace("\"schemaVersion\":1", "\"schemaVersion\":2");
        assert!(Record::parse(&newer).unwrap_err().to_string().contains("found schemaVersion 2"));
    }
}
