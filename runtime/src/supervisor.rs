//! The seccomp supervisor of a container: a program of the host that decides on calls with the action NOTIFY.
//!
//! It listens at `linux.seccomp.listenerPath` and gets, with one message, the container process state of the
//! specification (`config-linux.md`, Seccomp) and the listener's descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use rustix::process::{Pid, PidfdGetfdFlags};
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::handshake;
use crate::operation::connect_console;
use crate::spec::OCI_VERSION;
use crate::state::LiveProcess;

/// Where the listener of a process goes, and what is said with it.
#[derive(Debug)]
pub(crate) struct Supervisor {
    path: PathBuf,
    metadata: Option<String>,
    /// The container's state document.
    state: Value,
    pid: Pid,
    pidfd: OwnedFd,
}

impl Supervisor {
    /// `None` for a profile that asks nobody.
    ///
    /// # Errors
    /// If the process' descriptor cannot be duplicated.
    pub(crate) fn of(
        profile: Option<&LinuxSeccomp>,
        process: &LiveProcess,
        state: Value,
    ) -> Result<Option<Self>> {
        let Some(profile) = profile else { return Ok(None) };
        let Some(path) = path(profile) else { return Ok(None) };
        let pidfd = process.pidfd.try_clone().context(|| "pidfd")?;
        let metadata = profile.listener_metadata().clone();
        Ok(Some(Self { path, metadata, state, pid: process.pid, pidfd }))
    }

    /// Takes descriptor `number` from the process and gives it away.
    ///
    /// # Errors
    /// The kernel's; if nobody listens.
    pub(crate) fn hand_over(&self, number: i32) -> Result<()> {
        let listener = rustix::process::pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())
            .context(|| "pidfd_getfd")?;
        let socket = connect_console(&self.path)
            .context(|| "failed to connect with seccomp agent specified in the seccomp profile")?;
        let message = self.message().to_string();
        handshake::send_descriptor(socket.as_fd(), listener.as_fd(), message.as_bytes())
            .context(|| format!("cannot send seccomp fd to {}", self.path.display()))
    }

    fn message(&self) -> Value {
        let mut message = json!({
            "ociVersion": OCI_VERSION,
            "fds": ["seccompFd"],
            "pid": self.pid.as_raw_nonzero().get(),
            "state": self.state,
        });
        if let Some(metadata) = &self.metadata {
            message["metadata"] = metadata.as_str().into();
        }
        message
    }
}

/// `listenerPath`, unless it is empty.
fn path(profile: &LinuxSeccomp) -> Option<PathBuf> {
    profile.listener_path().clone().filter(|path| !path.as_os_str().is_empty())
}

/// Refuses a profile that asks a supervisor without saying where it listens.
///
/// # Errors
/// [`crate::ErrorKind::Spec`].
pub(crate) fn require_path(profile: &LinuxSeccomp) -> Result<()> {
    match path(profile) {
        Some(_) => Ok(()),
        None => Err(Error::spec("linux.seccomp: SCMP_ACT_NOTIFY without a listenerPath")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    use std::io::{IoSliceMut, Read, Seek, Write};

    fn profile(listener: &str) -> LinuxSeccomp {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"{listener}","listenerMetadata":"m"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn ourselves() -> LiveProcess {
        let pid = getpid();
        LiveProcess { pid, pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap() }
    }

    #[test]
    fn state_and_descriptor_arrive_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let agent = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let profile = profile(path.to_str().unwrap());
        let state = json!({"id": "c1"});
        let supervisor = Supervisor::of(Some(&profile), &ourselves(), state).unwrap().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"listener").unwrap();
        supervisor.hand_over(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
        let (socket, _) = agent.accept().unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut data = [0; 4096];
        let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut data)];
        let received = rustix::net::recvmsg(&socket, &mut parts, &mut control, flags).unwrap();
        let message: Value = serde_json::from_slice(&data[..received.bytes]).unwrap();
        assert_eq!(message["fds"], json!(["seccompFd"]));
        assert_eq!(message["metadata"], "m");
        assert_eq!(message["state"]["id"], "c1");
        let Some(rustix::net::RecvAncillaryMessage::ScmRights(mut fds)) = control.drain().next()
        else {
            panic!("no descriptor came")
        };
        let mut copy = std::fs::File::from(fds.next().unwrap());
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "listener");
    }

    #[test]
    fn nobody_there_is_an_error_that_says_so() {
        let supervisor =
            Supervisor::of(Some(&profile("/no/such")), &ourselves(), json!({})).unwrap().unwrap();
        let error = supervisor.hand_over(0).unwrap_err().to_string();
        assert!(error.starts_with("failed to connect with seccomp agent"), "{error}");
        assert!(Supervisor::of(Some(&profile("")), &ourselves(), json!({})).unwrap().is_none());
        assert!(require_path(&profile("")).is_err());
    }
}
