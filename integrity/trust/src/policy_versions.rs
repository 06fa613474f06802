//! The highest version of each signed policy file that this node has met.
//!
//! A signature does not grow old: whoever may replace the policy file could put back an earlier one that allowed more.
//! The kernel remembers the version of a policy that it has; where the policy is a file, we do:
//! `{"schemaVersion":1,"policies":{"NAME":"MAJOR.MINOR.REV"}}`, root's alone, in `policy-versions.json` of the
//! snapshotter's root. A node that lost the file begins anew; one that cannot read it trusts nothing.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::NodeConfig;
use crate::ipe::{Policy, Version};
use crate::strict_file::{self, Readers, StrictFileError};

/// Bytes of the largest file; a policy's name is short, and a signer of ours chose it.
const LIMIT: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    schema_version: u32,
    policies: BTreeMap<String, String>,
}

/// Why a policy does not count, or cannot be remembered.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The file is not root's alone, or could not be read.
    #[error("policy versions")]
    File(#[from] StrictFileError),
    /// It is none that we wrote.
    #[error("{path}: {found}, expected what hallmark wrote", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// A newer one was there before.
    #[error(
        "policy {name} is version {found}, expected {expected} or later: that one was here before"
    )]
    RolledBack {
        /// The policy's name.
        name: String,
        /// Its version.
        found: Version,
        /// The highest one seen.
        expected: Version,
    },
    /// It could not be written.
    #[error("{path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
}

/// Where a node remembers.
pub(crate) fn path(config: &NodeConfig) -> PathBuf {
    config.snapshotter.root.join("policy-versions.json")
}

/// Refuses a policy that is older than one of its name that was here.
///
/// # Errors
/// As [`VersionError`] says.
pub(crate) fn admit(path: &Path, policy: &Policy) -> Result<(), VersionError> {
    let name = policy.name.as_str();
    match read(path)?.get(name) {
        Some(highest) if policy.version < *highest => Err(VersionError::RolledBack {
            name: name.to_owned(),
            found: policy.version,
            expected: *highest,
        }),
        _ => Ok(()),
    }
}

/// Remembers a policy that was admitted. Repeating it writes nothing.
///
/// # Errors
/// As [`VersionError`] says.
pub(crate) fn remember(path: &Path, policy: &Policy) -> Result<(), VersionError> {
    let mut versions = read(path)?;
    let name = policy.name.as_str();
    if versions.get(name).is_some_and(|highest| policy.version <= *highest) {
        return Ok(());
    }
    versions.insert(name.to_owned(), policy.version);
    let stored = Stored {
        schema_version: 1,
        policies: versions.iter().map(|(name, at)| (name.clone(), at.to_string())).collect(),
    };
    let write = |source| VersionError::Write { path: path.to_owned(), source };
    let text = serde_json::to_vec(&stored).map_err(|error| write(error.into()))?;
    replace(path, &text).map_err(write)
}

fn read(path: &Path) -> Result<BTreeMap<String, Version>, VersionError> {
    let bytes = match strict_file::read(path, LIMIT, Readers::OwnerOnly) {
        Err(StrictFileError::Missing { .. }) => return Ok(BTreeMap::new()),
        read => read?,
    };
    let malformed = |found: String| VersionError::Malformed { path: path.to_owned(), found };
    let stored: Stored =
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    if stored.schema_version != 1 {
        return Err(malformed(format!("schemaVersion is {}", stored.schema_version)));
    }
    let version = |(name, text): (String, String)| match text.parse() {
        Ok(version) => Ok((name, version)),
        Err(_other) => Err(malformed(format!("version {text:?} of {name}"))),
    };
    stored.policies.into_iter().map(version).collect()
}

/// By another name, fsync and rename: it is whole whenever it is there. Two launches may both write; both are right.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let placed = written.and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        // the first failure is the one to tell
        drop(fs::remove_file(&new));
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, version: &str) -> Policy {
        let text = format!("policy_name={name} policy_version={version}\nDEFAULT action=DENY\n");
        Policy::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_older_version_does_not_count() {
        if !crate::testing::is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/policy-versions.json");
        admit(&path, &policy("node", "1.2.0")).unwrap();
        for version in ["1.2.0", "1.10.0", "1.3.0"] {
            remember(&path, &policy("node", version)).unwrap();
        }
        remember(&path, &policy("other", "0.0.1")).unwrap();
        admit(&path, &policy("node", "1.10.0")).unwrap();
        admit(&path, &policy("node", "2.0.0")).unwrap();
        admit(&path, &policy("other", "0.0.1")).unwrap();
        let error = admit(&path, &policy("node", "1.9.9")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "policy node is version 1.9.9, expected 1.10.0 or later: that one was here before"
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_we_did_not_write_admits_nothing() {
        if !crate::testing::is_root() {
            return;
        }
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy-versions.json");
        for text in [
            "",
            "{}",
            "{\"schemaVersion\":2,\"policies\":{}}",
            "{\"schemaVersion\":1,\"policies\":{\"node\":\"1.0\"}}",
            "{\"schemaVersion\":1,\"policies\":{},\"more\":1}",
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = admit(&path, &policy("node", "1.0.0")).unwrap_err();
            assert!(matches!(error, VersionError::Malformed { .. }), "{text}: {error}");
        }
        fs::write(&path, "{\"schemaVersion\":1,\"policies\":{}}").unwrap();
        admit(&path, &policy("node", "1.0.0")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(admit(&path, &policy("node", "1.0.0")), Err(VersionError::File(_))));
    }
}
