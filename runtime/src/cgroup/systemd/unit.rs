//! Which scope, in which slice, and where that is in the hierarchies.

use crate::cgroup::path::CgroupPath;
use crate::cgroup::{Error, Version};
use crate::dbus::Value;

/// The slice of a container that names none. Not runc's `system.slice`, which holds the node's own daemons: what is
/// denied above a container under enforce would hit them.
const SLICE: &str = "hallmark.slice";
const PREFIX: &str = "hallmark";
/// `UNIT_NAME_MAX` of systemd, with its end.
const MOST_BYTES: usize = 255;

/// A scope that is, or is to be, a container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    slice: String,
    unit: String,
    name: String,
    path: CgroupPath,
}

impl Scope {
    /// The scope of container `id`: `slice:prefix:name` if the spec has it, else `hallmark.slice:hallmark:<id>`.
    ///
    /// # Errors
    /// [`Error::Value`] for another form, in runc's words; for a slice or a unit whose name systemd does not take.
    pub(crate) fn parse(path: Option<&str>, id: &str) -> Result<Self, Error> {
        let (slice, prefix, name) = match path.filter(|path| !path.is_empty()) {
            None => ("", PREFIX, id),
            Some(path) => match path.split(':').collect::<Vec<_>>()[..] {
                [slice, prefix, name] => (slice, prefix, name),
                _ => {
                    return Err(Error::Value(format!(
                        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd \
                         cgroups, got {path:?} instead"
                    )));
                }
            },
        };
        let slice = if slice.is_empty() { SLICE } else { slice };
        let unit = format!("{prefix}-{name}.scope");
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_.\\@".contains(c);
        if name.is_empty() || unit.len() > MOST_BYTES || !unit.chars().all(valid) {
            return Err(Error::Value(format!("invalid scope name: {unit}")));
        }
        if name.ends_with(".slice") {
            return Err(Error::Value(format!("{name}: a container is a scope, not a slice")));
        }
        let mut names = expand(slice)?;
        names.push(unit.clone());
        let path = CgroupPath::parse(Some(&format!("/{}", names.join("/"))), id)?;
        Ok(Self { slice: slice.to_owned(), unit, name: name.to_owned(), path })
    }

    pub(crate) fn unit(&self) -> &str {
        &self.unit
    }

    pub(crate) fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// What the scope is made with. Accounting is always on, as with directories of our own.
    pub(super) fn properties(&self, version: Version, pid: u32) -> Vec<Value> {
        let io = match version {
            Version::V1 => "BlockIOAccounting",
            Version::V2 => "IOAccounting",
        };
        let description = format!("libcontainer container {}", self.name);
        let mut properties = vec![
            Value::property("Description", Value::Text(description)),
            Value::property("Slice", Value::text(self.slice.as_str())),
            Value::property("Delegate", Value::Bool(true)),
            Value::property("PIDs", Value::Array("u".to_owned(), vec![Value::Uint32(pid)])),
        ];
        for name in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
            properties.push(Value::property(name, Value::Bool(true)));
        }
        properties.push(Value::property("DefaultDependencies", Value::Bool(false)));
        properties
    }
}

/// The directories of a slice: `a-b.slice` is `a.slice/a-b.slice`, and `-.slice` the root.
fn expand(slice: &str) -> Result<Vec<String>, Error> {
    let invalid = || Error::Value(format!("invalid slice name: {slice}"));
    let name =
        slice.strip_suffix(".slice").filter(|name| !name.contains('/')).ok_or_else(invalid)?;
    if name == "-" {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(invalid());
        }
        names.push(format!("{prefix}{part}.slice"));
        prefix.push_str(part);
        prefix.push('-');
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: Option<&str>) -> Result<(String, String), String> {
        let scope = Scope::parse(path, "c1").map_err(|error| error.to_string())?;
        Ok((scope.path().to_string(), scope.unit().to_owned()))
    }

    #[test]
    fn slices_are_directories_of_their_parts() {
        for (path, directory) in [
            (None, "/hallmark.slice/hallmark-c1.scope"),
            (Some(""), "/hallmark.slice/hallmark-c1.scope"),
            (Some(":p:n"), "/hallmark.slice/p-n.scope"),
            (Some("system.slice:nerdctl:1234"), "/system.slice/nerdctl-1234.scope"),
            (
                Some("kubepods-burstable-podab.slice:cri-containerd:ff"),
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podab.slice/cri-containerd-ff.scope",
            ),
            (Some("-.slice:p:n"), "/p-n.scope"),
            (Some("a.slice::n"), "/a.slice/-n.scope"),
        ] {
            let (found, unit) = place(path).unwrap();
            assert_eq!(found, directory);
            assert!(directory.ends_with(&unit));
        }
    }

    #[test]
    fn what_is_no_scope_is_refused() {
        for (path, text) in [
            (
                "/a/b",
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"/a/b\"",
            ),
            ("a:b", "expected cgroupsPath"),
            ("a.slice:b:c:d", "expected cgroupsPath"),
            ("a:b:c", "invalid slice name: a"),
            (".slice:b:c", "invalid slice name"),
            ("a--b.slice:b:c", "invalid slice name"),
            ("-a.slice:b:c", "invalid slice name"),
            ("../a.slice:b:c", "invalid slice name"),
            ("a.slice:b:../c", "invalid scope name"),
            ("a.slice:b/..:c", "invalid scope name"),
            ("a.slice:b:", "invalid scope name"),
            ("a.slice:b:é", "invalid scope name"),
            ("a.slice:b:c.slice", "not a slice"),
        ] {
            let error = place(Some(path)).expect_err(path);
            assert!(error.contains(text), "{path}: {error}");
        }
        assert!(place(Some(&format!("a.slice:b:{}", "c".repeat(250)))).is_err());
    }
}
