//! A process that does nothing but be there: it keeps a namespace or a control group alive until it is dropped.

use std::os::fd::OwnedFd;

use hallmark_sys::process::{Clone, Cloned, Namespaces, Parent, clone3, exit_immediately};
use hallmark_sys::procfs::Procfs;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::error::{Context, Result};

/// The process. Dropped: it is killed and reaped. It ends by itself if we do not live to do so.
#[derive(Debug)]
pub(crate) struct Idle {
    pid: Pid,
    pidfd: OwnedFd,
    /// Its end of the pipe reads end of file when ours goes, however we end.
    _hold: OwnedFd,
}

impl Idle {
    /// Starts one in new `namespaces`.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn start(namespaces: Namespaces) -> Result<Self> {
        let (waits, hold) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(|| "pipe")?;
        match clone3(&Clone { namespaces, cgroup: None, parent: Parent::Caller })? {
            Cloned::Child => {
                drop(hold);
                rustix::io::retry_on_intr(|| rustix::io::read(&waits, &mut [0; 1])).ok();
                exit_immediately(0)
            }
            Cloned::Parent { pid, pidfd } => Ok(Self { pid, pidfd, _hold: hold }),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // ours to reap, so it is there until then
        rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
        rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
        })
        .ok();
    }
}

/// A user namespace with these texts of uid_map and gid_map, and nobody in it. It lives as long as its descriptor.
///
/// # Errors
/// The kernel's.
pub(crate) fn user_namespace(procfs: &Procfs, (uid, gid): (&str, &str)) -> Result<OwnedFd> {
    let idle = Idle::start(Namespaces::NEWUSER)?;
    // of a process that cannot be another: it is not reaped yet
    let pid = idle.pid().as_raw_nonzero();
    procfs.write(&format!("{pid}/uid_map"), uid)?;
    procfs.write(&format!("{pid}/gid_map"), gid)?;
    Ok(procfs.open_link(&format!("{pid}/ns/user"))?)
}
