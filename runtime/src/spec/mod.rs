//! config.json, parsed whole into a [`Plan`] before anything is made.
//!
//! oci-spec knows the field names; a [`Plan`] holds what the kernel will be asked for, so that every error a
//! configuration can contain has been found when the first side effect happens. What runc only warns about (unknown
//! capabilities) is taken out of the JSON first, because oci-spec refuses the whole file for it.
//!
//! Source: runtime-spec 1.3; runc 1.5 `libcontainer/specconv` where the specification leaves a choice.

mod capability;
mod device;
mod document;
mod hook;
mod mount;
mod namespace;
mod process;
mod seccomp;
mod system;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cgroup::Resources;
use crate::error::{Context, Error, ErrorKind, Result};

use document::{Document, Process};

pub use capability::Capabilities;
pub(crate) use capability::{names as capability_names, parse as parse_capability};
pub(crate) use device::{Device, DeviceNode};
pub(crate) use hook::{Hook, Hooks};
pub(crate) use mount::{CopyUp, Covers, MountKind, MountPlan, OPTION_NAMES};
pub(crate) use namespace::{IdMaps, Joined, Kind, NamespacePlan};
pub(crate) use process::{ProcessPlan, Terminal, User};
pub(crate) use system::{MemoryPolicy, RootPropagation, Sysctl};

/// The newest runtime-spec this runtime implements, and the `ociVersion` of what it writes.
pub const OCI_VERSION: &str = "1.3.0";
/// Most bytes of a configuration file.
const MAX_BYTES: u64 = 16 << 20;

/// Everything a container is made of.
#[derive(Debug)]
pub struct Plan {
    /// The `ociVersion` that the configuration states.
    pub oci_version: String,
    /// The directory that holds config.json, absolute.
    pub bundle: PathBuf,
    /// `root.path`, absolute.
    pub(crate) rootfs: PathBuf,
    /// Whether the root is read-only.
    pub(crate) read_only_root: bool,
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) process: ProcessPlan,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) namespaces: NamespacePlan,
    pub(crate) sysctls: Vec<Sysctl>,
    pub(crate) devices: Vec<Device>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) read_only_paths: Vec<String>,
    pub(crate) root_propagation: Option<RootPropagation>,
    pub(crate) mount_label: Option<String>,
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) resources: Resources,
    pub(crate) cgroups_path: Option<String>,
    pub(crate) hooks: Hooks,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Bits for personality(2).
    pub(crate) personality: Option<u32>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
    /// What was ignored, for the log.
    pub warnings: Vec<String>,
    /// The configuration as it was read, for the state file.
    pub(crate) config: Box<RawValue>,
}

impl Plan {
    /// Reads and parses `bundle`/config.json.
    ///
    /// # Errors
    /// [`ErrorKind::Spec`] for anything in it that is wrong or not supported.
    pub fn load(bundle: &Path) -> Result<Self> {
        let bundle = absolute(bundle)?;
        let bytes = read(&bundle.join("config.json"))?;
        Self::parse(&bytes, &bundle)
    }

    /// Parses the bytes of a config.json that lies in `bundle` (absolute).
    ///
    /// # Errors
    /// [`ErrorKind::Spec`] for anything in it that is wrong or not supported.
    pub fn parse(bytes: &[u8], bundle: &Path) -> Result<Self> {
        let mut lenient: Value = json(bytes, "config.json")?;
        let config: Box<RawValue> = serde_json::from_slice(bytes)
            .map_err(|error| Error::spec(format!("config.json: {error}")))?;
        let mut warnings = Vec::new();
        let capabilities = match lenient.get_mut("process") {
            Some(process) => {
                process::lenient(process);
                capability::take(process, &mut warnings)?
            }
            None => None,
        };
        seccomp::known(&lenient)?;
        system::memory_policy_known(&lenient)?;
        let resources = take_resources(&mut lenient)?;
        let document: Document = serde_json::from_value(lenient)
            .map_err(|error| Error::spec(format!("config.json: {error}")))?;
        Self::from_document(document, Taken { capabilities, resources, warnings, config }, bundle)
    }

    /// Writes the hooks' environments into the configuration that the state file keeps.
    ///
    /// # Errors
    /// None for a plan that was parsed.
    pub(crate) fn save_hook_environments(&mut self) -> Result<()> {
        let mut config: Value = serde_json::from_str(self.config.get())?;
        for (name, hooks) in self.hooks.lists() {
            for (position, hook) in hooks.iter().enumerate() {
                let saved = config.pointer_mut(&format!("/hooks/{name}/{position}"));
                if let (Some(saved), Some(env)) = (saved, &hook.env) {
                    saved["env"] = env.clone().into();
                }
            }
        }
        self.config = serde_json::value::to_raw_value(&config)?;
        Ok(())
    }

    fn from_document(document: Document, taken: Taken, bundle: &Path) -> Result<Self> {
        version(&document.oci_version)?;
        let missing = |what: &'static str| move || Error::spec(what);
        let root = document.root.as_ref().ok_or_else(missing("root must be specified"))?;
        let process = document.process;
        let process = process.ok_or_else(missing("process property must not be empty"))?;
        let linux = document.linux.as_ref();
        let linux = linux.ok_or_else(missing("linux property must not be empty"))?;
        let namespaces = NamespacePlan::parse(linux)?;
        system::unsupported(linux)?;
        let rootfs = bundle.join(root.path());
        let places = mount::Places { bundle, root: &rootfs };
        let plan = Self {
            oci_version: document.oci_version,
            read_only_root: root.readonly().unwrap_or(false),
            mounts: mount::parse_all(document.mounts.as_deref().unwrap_or_default(), places)?,
            process: ProcessPlan::parse(process, taken.capabilities)?,
            hostname: namespace::host_name(&document.hostname, "hostname", &namespaces)?,
            domainname: namespace::host_name(&document.domainname, "domainname", &namespaces)?,
            sysctls: system::sysctls(linux, &namespaces)?,
            devices: device::parse_all(linux.devices().as_deref().unwrap_or_default())?,
            masked_paths: system::paths(linux.masked_paths(), "maskedPaths")?,
            read_only_paths: system::paths(linux.readonly_paths(), "readonlyPaths")?,
            root_propagation: RootPropagation::parse(linux.rootfs_propagation().as_deref())?,
            mount_label: non_empty(linux.mount_label().as_ref()),
            seccomp: linux.seccomp().clone(),
            resources: taken.resources,
            cgroups_path: system::cgroups_path(linux)?,
            hooks: Hooks::parse(document.hooks.as_ref())?,
            annotations: document.annotations.unwrap_or_default().into_iter().collect(),
            personality: system::personality(linux)?,
            memory_policy: MemoryPolicy::parse(linux.memory_policy().as_ref())?,
            warnings: taken.warnings,
            config: taken.config,
            bundle: bundle.to_path_buf(),
            namespaces,
            rootfs,
        };
        plan.namespaces.require_mount_namespace()?;
        Ok(plan)
    }
}

/// What is read from the JSON itself and not through oci-spec.
struct Taken {
    capabilities: Option<Capabilities>,
    resources: Resources,
    warnings: Vec<String>,
    config: Box<RawValue>,
}

/// Parses a process object, as `exec --process` takes it; what it leaves out is as in `container`.
///
/// # Errors
/// [`ErrorKind::Spec`] for anything in it that is wrong.
pub(crate) fn parse_process(
    mut value: Value,
    container: &ProcessPlan,
    warnings: &mut Vec<String>,
) -> Result<ProcessPlan> {
    process::lenient(&mut value);
    let capabilities = capability::take(&mut value, warnings)?.unwrap_or(container.capabilities);
    let process: Process =
        serde_json::from_value(value).map_err(|error| Error::spec(format!("process: {error}")))?;
    let mut plan = ProcessPlan::parse(process, Some(capabilities))?;
    if plan.rlimits.is_empty() {
        plan.rlimits.clone_from(&container.rlimits);
    }
    plan.apparmor_profile = plan.apparmor_profile.or_else(|| container.apparmor_profile.clone());
    plan.selinux_label = plan.selinux_label.or_else(|| container.selinux_label.clone());
    plan.oom_score_adj = plan.oom_score_adj.or(container.oom_score_adj);
    Ok(plan)
}

/// Reads a configuration file of at most 16 MiB.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let name = path.display();
    let file = std::fs::File::open(path).context(|| format!("open {name}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).context(|| format!("read {name}"))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
        return Err(Error::spec(format!("{name}: more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Parses JSON, naming the file on failure.
pub(crate) fn json(bytes: &[u8], name: &str) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| Error::spec(format!("{name}: {error}")))
}

fn take_resources(config: &mut Value) -> Result<Resources> {
    let linux = config.get_mut("linux").and_then(Value::as_object_mut);
    match linux.and_then(|linux| linux.remove("resources")) {
        None | Some(Value::Null) => Ok(Resources::default()),
        Some(value) => serde_json::from_value(value)
            .map_err(|error| Error::spec(format!("config.json: linux.resources: {error}"))),
    }
}

/// 1.0.0 up to the newest 1.x that exists; a newer minor version may hold what this runtime would ignore.
fn version(version: &str) -> Result<()> {
    let bad = || Error::spec(format!("ociVersion {version:?}: expected 1.0.0 to {OCI_VERSION}"));
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(1)), Some(Ok(_)), Some(Ok(_)), None) => Ok(()),
        _ => Err(bad()),
    }
}

/// An absolute path of a directory that is there.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).context(|| format!("bundle {}", path.display()))?;
    let is_dir =
        std::fs::metadata(&path).context(|| format!("bundle {}", path.display()))?.is_dir();
    if is_dir {
        // without a slash at its end
        Ok(path.components().collect())
    } else {
        Err(Error::spec(format!("bundle {}: not a directory", path.display())))
    }
}

/// `None` for the empty string, which Go's encoder writes for "not set".
pub(crate) fn non_empty(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

/// The path without `.`, `..` and double slashes, as if it were walked in a tree without links; absolute.
pub(crate) fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// Refuses what no C string and no path can hold.
pub(crate) fn no_nul(text: &str, what: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::new(ErrorKind::Spec, format!("{what}: contains a NUL byte")));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest configuration that is accepted, with `change` applied.
    pub(crate) fn minimal(change: impl FnOnce(&mut Value)) -> Result<Plan> {
        let mut config = serde_json::json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        change(&mut config);
        Plan::parse(config.to_string().as_bytes(), Path::new("/bundle"))
    }

    #[test]
    fn the_smallest_configuration_is_a_plan() {
        let plan = minimal(|_| {}).unwrap();
        assert_eq!(plan.rootfs, Path::new("/bundle/rootfs"));
        assert_eq!(plan.process.args, ["sh"]);
        assert!(plan.warnings.is_empty());
    }

    #[test]
    fn what_is_missing_is_named() {
        for (key, expected) in [
            ("root", "root must be specified"),
            ("process", "process property must not be empty"),
            ("linux", "linux property must not be empty"),
            ("ociVersion", "ociVersion"),
        ] {
            let error = minimal(|config| {
                config.as_object_mut().unwrap().remove(key);
            })
            .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Spec, "{key}: {error}");
            assert!(error.to_string().contains(expected), "{key}: {error}");
        }
    }

    #[test]
    fn unknown_capabilities_are_a_warning() {
        let plan = minimal(|config| {
            config["process"]["capabilities"] =
                serde_json::json!({"bounding": ["CAP_KILL", "CAP_NEW_IN_2040"]});
        })
        .unwrap();
        assert_eq!(plan.warnings.len(), 1);
        assert!(plan.warnings[0].contains("CAP_NEW_IN_2040"), "{:?}", plan.warnings);
    }

    #[test]
    fn versions_from_1_0_are_taken() {
        for (text, good) in [
            ("1.0.0", true),
            ("1.0.2-dev", true),
            ("1.3.0", true),
            ("0.9.0", false),
            ("2.0.0", false),
            ("1", false),
        ] {
            assert_eq!(version(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_if_walked() {
        for (path, expected) in
            [("/a/../b//c/.", "/b/c"), ("../../x", "/x"), ("", "/"), ("/proc/", "/proc")]
        {
            assert_eq!(clean(path), expected, "{path}");
        }
    }

    #[test]
    fn noise_is_refused_without_a_panic() {
        for bytes in [
            &b""[..],
            b"[]",
            b"null",
            b"{\"linux\":3}",
            b"{\"process\":[]}",
            b"\xff\xfe",
            b"{\"process\":{\"capabilities\":7}}",
        ] {
            assert!(Plan::parse(bytes, Path::new("/b")).is_err(), "{bytes:?}");
        }
    }
}
