//! The `start` action: find the pod's shim or start one, and say where it listens.
//!
//! The socket is bound and listening before the daemon is started and reaches it as descriptor 0, so that containerd may
//! connect at once. The daemon gets neither our standard output nor our standard error, which containerd reads to the end.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use sha2::{Digest as _, Sha256};

use crate::args::Args;
use crate::bootstrap::Params;
use crate::bundle::{Socket, Spec};
use crate::error::{Error, Result};
use crate::{options, runtime};

const OOM_SCORE_MAX: i32 = 1000;

/// Starts the daemon for the bundle in the working directory, or finds its pod's. Returns the socket.
///
/// # Errors
/// Bad options, no runtime, a socket that cannot be bound, a program that cannot be started.
pub(crate) fn launch(args: &Args, params: &Params) -> Result<PathBuf> {
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        return Err(Error::Unsupported { what: "core scheduling" });
    }
    let runtime = runtime::locate()?;
    let parsed = options::parse(options::find(&params.extensions), &runtime)?;
    let spec = Spec::read(Path::new("."))?;
    let group = spec.group().unwrap_or(&args.id);
    let name = socket_name(&params.address, &args.namespace, group);
    let socket = Path::new(&params.sockets).join(name);
    // before there is one: whoever is killed from here on has it removed
    Socket::new(socket.clone()).write(Path::new("."))?;
    // Only a pod's socket may be another shim's. That of a single container, if there, is dead.
    if spec.group().is_some() && UnixStream::connect(&socket).is_ok() {
        return Ok(socket);
    }
    let listener = bind(&socket)?;
    let started = serve(args, params, &socket, listener);
    let daemon = started.inspect_err(|_error| unlink(&socket))?;
    let confined = join_cgroup(&parsed.shim_cgroup, daemon);
    confined.inspect_err(|_error| {
        unlink(&socket);
        let pid = i32::try_from(daemon).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(Err(error)) =
            pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL))
        {
            log::warn!("kill {daemon}: {error}");
        }
    })?;
    raise_oom_score(daemon);
    Ok(socket)
}

/// The name containerd's own shims use: SHA-256 of `<containerd's socket>/<namespace>/<group>`.
fn socket_name(address: &str, namespace: &str, group: &str) -> String {
    let path = Path::new(address).join(namespace).join(group);
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Binds a socket for root alone, in place of a dead one.
fn bind(socket: &Path) -> Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(Error::io("make", directory))?;
    }
    unlink(socket);
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(before);
    listener.map_err(Error::io("bind", socket))
}

fn unlink(socket: &Path) {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("remove {}: {error}", socket.display());
        }
        _ => {}
    }
}

fn serve(args: &Args, params: &Params, socket: &Path, listener: UnixListener) -> Result<u32> {
    let program = std::env::current_exe().map_err(Error::io("read", "/proc/self/exe"))?;
    let mut command = Command::new(&program);
    command.arg("-namespace").arg(&args.namespace).arg("-id").arg(&args.id);
    command.arg("-address").arg(&params.address).arg("-socket").arg(socket);
    if params.debug {
        command.arg("-debug");
    }
    command.env("TTRPC_ADDRESS", &params.ttrpc_address);
    command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0);
    let child = command.spawn().map_err(Error::io("start", &program))?;
    Ok(child.id())
}

/// Puts the daemon into the cgroup that `ShimCgroup` names, on every hierarchy that has it.
fn join_cgroup(cgroup: &str, daemon: u32) -> Result<()> {
    let below = cgroup.trim_start_matches('/');
    if below.is_empty() {
        return Ok(());
    }
    let root = Path::new("/sys/fs/cgroup");
    let entries = root.read_dir().map_err(Error::io("list", root))?;
    let hierarchies = entries.flatten().map(|entry| entry.path()).chain([root.to_owned()]);
    let mut joined = false;
    for procs in hierarchies.map(|hierarchy| hierarchy.join(below).join("cgroup.procs")) {
        match std::fs::write(&procs, daemon.to_string()) {
            Ok(()) => joined = true,
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(Error::io("write", &procs)(error)),
        }
    }
    if joined {
        return Ok(());
    }
    let reason = "no such cgroup".to_owned();
    Err(Error::Invalid { what: "ShimCgroup", value: cgroup.to_owned(), reason })
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// One above containerd's, so that a shim goes before the daemon does. Raising needs no privilege; when containerd's is
/// lower than ours, getting there may be denied, and then the shim keeps what it has: nothing is weaker for it.
fn raise_oom_score(daemon: u32) {
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let read = std::fs::read_to_string(format!("/proc/{parent}/oom_score_adj")).ok();
    if let Some(score) = read.and_then(|text| text.trim().parse::<i32>().ok()) {
        let score = score.saturating_add(1).min(OOM_SCORE_MAX).to_string();
        if let Err(error) = std::fs::write(format!("/proc/{daemon}/oom_score_adj"), score) {
            log::warn!("oom_score_adj of {daemon}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    #[test]
    fn the_name_is_the_one_containerd_would_use() {
        // printf %s /run/containerd/containerd.sock/default/123 | sha256sum
        let expected = "0ddfbd72d02b3551e75f3a0ed90b9965b533401be618f43a568bc522764e0ad0";
        assert_eq!(socket_name("/run/containerd/containerd.sock", "default", "123"), expected);
    }

    #[test]
    fn a_dead_socket_makes_way() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s").join("name");
        for _ in 0..2 {
            let listener = bind(&socket).unwrap();
            let meta = socket.symlink_metadata().unwrap();
            assert!(meta.file_type().is_socket());
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
            assert!(UnixStream::connect(&socket).is_ok());
            drop(listener);
            assert!(UnixStream::connect(&socket).is_err());
        }
    }
}
