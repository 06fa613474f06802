//! `spec`: an example configuration.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::spec::OCI_VERSION;

/// Whether the example has a user namespace, for callers without root's rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Root,
    Rootless,
}

/// Writes `bundle`/config.json, which must not be there yet.
pub(crate) fn spec(bundle: &Path, owner: Owner) -> Result<()> {
    let path = bundle.join("config.json");
    let what = || path.display().to_string();
    let mut options = std::fs::OpenOptions::new();
    let mut file = match options.write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::spec(format!("file {} exists. Remove it first", what())));
        }
        Err(error) => return Err(error).context(what),
    };
    let mut text = format!("{:#}", example());
    if owner == Owner::Rootless {
        text = format!("{:#}", rootless(example()));
    }
    text.push('\n');
    file.write_all(text.as_bytes()).context(what)
}

fn example() -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "hallmark",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces(&["pid", "network", "ipc", "uts", "mount"]),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Without cgroup v2 a namespace of one's own hides less, and runc's example has none either.
fn namespaces(kinds: &[&str]) -> Value {
    /// `CGROUP2_SUPER_MAGIC` of <linux/magic.h>.
    const CGROUP2: u64 = 0x6367_7270;
    let unified = rustix::fs::statfs("/sys/fs/cgroup")
        .is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(CGROUP2));
    let own = unified.then_some("cgroup");
    kinds.iter().copied().chain(own).map(|kind| json!({"type": kind})).collect()
}

fn mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ])
}

/// As runc's: no network namespace, the caller as root, no limits, a bind of the host's /sys.
fn rootless(mut example: Value) -> Value {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let linux = &mut example["linux"];
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    linux["namespaces"] = namespaces(&["pid", "ipc", "uts", "mount", "user"]);
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    if let Some(mounts) = example["mounts"].as_array_mut() {
        mounts.retain(|mount| {
            !matches!(mount["destination"].as_str(), Some("/sys" | "/sys/fs/cgroup"))
        });
        for mount in mounts.iter_mut() {
            if let Some(options) = mount["options"].as_array_mut() {
                options
                    .retain(|option| option.as_str().is_none_or(|text| !text.starts_with("gid=")));
            }
        }
        mounts.push(json!({"destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}));
    }
    example
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Plan;

    #[test]
    fn both_examples_are_plans() {
        let dir = tempfile::tempdir().unwrap();
        spec(dir.path(), Owner::Root).unwrap();
        Plan::load(dir.path()).unwrap();
        let error = spec(dir.path(), Owner::Rootless).unwrap_err();
        assert!(error.to_string().contains("exists. Remove it first"), "{error}");
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        spec(dir.path(), Owner::Rootless).unwrap();
        Plan::load(dir.path()).unwrap();
    }
}
