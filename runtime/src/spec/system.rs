//! The rest of `linux`: sysctls, paths, propagation, personality, memory policy, and what is refused for want of support.

use hallmark_sys::mount::{Extent, Propagation};
use oci_spec::runtime as oci;
use serde_json::Value;

use super::namespace::{Kind, NamespacePlan};
use super::{clean, no_nul, non_empty};
use crate::error::{Error, Result};

/// A kernel setting of one of the container's namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sysctl {
    /// As config.json has it, for messages.
    pub(crate) name: String,
    /// Relative to /proc: `sys/net/ipv4/ip_forward`.
    pub(crate) file: String,
    pub(crate) value: String,
    /// Whose setting it is.
    pub(crate) namespace: Kind,
}

/// `linux.rootfsPropagation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootPropagation {
    pub(crate) kind: Propagation,
    pub(crate) extent: Extent,
}

impl RootPropagation {
    pub(super) fn parse(text: Option<&str>) -> Result<Option<Self>> {
        let (kind, extent) = match text {
            None | Some("") => return Ok(None),
            Some("private") => (Propagation::Private, Extent::Mount),
            Some("rprivate") => (Propagation::Private, Extent::Tree),
            Some("shared") => (Propagation::Shared, Extent::Mount),
            Some("rshared") => (Propagation::Shared, Extent::Tree),
            Some("slave") => (Propagation::Slave, Extent::Mount),
            Some("rslave") => (Propagation::Slave, Extent::Tree),
            Some("unbindable") => (Propagation::Unbindable, Extent::Mount),
            Some("runbindable") => (Propagation::Unbindable, Extent::Tree),
            Some(other) => {
                return Err(Error::spec(format!("rootfsPropagation={other} is not supported")));
            }
        };
        Ok(Some(Self { kind, extent }))
    }
}

/// `linux.memoryPolicy`, as set_mempolicy(2) takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    /// Mode and flags.
    pub(crate) mode: i32,
    /// Bit mask of nodes.
    pub(crate) nodes: Vec<u64>,
}

impl MemoryPolicy {
    pub(super) fn parse(policy: Option<&oci::LinuxMemoryPolicy>) -> Result<Option<Self>> {
        use oci::{MemoryPolicyFlagType as F, MemoryPolicyModeType as M};
        let Some(policy) = policy else { return Ok(None) };
        // numbers of <linux/mempolicy.h>
        let mut mode = match policy.mode() {
            M::MpolDefault => 0,
            M::MpolPreferred => 1,
            M::MpolBind => 2,
            M::MpolInterleave => 3,
            M::MpolLocal => 4,
            M::MpolPreferredMany => 5,
            M::MpolWeightedInterleave => 6,
        };
        for flag in policy.flags().as_deref().unwrap_or_default() {
            mode |= match flag {
                F::MpolFNumaBalancing => 1 << 13,
                F::MpolFRelativeNodes => 1 << 14,
                F::MpolFStaticNodes => 1 << 15,
            };
        }
        let nodes = match policy.nodes().as_deref().map(str::trim) {
            None | Some("") => Vec::new(),
            Some(list) => nodes(list)?,
        };
        let count: u32 = nodes.iter().map(|word| word.count_ones()).sum();
        if matches!(policy.mode(), M::MpolDefault | M::MpolLocal) && count > 0 {
            return Err(Error::spec(format!(
                "invalid memory policy: mode requires 0 nodes but got {count}"
            )));
        }
        Ok(Some(Self { mode, nodes }))
    }
}

/// Looks at the words of `linux.memoryPolicy` of a configuration that oci-spec has not read yet.
///
/// # Errors
/// The mode, if it is missing or unknown; the first unknown flag; in runc's words.
pub(super) fn memory_policy_known(config: &Value) -> Result<()> {
    let policy = config.get("linux").and_then(|linux| linux.get("memoryPolicy"));
    let Some(policy) = policy.filter(|policy| policy.is_object()) else { return Ok(()) };
    let mode = policy.get("mode").cloned().unwrap_or_default();
    if serde_json::from_value::<oci::MemoryPolicyModeType>(mode.clone()).is_err() {
        return Err(Error::spec(format!("invalid memory policy mode {mode}")));
    }
    for flag in policy.get("flags").and_then(Value::as_array).into_iter().flatten() {
        if serde_json::from_value::<oci::MemoryPolicyFlagType>(flag.clone()).is_err() {
            return Err(Error::spec(format!("invalid memory policy flag {flag}")));
        }
    }
    Ok(())
}

fn nodes(list: &str) -> Result<Vec<u64>> {
    let bad =
        || Error::spec(format!("invalid memory policy nodes {list:?}: expected a list like 0-1,3"));
    let mut mask = vec![0_u64; 16];
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|node| *node < 1024);
        let (first, last) = number(first).zip(number(last)).ok_or_else(bad)?;
        if first > last {
            return Err(bad());
        }
        for node in first..=last {
            if let Some(word) = mask.get_mut(node / 64) {
                *word |= 1 << (node % 64);
            }
        }
    }
    Ok(mask)
}

/// Only settings of a namespace that the container has for itself.
pub(super) fn sysctls(linux: &oci::Linux, namespaces: &NamespacePlan) -> Result<Vec<Sysctl>> {
    let mut list = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let what = format!("sysctl {name:?}");
        no_nul(value, &what)?;
        let file = sysctl_file(name).ok_or_else(|| Error::spec(format!("{what}: not a name")))?;
        let needed = match file.as_str() {
            "kernel/domainname" | "kernel/hostname" => Kind::Uts,
            "kernel/msgmax"
            | "kernel/msgmnb"
            | "kernel/msgmni"
            | "kernel/sem"
            | "kernel/shmall"
            | "kernel/shmmax"
            | "kernel/shmmni"
            | "kernel/shm_rmid_forced" => Kind::Ipc,
            file if file.starts_with("fs/mqueue/") => Kind::Ipc,
            file if file.starts_with("net/") => Kind::Network,
            file if file.starts_with("user/") => Kind::User,
            _ => return Err(Error::spec(format!("{what} is not in a separate kernel namespace"))),
        };
        if !namespaces.contains(needed) {
            return Err(Error::spec(format!(
                "{what} is not allowed in the hosts {} namespace",
                needed.name()
            )));
        }
        list.push(Sysctl {
            name: name.clone(),
            file: format!("sys/{file}"),
            value: value.clone(),
            namespace: needed,
        });
    }
    list.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(list)
}

/// `a.b/c.d` and `a/b.c/d` name the same file `a/b/c.d`... of which the first separator says which is which.
fn sysctl_file(name: &str) -> Option<String> {
    let slash_first = match (name.find('/'), name.find('.')) {
        (Some(slash), Some(dot)) => slash < dot,
        (slash, _) => slash.is_some(),
    };
    let file: String = if slash_first {
        name.to_owned()
    } else {
        name.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    };
    let good = file.split('/').all(|part| !matches!(part, "" | "." | "..")) && !file.contains('\0');
    good.then_some(file)
}

/// Absolute paths inside the root.
pub(super) fn paths(list: &Option<Vec<String>>, what: &str) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for path in list.iter().flatten() {
        no_nul(path, what)?;
        if !path.starts_with('/') {
            return Err(Error::spec(format!("linux.{what} {path:?}: not an absolute path")));
        }
        let path = clean(path);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

pub(super) fn cgroups_path(linux: &oci::Linux) -> Result<Option<String>> {
    let Some(path) = linux.cgroups_path() else { return Ok(None) };
    let path = path.to_str().map(str::to_owned);
    let path = path.ok_or_else(|| Error::spec("linux.cgroupsPath: not UTF-8"))?;
    no_nul(&path, "linux.cgroupsPath")?;
    Ok(non_empty(Some(&path)))
}

/// Numbers of <linux/personality.h>.
pub(super) fn personality(linux: &oci::Linux) -> Result<Option<u32>> {
    let Some(personality) = linux.personality() else { return Ok(None) };
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Error::spec("linux.personality.flags: none is supported"));
    }
    Ok(Some(match personality.domain() {
        oci::LinuxPersonalityDomain::PerLinux => 0,
        oci::LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

/// A field whose effect would be missing must not be passed over in silence.
pub(super) fn unsupported(linux: &oci::Linux) -> Result<()> {
    let names = [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        (
            "linux.netDevices",
            linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()),
        ),
    ];
    match names.iter().find(|(_, asked)| *asked) {
        Some((name, _)) => Err(Error::spec(format!("{name}: not supported"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::minimal;
    use serde_json::json;

    #[test]
    fn a_sysctl_needs_its_namespace() {
        let with = |sysctl: serde_json::Value, namespace: &str| {
            minimal(|c| {
                c["linux"]["sysctl"] = sysctl;
                c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": namespace}));
            })
        };
        let plan = with(json!({"net.ipv4.conf.eth0/1.forwarding": "1"}), "network").unwrap();
        assert_eq!(plan.sysctls[0].file, "sys/net/ipv4/conf/eth0.1/forwarding");
        assert!(with(json!({"kernel/shmmax": "1"}), "ipc").is_ok());
        for (sysctl, expected) in [
            (json!({"net.ipv4.ip_forward": "1"}), "hosts network namespace"),
            (json!({"kernel.panic": "1"}), "not in a separate kernel namespace"),
            (json!({"net/../kernel/panic": "1"}), "not a name"),
            (json!({"": "1"}), "not a name"),
        ] {
            let error = with(sysctl.clone(), "ipc").unwrap_err();
            assert!(error.to_string().contains(expected), "{sysctl}: {error}");
        }
    }

    #[test]
    fn what_is_not_done_is_not_accepted() {
        for (key, value) in [
            ("intelRdt", json!({"closID": "x"})),
            ("netDevices", json!({"eth0": {}})),
            ("personality", json!({"domain": "LINUX", "flags": ["X"]})),
            ("rootfsPropagation", json!("sideways")),
            ("maskedPaths", json!(["proc/kcore"])),
        ] {
            minimal(|c| c["linux"][key] = value.clone()).unwrap_err();
        }
    }

    #[test]
    fn a_memory_policy_is_refused_in_runcs_words() {
        for (policy, expected) in [
            (json!({}), "invalid memory policy mode null"),
            (json!({"mode": "BIND"}), "invalid memory policy mode \"BIND\""),
            (json!({"mode": "MPOL_BIND", "flags": ["x"]}), "invalid memory policy flag \"x\""),
            (json!({"mode": "MPOL_BIND", "nodes": "0-9876543210"}), "invalid memory policy nodes"),
            (json!({"mode": "MPOL_DEFAULT", "nodes": "0-7"}), "mode requires 0 nodes but got 8"),
        ] {
            let error = minimal(|c| c["linux"]["memoryPolicy"] = policy.clone()).unwrap_err();
            assert!(error.to_string().contains(expected), "{policy}: {error}");
        }
    }

    #[test]
    fn nodes_are_a_mask() {
        assert_eq!(nodes("0-1,64").unwrap()[..2], [3, 1]);
        for bad in ["", "x", "3-1", "5000"] {
            assert!(nodes(bad).is_err(), "{bad}");
        }
    }
}
