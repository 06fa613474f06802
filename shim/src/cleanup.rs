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

use crate::args::Args;
use crate::bundle::{self, Bootstrap, ExitRecord};
use crate::console;
use crate::error::{Error, Result};
use crate::events::timestamp;
use crate::reaper::Exit;
use crate::runtime::{self, Runtime, SystemdCgroup};

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
    remove_dead_socket(&bundle);
    // a shim that crashed while making the container wrote this before anything else
    let systemd_cgroup = bundle::read_kept(&bundle).unwrap_or(SystemdCgroup::Off);
    let stateless = Runtime::new(runtime::BINARY.into(), &args.namespace, &bundle, systemd_cgroup);
    if stateless.state(&args.id).symlink_metadata().is_ok() {
        let runtime = Runtime::new(runtime::locate()?, &args.namespace, &bundle, systemd_cgroup);
        runtime.delete_by_force_and_wait(&args.id)?;
    }
    let record = ExitRecord::read(&bundle).unwrap_or_else(|_missing| {
        let pid = bundle::read_pid(&bundle.join("init.pid")).ok();
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

/// An orderly shim has removed its socket. One that is there is a pod's that still serves others, or a crashed shim's.
fn remove_dead_socket(bundle: &Path) {
    let Ok(bootstrap) = Bootstrap::read(bundle) else { return };
    let Some(socket) = bootstrap.address.strip_prefix("unix://").map(Path::new) else { return };
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
        _ => return,
    }
    let prefix = console::name_prefix(socket);
    let beside = socket.parent().and_then(|directory| directory.read_dir().ok());
    let terminals = beside.into_iter().flatten().flatten();
    let terminals =
        terminals.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    for dead in terminals.map(|entry| entry.path()).chain([socket.to_owned()]) {
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
        let address = format!(r#"{{"version":3,"address":"unix://{}"}}"#, file("aa").display());
        std::fs::write(file("bootstrap.json"), address).unwrap();
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
