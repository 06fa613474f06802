//! The `delete` action: containerd runs it after every shim's end, orderly or not.
//!
//! Every millisecond here is one of `ctr run --rm`, so that for a container that was deleted already it looks at three files
//! and answers. After a crash it removes what the shim would have: the container by `hallmark-runtime delete --force`, the
//! socket nobody listens on, sockets for terminals. The bundle is containerd's to remove.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::MessageField;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::args::Args;
use crate::bundle::{self, ExitRecord, Socket};
use crate::console;
use crate::error::{Error, Result};
use crate::events::timestamp;
use crate::reaper::Exit;
use crate::runtime::{self, Runtime, SystemdCgroup};

/// What a killed runtime gets to be gone.
const CREATION_END: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

const KILLED: u32 = 128 + 9;

/// Removes what is left of container `args.id` and tells how its first process ended.
///
/// # Errors
/// The runtime is missing or cannot delete the container.
pub(crate) fn clean_up(args: &Args) -> Result<DeleteResponse> {
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(Error::io("find", "working directory"))?,
    };
    // a shim that crashed while making the container wrote this before anything else
    let systemd_cgroup = bundle::read_kept(&bundle).unwrap_or(SystemdCgroup::Off);
    let stateless = Runtime::new(runtime::BINARY.into(), &args.namespace, &bundle, systemd_cgroup);
    stop_creation(&bundle);
    if stateless.state(&args.id).symlink_metadata().is_ok() {
        let runtime = Runtime::new(runtime::locate()?, &args.namespace, &bundle, systemd_cgroup);
        runtime.delete_by_force_and_wait(&args.id)?;
    }
    // last, for a shim that was killed this moment may not have closed its socket at once
    remove_dead_socket(&bundle);
    let record = ExitRecord::read(&bundle).unwrap_or_else(|_missing| {
        let pid = bundle::read_pid(&bundle.join(bundle::INIT_PID)).ok();
        let pid = pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        ExitRecord::new(pid, Exit { status: KILLED, at: SystemTime::now() })
    });
    Ok(DeleteResponse {
        pid: record.pid,
        exit_status: record.status,
        exited_at: MessageField::some(timestamp(record.at())),
        ..DeleteResponse::default()
    })
}

/// Ends a `hallmark-runtime create` that outlived its shim, before its container's state is looked for. Only where the shim
/// had begun and no container came of it: elsewhere the processes of the machine are not looked through.
fn stop_creation(bundle: &Path) {
    let there = |name: &str| bundle.join(name).symlink_metadata().is_ok();
    if !there(bundle::KEPT) || there(bundle::INIT_PID) {
        return;
    }
    let processes = Path::new("/proc").read_dir().into_iter().flatten().flatten();
    for process in processes {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // the handle first: what is signalled is what was looked at
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if makes_container(&command, bundle) && pidfd_send_signal(&handle, Signal::KILL).is_ok() {
            let mut ended = [PollFd::new(&handle, PollFlags::IN)];
            if !matches!(poll(&mut ended, Some(&CREATION_END)), Ok(1)) {
                log::warn!("process {pid:?} does not end");
            }
        }
    }
}

/// Whether a command line, its words ended by zeros, is the runtime's `create` for `bundle`.
fn makes_container(command: &[u8], bundle: &Path) -> bool {
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    let program = words.iter().any(|word| word.ends_with(runtime::BINARY.as_bytes()));
    let bundle = [b"--bundle", bundle.as_os_str().as_encoded_bytes()];
    program && words.contains(&b"create".as_slice()) && words.windows(2).any(|pair| pair == bundle)
}

/// An orderly shim has removed its socket. One that is there is a pod's that still serves others, or a crashed shim's.
fn remove_dead_socket(bundle: &Path) {
    let Ok(Socket { socket, .. }) = Socket::read(bundle) else { return };
    match UnixStream::connect(&socket) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
        _ => return,
    }
    let prefix = console::name_prefix(&socket);
    let beside = socket.parent().and_then(|directory| directory.read_dir().ok());
    let terminals = beside.into_iter().flatten().flatten();
    let terminals =
        terminals.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    for dead in terminals.map(|entry| entry.path()).chain([socket.clone()]) {
        if let Err(error) = std::fs::remove_file(&dead) {
            log::warn!("remove {}: {error}", dead.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_dead_sockets_go() {
        let bundle = tempfile::tempdir().unwrap();
        let file = |name: &str| bundle.path().join(name);
        Socket::new(file("aa")).write(bundle.path()).unwrap();
        let listener = UnixListener::bind(file("aa")).unwrap();
        drop(UnixListener::bind(file("aa-pty0")).unwrap());
        drop(UnixListener::bind(file("ab-pty0")).unwrap());
        let there = |name: &str| file(name).symlink_metadata().is_ok();
        remove_dead_socket(bundle.path());
        assert!(there("aa") && there("aa-pty0"));
        drop(listener);
        remove_dead_socket(bundle.path());
        assert!(!there("aa") && !there("aa-pty0") && there("ab-pty0"));
        remove_dead_socket(bundle.path());
    }

    #[test]
    fn a_creation_is_told_by_its_command_line() {
        let line = |words: &str| words.replace(' ', "\0").into_bytes();
        let bundle = Path::new("/b/c");
        for (words, expected) in [
            ("/usr/bin/hallmark-runtime --root /r create --bundle /b/c --pid-file p c", true),
            ("hallmark-runtime --root /r create --bundle /b/c2 c2", false),
            ("hallmark-runtime --root /r start c", false),
            ("vi create --bundle /b/c", false),
        ] {
            assert_eq!(makes_container(&line(words), bundle), expected, "{words}");
        }
    }

    #[test]
    fn a_container_without_a_trace_was_killed() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("init.pid"), "42").unwrap();
        let args = Args {
            namespace: "hallmark-test".into(),
            id: format!("none-{}", std::process::id()),
            bundle: Some(bundle.path().into()),
            ..Args::default()
        };
        let response = clean_up(&args).unwrap();
        assert_eq!((response.pid, response.exit_status), (42, 137));
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(5);
        ExitRecord::new(42, Exit { status: 3, at }).write(bundle.path()).unwrap();
        let response = clean_up(&args).unwrap();
        assert_eq!((response.exit_status, response.exited_at.seconds), (3, 5));
    }
}
