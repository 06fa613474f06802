//! The command line of `hallmark-runtime`, and what its failures say.
//!
//! Each call is `hallmark-runtime --root ROOT --log LOG --log-format json [--systemd-cgroup] VERB …` in the bundle, runc's
//! command line word for word plus `create --rootfs-mounts FILE`. A failed call is reported by the last `level=error` line
//! that *this* call appended to the log; what earlier calls left there is not looked at.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

use crate::error::{Error, Result};
use crate::io::ChildStdio;
use crate::reaper::Reaper;

/// Name of the runtime's binary, the only one a container can be started with.
pub(crate) const BINARY: &str = "hallmark-runtime";

/// State of every namespace's containers is kept under `<STATE>/<namespace>`.
const STATE: &str = "/run/hallmark/runtime";

/// What is kept of a runtime's standard error.
const STDERR_LIMIT: usize = 16 << 10;

/// The runtime as one container of one namespace sees it.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    binary: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
    systemd_cgroup: SystemdCgroup,
}

/// Who makes cgroups: the runtime itself, or systemd at its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SystemdCgroup {
    Off,
    On,
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Init,
    All,
}

/// Arguments of `create` beyond the container's id.
#[derive(Debug)]
pub(crate) struct Create<'a> {
    pub(crate) pid_file: &'a Path,
    pub(crate) rootfs_mounts: Option<&'a Path>,
    /// `--no-pivot`, `--no-new-keyring`
    pub(crate) flags: [Option<&'static str>; 2],
}

/// Arguments of `exec` beyond the container's id.
#[derive(Debug)]
pub(crate) struct Exec<'a> {
    pub(crate) process: &'a Path,
    pub(crate) pid_file: &'a Path,
    pub(crate) log: &'a Path,
}

impl Runtime {
    pub(crate) fn new(
        binary: PathBuf,
        namespace: &str,
        bundle: &Path,
        systemd_cgroup: SystemdCgroup,
    ) -> Self {
        let root = Path::new(STATE).join(namespace);
        Self { binary, root, bundle: bundle.to_owned(), systemd_cgroup }
    }

    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Where the runtime keeps what it knows of container `id`; gone once the container is deleted.
    pub(crate) fn state(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    pub(crate) async fn create(
        &self,
        reaper: &Reaper,
        id: &str,
        create: &Create<'_>,
        stdio: ChildStdio,
    ) -> Result<()> {
        let log = self.log();
        let mut command = self.command(&log, "create");
        command.arg("--bundle").arg(&self.bundle).arg("--pid-file").arg(create.pid_file);
        if let Some(file) = create.rootfs_mounts {
            command.arg("--rootfs-mounts").arg(file);
        }
        command.args(create.flags.iter().flatten());
        stdio.give_to(&mut command);
        command.arg(id);
        run(reaper, "create", command, &log).await
    }

    pub(crate) async fn exec(
        &self,
        reaper: &Reaper,
        id: &str,
        exec: &Exec<'_>,
        stdio: ChildStdio,
    ) -> Result<()> {
        let mut command = self.command(exec.log, "exec");
        command.arg("--process").arg(exec.process).arg("--detach");
        command.arg("--pid-file").arg(exec.pid_file);
        stdio.give_to(&mut command);
        command.arg(id);
        run(reaper, "exec", command, exec.log).await
    }

    pub(crate) async fn start(&self, reaper: &Reaper, id: &str) -> Result<()> {
        self.verb(reaper, "start", &[id]).await
    }

    pub(crate) async fn pause(&self, reaper: &Reaper, id: &str) -> Result<()> {
        self.verb(reaper, "pause", &[id]).await
    }

    pub(crate) async fn resume(&self, reaper: &Reaper, id: &str) -> Result<()> {
        self.verb(reaper, "resume", &[id]).await
    }

    pub(crate) async fn kill(
        &self,
        reaper: &Reaper,
        id: &str,
        signal: u32,
        scope: Scope,
    ) -> Result<()> {
        let signal = signal.to_string();
        let result = match scope {
            Scope::Init => self.verb(reaper, "kill", &[id, &signal]).await,
            Scope::All => self.verb(reaper, "kill", &["--all", id, &signal]).await,
        };
        result.map_err(|error| if is_gone(&error) { Error::Finished } else { error })
    }

    /// Deletes the container; one that the runtime no longer knows is deleted already.
    pub(crate) async fn delete(&self, reaper: &Reaper, id: &str) -> Result<()> {
        self.verb(reaper, "delete", &[id]).await.or_else(unless_unknown)
    }

    /// Deletes the container and kills what lives in it.
    pub(crate) async fn delete_by_force(&self, reaper: &Reaper, id: &str) -> Result<()> {
        self.verb(reaper, "delete", &["--force", id]).await.or_else(unless_unknown)
    }

    /// The same for a program that has no reaper: the shim's `delete` action.
    pub(crate) fn delete_by_force_and_wait(&self, id: &str) -> Result<()> {
        let log = self.log();
        let from = length(&log);
        let mut command = self.command(&log, "delete");
        command.args(["--force", id]);
        let output = command.output().map_err(Error::io("start", &self.binary))?;
        if output.status.success() {
            return Ok(());
        }
        let status = output.status.code().and_then(|code| u32::try_from(code).ok()).unwrap_or(137);
        unless_unknown(failure("delete", status, &log, from, &output.stderr))
    }

    /// Changes the limits of container `id` to `resources`, the JSON of the runtime-spec's `LinuxResources`.
    pub(crate) async fn update(&self, reaper: &Reaper, id: &str, resources: Vec<u8>) -> Result<()> {
        let log = self.log();
        let mut command = self.command(&log, "update");
        command.args(["--resources=-", id]);
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("make pipe for", &self.binary))?;
        let mut writer = nonblocking_sender(write).map_err(Error::io("pipe to", &self.binary))?;
        command.stdin(read);
        // a runtime that goes away early shows in its exit status, not in this pipe
        tokio::spawn(async move { writer.write_all(&resources).await });
        run(reaper, "update", command, &log).await
    }

    async fn verb(&self, reaper: &Reaper, verb: &'static str, arguments: &[&str]) -> Result<()> {
        let log = self.log();
        let mut command = self.command(&log, verb);
        command.args(arguments);
        run(reaper, verb, command, &log).await
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("log.json")
    }

    fn command(&self, log: &Path, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.current_dir(&self.bundle).arg("--root").arg(&self.root);
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        if self.systemd_cgroup == SystemdCgroup::On {
            command.arg("--systemd-cgroup");
        }
        command.arg(verb).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // a signal meant for the shim's group is not meant for a container being made
        command.process_group(0);
        command
    }
}

/// Finds the runtime: beside the shim's own executable, else on `PATH`.
///
/// # Errors
/// Neither holds an executable file of that name.
pub(crate) fn locate() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::io("read", "/proc/self/exe"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories =
        own.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
    directories.map(|directory| directory.join(BINARY)).find(|file| is_executable(file)).ok_or_else(
        || Error::Invalid {
            what: "runtime",
            value: BINARY.to_owned(),
            reason: format!("not found beside {} nor on PATH", own.display()),
        },
    )
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What `hallmark-runtime features` prints.
///
/// # Errors
/// The runtime cannot be started or fails.
pub(crate) fn features(binary: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new(binary);
    let output = command.arg("features").output().map_err(Error::io("start", binary))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let status = output.status.code().and_then(|code| u32::try_from(code).ok()).unwrap_or(137);
    Err(Error::RuntimeSilent { verb: "features", status, detail: detail(&output.stderr) })
}

/// Starts the command and waits for it, with its standard error at hand unless the caller gave that away.
async fn run(reaper: &Reaper, verb: &'static str, mut command: Command, log: &Path) -> Result<()> {
    let from = length(log);
    let mut stderr = if matches!(verb, "create" | "exec") {
        None
    } else {
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("make pipe for", log))?;
        command.stderr(write);
        Some(nonblocking_receiver(read).map_err(Error::io("pipe from", command.get_program()))?)
    };
    let started = reaper.spawn(&mut command);
    let mut child = started.map_err(Error::io("start", command.get_program()))?;
    drop(command); // with our ends of the child's descriptors
    let mut text = Vec::new();
    let exit = match &mut stderr {
        None => child.wait().await,
        Some(stderr) => tokio::select! {
            biased;
            () = drain(stderr, &mut text) => child.wait().await,
            exit = child.wait() => exit,
        },
    };
    match exit.status {
        0 => Ok(()),
        status => Err(failure(verb, status, log, from, &text)),
    }
}

/// Reads to the end, keeps the first [`STDERR_LIMIT`] bytes.
async fn drain(from: &mut pipe::Receiver, into: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = STDERR_LIMIT.saturating_sub(into.len());
        into.extend_from_slice(buffer.get(..count.min(room)).unwrap_or_default());
    }
}

fn nonblocking_receiver(fd: std::os::fd::OwnedFd) -> std::io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(fd)
}

fn nonblocking_sender(fd: std::os::fd::OwnedFd) -> std::io::Result<pipe::Sender> {
    pipe::Sender::from_owned_fd(fd)
}

fn failure(verb: &'static str, status: u32, log: &Path, from: u64, stderr: &[u8]) -> Error {
    match appended(log, from).as_deref().and_then(last_error) {
        Some(message) => Error::Runtime { message },
        None => Error::RuntimeSilent { verb, status, detail: detail(stderr) },
    }
}

fn detail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

fn length(log: &Path) -> u64 {
    log.metadata().map(|meta| meta.len()).unwrap_or(0)
}

fn appended(log: &Path, from: u64) -> Option<Vec<u8>> {
    let mut file = std::fs::File::open(log).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(1 << 20).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The `msg` of the last line whose `level` is `error`. Lines that are no such JSON are passed over.
fn last_error(log: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let lines = log.split(|byte| *byte == b'\n').rev();
    let mut parsed = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    parsed.find(|line| line.level == "error").map(|line| line.msg.trim().to_owned())
}

/// The texts by which runc and its kin say that there is nobody to signal (go-runc's `checkKillError`).
fn is_gone(error: &Error) -> bool {
    let text = error.to_string().to_lowercase();
    ["process already finished", "container not running", "no such process", "does not exist"]
        .iter()
        .any(|words| text.contains(words))
}

fn unless_unknown(error: Error) -> Result<()> {
    if error.to_string().contains("does not exist") { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_line_speaks() {
        let log = br#"{"level":"warning","msg":"w","time":"2026-11-24T00:00:00Z"}
{"level":"error","msg":"first"}
not json
{"level":"error","msg":" hallmark: refused: container a \n"}
{"level":"debug","msg":"later"}
"#;
        assert_eq!(last_error(log).unwrap(), "hallmark: refused: container a");
        assert_eq!(last_error(b"{\"level\":\"ERROR\",\"msg\":\"x\"}\n"), None);
        assert_eq!(last_error(b""), None);
    }

    #[test]
    fn only_this_call_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log.json");
        std::fs::write(&log, "{\"level\":\"error\",\"msg\":\"old\"}\n").unwrap();
        let from = length(&log);
        let silent = failure("kill", 1, &log, from, b"oops\n");
        assert_eq!(silent.to_string(), "hallmark-runtime kill: exit status 1: oops");
        let missing = failure("kill", 1, Path::new("/does/not/exist"), 0, b"");
        assert_eq!(missing.to_string(), "hallmark-runtime kill: exit status 1");
    }

    #[test]
    fn runcs_words_for_nobody_there() {
        for message in ["container not running", "No such process", "container does not exist"] {
            assert!(is_gone(&Error::Runtime { message: message.to_owned() }), "{message}");
        }
        assert!(!is_gone(&Error::Runtime { message: "permission denied".to_owned() }));
    }
}
