//! The five capability sets, read before oci-spec sees the file: an unknown name is a warning, as in runc.

use rustix::thread::CapabilitySet;
use serde_json::Value;

use crate::error::{Error, Result};

/// `process.capabilities`. What is absent is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The most a program can ever gain.
    pub bounding: CapabilitySet,
    /// In force.
    pub effective: CapabilitySet,
    /// Kept over exec if the file agrees.
    pub inheritable: CapabilitySet,
    /// The most that can be in force.
    pub permitted: CapabilitySet,
    /// Kept over exec.
    pub ambient: CapabilitySet,
}

impl Capabilities {
    /// No capability at all: what a process without `capabilities` gets, as in runc.
    #[must_use]
    pub fn none() -> Self {
        let none = CapabilitySet::empty();
        Self { bounding: none, effective: none, inheritable: none, permitted: none, ambient: none }
    }

    /// Adds `names` as `runc exec --cap` does: never inheritable (CVE-2022-29162), ambient only if the configuration
    /// has inheritable ones.
    ///
    /// # Errors
    /// An unknown name: this one was typed by a person.
    pub(crate) fn add(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            let found =
                parse(name).ok_or_else(|| Error::spec(format!("unknown capability {name:?}")))?;
            self.bounding |= found;
            self.effective |= found;
            self.permitted |= found;
            if !self.inheritable.is_empty() {
                self.ambient |= found;
            }
        }
        Ok(())
    }

    /// Without `dropped`, in all five sets.
    pub(crate) fn remove(&mut self, dropped: CapabilitySet) {
        for set in [
            &mut self.bounding,
            &mut self.effective,
            &mut self.inheritable,
            &mut self.permitted,
            &mut self.ambient,
        ] {
            set.remove(dropped);
        }
    }
}

/// One capability by its name, with or without `CAP_`, in any case.
pub(crate) fn parse(name: &str) -> Option<CapabilitySet> {
    let upper = name.to_ascii_uppercase();
    CapabilitySet::from_name(upper.strip_prefix("CAP_").unwrap_or(&upper))
}

/// Every capability this runtime knows, as `CAP_…`.
pub(crate) fn names() -> Vec<String> {
    CapabilitySet::all().iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

/// Takes `capabilities` out of a process object.
///
/// # Errors
/// If it is no object of lists of strings.
pub(crate) fn take(
    process: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<Option<Capabilities>> {
    let Some(process) = process.as_object_mut() else { return Ok(None) };
    let value = match process.remove("capabilities") {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let Some(sets) = value.as_object() else {
        return Err(Error::spec("process.capabilities: not an object"));
    };
    let mut unknown: Vec<String> = Vec::new();
    let mut set = |key: &str| -> Result<CapabilitySet> {
        let mut found = CapabilitySet::empty();
        let bad = || Error::spec(format!("process.capabilities.{key}: not a list of names"));
        let names = match sets.get(key) {
            None | Some(Value::Null) => return Ok(found),
            Some(value) => value.as_array().ok_or_else(bad)?,
        };
        for name in names {
            let name = name.as_str().ok_or_else(bad)?;
            match parse(name) {
                Some(capability) => found |= capability,
                None if unknown.iter().any(|seen| seen == name) => {}
                None => unknown.push(name.to_owned()),
            }
        }
        Ok(found)
    };
    let capabilities = Capabilities {
        bounding: set("bounding")?,
        effective: set("effective")?,
        inheritable: set("inheritable")?,
        permitted: set("permitted")?,
        ambient: set("ambient")?,
    };
    if !unknown.is_empty() {
        warnings.push(format!("ignoring unknown or unavailable capabilities: {unknown:?}"));
    }
    // the kernel refuses to raise them, and the rest of the launch goes on without, as in runc
    let base = capabilities.inheritable & capabilities.permitted;
    for (name, _) in capabilities.ambient.difference(base).iter_names() {
        warnings
            .push(format!("can't raise ambient capability CAP_{name}: operation not permitted"));
    }
    Ok(Some(capabilities))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_kubernetes_writes_them() {
        for name in ["CAP_CHOWN", "chown", "cap_chown"] {
            assert_eq!(parse(name), Some(CapabilitySet::CHOWN), "{name}");
        }
        assert_eq!(parse("CAP_"), None);
        assert!(names().contains(&"CAP_CHECKPOINT_RESTORE".to_owned()));
        assert_eq!(names().len(), 41);
    }

    #[test]
    fn what_is_dropped_is_in_no_set() {
        let mut process = serde_json::json!({"capabilities": {
            "bounding": ["CAP_MAC_ADMIN", "CAP_KILL"], "ambient": ["CAP_MAC_ADMIN"]}});
        let mut found = take(&mut process, &mut Vec::new()).unwrap().unwrap();
        assert!(process.get("capabilities").is_none());
        found.remove(CapabilitySet::MAC_ADMIN);
        assert_eq!(found, Capabilities { bounding: CapabilitySet::KILL, ..Capabilities::none() });
    }

    #[test]
    fn an_added_capability_is_never_inheritable() {
        let mut none = Capabilities::none();
        none.add(&["CAP_KILL".to_owned()]).unwrap();
        assert!(none.inheritable.is_empty() && none.ambient.is_empty());
        assert_eq!(none.permitted, CapabilitySet::KILL);
        assert!(none.add(&["CAP_NONSENSE".to_owned()]).is_err());
    }
}
