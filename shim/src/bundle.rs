//! The files of a bundle that the shim reads and writes.
//!
//! | file                   | who writes, who reads                                                          |
//! |------------------------|--------------------------------------------------------------------------------|
//! | `config.json`          | containerd; here only annotations and the pid namespace are looked at           |
//! | `hallmark-socket.json` | `start` for `delete`: `{"schemaVersion":1,"socket":"/run/containerd/s/…"}`      |
//! | `hallmark-rootfs.json` | the shim for the runtime: containerd's rootfs mounts (schema in `DESIGN.md`)   |
//! | `hallmark-shim.json`   | the shim for its own `delete`: `{"schemaVersion":1,"systemdCgroup":bool}`       |
//! | `hallmark-exit.json`   | the shim for its own `delete`: `{"schemaVersion":1,"pid","status","seconds","nanoseconds"}` |
//! | `init.pid`, `log.json` | the runtime                                                                    |
//! | `exec-ID.*`            | one process added later: `process.json`, `pid`, `log.json`                     |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::Mount;
use rustix::process::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::reaper::Exit;
use crate::runtime::SystemdCgroup;

pub(crate) const SCHEMA_VERSION: u32 = 1;

pub(crate) const KEPT: &str = "hallmark-shim.json";
pub(crate) const INIT_PID: &str = "init.pid";

/// The few things the shim wants of a container's configuration. Nothing here is checked: the runtime parses it whole.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Spec {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// Annotations that name a pod, the first found decides.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

impl Spec {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// It is missing or no JSON of that shape.
    pub(crate) fn read(bundle: &Path) -> Result<Self> {
        read(&bundle.join("config.json"))
    }

    /// The pod whose shim serves this container.
    pub(crate) fn group(&self) -> Option<&str> {
        GROUPS.iter().find_map(|name| self.annotations.get(*name)).map(String::as_str)
    }

    /// Whether the container's other processes outlive its first one: the kernel ends them only with a pid namespace.
    pub(crate) fn shares_pids(&self) -> bool {
        let namespaces = self.linux.iter().flat_map(|linux| &linux.namespaces);
        !namespaces
            .into_iter()
            .any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
    }
}

/// The socket on which the bundle's shim listens. containerd writes it down too, but only after `start` has answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Socket {
    schema_version: u32,
    pub(crate) socket: PathBuf,
}

impl Socket {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { schema_version: SCHEMA_VERSION, socket }
    }

    pub(crate) fn write(&self, bundle: &Path) -> Result<()> {
        write(&bundle.join("hallmark-socket.json"), self)
    }

    pub(crate) fn read(bundle: &Path) -> Result<Self> {
        read(&bundle.join("hallmark-socket.json"))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HandOver<'a> {
    schema_version: u32,
    mounts: Vec<HandedMount<'a>>,
}

#[derive(Serialize)]
struct HandedMount<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    source: &'a str,
    options: &'a [String],
}

/// Hands containerd's mounts to the runtime, untouched. `None` without mounts: the rootfs is the bundle's own.
///
/// # Errors
/// The file cannot be written, or a mount has a target, which the gate would not look at.
pub(crate) fn write_rootfs_mounts(bundle: &Path, mounts: &[Mount]) -> Result<Option<PathBuf>> {
    if mounts.is_empty() {
        return Ok(None);
    }
    if let Some(mount) = mounts.iter().find(|mount| !mount.target.is_empty()) {
        let reason = "a rootfs mount below the rootfs".to_owned();
        return Err(Error::Invalid { what: "mount target", value: mount.target.clone(), reason });
    }
    let mounts = mounts.iter().map(|mount| HandedMount {
        kind: &mount.type_,
        source: &mount.source,
        options: &mount.options,
    });
    let hand_over = HandOver { schema_version: SCHEMA_VERSION, mounts: mounts.collect() };
    let file = bundle.join("hallmark-rootfs.json");
    write(&file, &hand_over)?;
    Ok(Some(file))
}

/// What `delete` must know of the options the container was made with.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    schema_version: u32,
    systemd_cgroup: bool,
}

pub(crate) fn write_kept(bundle: &Path, systemd_cgroup: SystemdCgroup) -> Result<()> {
    let systemd_cgroup = systemd_cgroup == SystemdCgroup::On;
    write(&bundle.join(KEPT), &Kept { schema_version: SCHEMA_VERSION, systemd_cgroup })
}

/// Nothing came of the container: nothing is to be looked for.
pub(crate) fn forget(bundle: &Path) {
    remove(&bundle.join(KEPT));
}

pub(crate) fn read_kept(bundle: &Path) -> Result<SystemdCgroup> {
    let kept: Kept = read(&bundle.join(KEPT))?;
    Ok(if kept.systemd_cgroup { SystemdCgroup::On } else { SystemdCgroup::Off })
}

/// How the first process ended, for a `delete` after the shim is gone.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExitRecord {
    schema_version: u32,
    pub(crate) pid: u32,
    pub(crate) status: u32,
    seconds: u64,
    nanoseconds: u32,
}

impl ExitRecord {
    pub(crate) fn new(pid: u32, exit: Exit) -> Self {
        let since = exit.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            schema_version: SCHEMA_VERSION,
            pid,
            status: exit.status,
            seconds: since.as_secs(),
            nanoseconds: since.subsec_nanos(),
        }
    }

    pub(crate) fn at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            + Duration::from_secs(self.seconds)
            + Duration::from_nanos(self.nanoseconds.into())
    }

    pub(crate) fn write(&self, bundle: &Path) -> Result<()> {
        write(&bundle.join("hallmark-exit.json"), self)
    }

    pub(crate) fn read(bundle: &Path) -> Result<Self> {
        read(&bundle.join("hallmark-exit.json"))
    }
}

/// Reads a pid file of the runtime.
///
/// # Errors
/// It is missing or holds no positive number.
pub(crate) fn read_pid(file: &Path) -> Result<Pid> {
    let text = std::fs::read_to_string(file).map_err(Error::io("read", file))?;
    let pid = text.trim().parse().ok().filter(|pid: &i32| *pid > 0).and_then(Pid::from_raw);
    pid.ok_or_else(|| Error::Invalid {
        what: "pid file",
        value: file.display().to_string(),
        reason: format!("holds {text:?}"),
    })
}

/// The files of a process added to a container.
#[derive(Debug)]
pub(crate) struct ExecFiles {
    pub(crate) process: PathBuf,
    pub(crate) pid: PathBuf,
    pub(crate) log: PathBuf,
}

impl ExecFiles {
    /// # Errors
    /// The id cannot be part of a file name.
    pub(crate) fn new(bundle: &Path, id: &str) -> Result<Self> {
        let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if id.is_empty() || id.len() > 128 || !id.bytes().all(usable) {
            let reason = "not 1 to 128 letters, digits, '.', '_' or '-'".to_owned();
            return Err(Error::Invalid { what: "exec id", value: id.to_owned(), reason });
        }
        let file = |end: &str| bundle.join(format!("exec-{id}.{end}"));
        Ok(Self { process: file("process.json"), pid: file("pid"), log: file("log.json") })
    }

    /// Writes the process' description for the runtime.
    pub(crate) fn write_process(&self, process: &serde_json::Value) -> Result<()> {
        write(&self.process, process)
    }

    /// Removes what is there; what is not is fine.
    pub(crate) fn remove(&self) {
        for file in [&self.process, &self.pid, &self.log] {
            remove(file);
        }
    }
}

fn remove(file: &Path) {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("remove {}: {error}", file.display());
        }
        _ => {}
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let bytes = std::fs::read(file).map_err(Error::io("read", file))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::io("parse", file)(std::io::Error::from(error)))
}

/// A new file, mode 0600, in place of any old one, whole or not at all; never through a link.
fn write<T: Serialize>(file: &Path, value: &T) -> Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    remove(new);
    let bytes = serde_json::to_vec(value).map_err(Error::decode("encode JSON"))?;
    let mut options = File::options();
    let made = options.write(true).create_new(true).mode(0o600).open(new);
    made.and_then(|mut made| made.write_all(&bytes)).map_err(Error::io("write", new))?;
    std::fs::rename(new, file).map_err(Error::io("put in place", file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn mounts_are_handed_over_untouched() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(write_rootfs_mounts(bundle.path(), &[]).unwrap(), None);
        let options = ["workdir=/w", "upperdir=/u", "lowerdir=/l/a:/l/b", "index=off"];
        let mount = Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: options.map(str::to_owned).into(),
            ..Mount::default()
        };
        // an old file, and one that is a link, make way
        let target = bundle.path().join("elsewhere");
        std::fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, bundle.path().join("hallmark-rootfs.json")).unwrap();
        for _ in 0..2 {
            let file =
                write_rootfs_mounts(bundle.path(), std::slice::from_ref(&mount)).unwrap().unwrap();
            let meta = file.symlink_metadata().unwrap();
            assert!(meta.is_file());
            assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
            assert_eq!(
                std::fs::read_to_string(file).unwrap(),
                r#"{"schemaVersion":1,"mounts":[{"type":"overlay","source":"overlay","options":["workdir=/w","upperdir=/u","lowerdir=/l/a:/l/b","index=off"]}]}"#
            );
        }
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
        let below = Mount { target: "/usr".into(), ..mount };
        assert!(write_rootfs_mounts(bundle.path(), &[below]).is_err());
    }

    #[test]
    fn what_of_the_configuration_matters() {
        for (config, group, shares) in [
            (r#"{}"#, None, true),
            (r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#, None, false),
            (r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#, None, true),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s"},"linux":{}}"#, Some("s"), true),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"s","io.containerd.runc.v2.group":"g"}}"#,
                Some("g"),
                true,
            ),
        ] {
            let spec: Spec = serde_json::from_str(config).unwrap();
            assert_eq!((spec.group(), spec.shares_pids()), (group, shares), "{config}");
        }
    }

    #[test]
    fn an_exit_is_found_again() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(ExitRecord::read(bundle.path()).is_err());
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_795_564_800, 123_456_789);
        let record = ExitRecord::new(42, Exit { status: 137, at });
        record.write(bundle.path()).unwrap();
        let found = ExitRecord::read(bundle.path()).unwrap();
        assert_eq!((&found, found.at()), (&record, at));
    }

    #[test]
    fn pid_files_and_exec_ids() {
        let bundle = tempfile::tempdir().unwrap();
        let file = bundle.path().join("init.pid");
        for (content, pid) in
            [("42", Some(42)), ("42\n", Some(42)), ("", None), ("-1", None), ("0", None)]
        {
            std::fs::write(&file, content).unwrap();
            assert_eq!(read_pid(&file).ok(), pid.and_then(Pid::from_raw), "{content:?}");
        }
        for (id, good) in
            [("a1._-", true), ("", false), ("a/b", false), ("..", true), ("a b", false)]
        {
            assert_eq!(ExecFiles::new(bundle.path(), id).is_ok(), good, "{id:?}");
        }
        // no exec id reaches the first process' files
        assert_ne!(ExecFiles::new(bundle.path(), "init").unwrap().pid, file);
    }
}
