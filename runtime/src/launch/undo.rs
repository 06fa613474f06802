//! What a launch has made so far, and how it goes away again.

use rustix::process::{Signal, WaitOptions};

use crate::cgroup::{Cgroup, NewCgroup, Resources};
use crate::error::{Context, Error, Result};
use crate::state::{Directory, LiveProcess};

/// The directory, the control groups and the process of a container that is not whole yet. Dropped: all of it is
/// removed, last made first.
#[derive(Debug)]
pub(super) struct Undo {
    directory: Option<Directory>,
    cgroup: Option<NewCgroup>,
    process: Option<LiveProcess>,
}

impl Undo {
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory: Some(directory), cgroup: None, process: None }
    }

    pub(super) fn directory(&self) -> Result<&Directory> {
        self.directory.as_ref().ok_or_else(|| Error::system("state directory: given away"))
    }

    pub(super) fn cgroup(&mut self, cgroup: NewCgroup) {
        self.cgroup = Some(cgroup);
    }

    /// The first process is in the control groups.
    pub(super) fn settle_cgroup(&mut self, resources: &Resources) -> Result<()> {
        let cgroup = self.cgroup.as_mut().ok_or_else(|| Error::system("cgroup: not made"))?;
        Ok(cgroup.settle(resources)?)
    }

    /// Watches over `process`, which is returned a second time for use.
    pub(super) fn process(&mut self, process: LiveProcess) -> Result<LiveProcess> {
        let pid = process.pid;
        let pidfd = rustix::io::fcntl_dupfd_cloexec(&process.pidfd, 3).context(|| "dup")?;
        self.process = Some(process);
        Ok(LiveProcess { pid, pidfd })
    }

    /// The container is whole: nothing is undone any more.
    pub(super) fn commit(mut self) -> Result<(Directory, Cgroup)> {
        self.directory()?.unlock()?;
        let cgroup = self.cgroup.take().map(NewCgroup::commit);
        let cgroup = cgroup.ok_or_else(|| Error::system("cgroup: not made"))?;
        self.process = None;
        let directory = self.directory.take();
        Ok((directory.ok_or_else(|| Error::system("state directory: given away"))?, cgroup))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // each step is tried whatever the others answer; the error that led here is the one that is told
        if let Some(process) = self.process.take() {
            rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL).ok();
            rustix::io::retry_on_intr(|| {
                rustix::process::waitpid(Some(process.pid), WaitOptions::empty())
            })
            .ok();
        }
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.kill_all(Signal::KILL).ok();
        }
        if let Some(directory) = self.directory.take() {
            directory.remove().ok();
        }
    }
}
