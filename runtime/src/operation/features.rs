//! `features`: what this runtime can do, as the specification's `features.md` and `features-linux.md` have it.
//!
//! Callers switch things off that are not named here (containerd: id-mapped and recursively read-only mounts), so it
//! must be complete; and nothing is named that is refused elsewhere.

use serde_json::json;

use crate::spec::{Kind, OCI_VERSION, OPTION_NAMES, capability_names};

pub(crate) fn features() -> String {
    let mut namespaces: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    namespaces.sort_unstable();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
        ],
        "mountOptions": OPTION_NAMES(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": capability_names(),
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE",
                    "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
                "knownFlags": KNOWN_SECCOMP_FLAGS,
                "supportedFlags": KNOWN_SECCOMP_FLAGS,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": false},
            "memoryPolicy": {
                "modes": [
                    "MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED",
                    "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE",
                ],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": false},
        },
        "annotations": {"org.hallmark.runtime.version": env!("CARGO_PKG_VERSION")},
        "potentiallyUnsafeConfigAnnotations": ["bundle", "org.systemd.property."],
    });
    format!("{features:#}\n")
}

const KNOWN_SECCOMP_FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_oci_spec_reads_and_names_what_callers_ask_for() {
        let features: oci_spec::runtime::Features = serde_json::from_str(&features()).unwrap();
        assert_eq!(features.oci_version_max(), "1.3.0");
        let options = features.mount_options().as_ref().unwrap();
        for needed in ["rro", "idmap", "ridmap", "tmpcopyup", "rprivate"] {
            assert!(options.iter().any(|option| option == needed), "{needed}");
        }
        assert_eq!(features.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len(), 8);
    }
}
