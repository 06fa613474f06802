//! `delete`: removes what a container leaves.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use super::Globals;
use crate::cgroup::{Cgroup, CgroupPath};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::hooks;
use crate::spec::Plan;
use crate::state::{Container, ContainerId, Held, LiveProcess, RootDirectory, Status, document};

/// Whether a running container is killed first, and one that is not there is fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    No,
    Yes,
}

/// How long a killed process may take to be gone, in seconds.
const PATIENCE: i64 = 10;

pub(crate) fn delete(globals: &Globals, id: &ContainerId, force: Force) -> Result<()> {
    let container = match Container::load_locked(&globals.root, id) {
        Ok(container) => container,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            remove_incomplete(globals, id)?;
            return if force == Force::Yes { Ok(()) } else { Err(error) };
        }
        Err(error) => return Err(error),
    };
    match (container, force) {
        (Container::Stopped(stopped), Force::No) => destroy(globals, stopped.held),
        (Container::Created(created), _) => {
            end(&created.process)?;
            destroy(globals, created.held)
        }
        (running, Force::No) => Err(Error::new(
            ErrorKind::State,
            format!(
                "cannot delete container {id} that is not stopped: {}",
                running.status().name()
            ),
        )),
        (Container::Running(running), Force::Yes) => {
            end(&running.process)?;
            destroy(globals, running.held)
        }
        (Container::Paused(paused), Force::Yes) => {
            kill(&paused.process)?;
            paused.held.cgroup()?.thaw()?;
            gone(&paused.process)?;
            destroy(globals, paused.held)
        }
        (Container::Stopped(stopped), Force::Yes) => destroy(globals, stopped.held),
    }
}

/// A directory without a state file is what an interrupted `create` leaves, and perhaps control groups. One that still
/// goes on holds its lock.
fn remove_incomplete(globals: &Globals, id: &ContainerId) -> Result<()> {
    let Some(root) = RootDirectory::open(&globals.root)? else { return Ok(()) };
    let gone = |error: Error| match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    let directory = match root.container(id) {
        Ok(directory) => directory,
        Err(error) => return gone(error),
    };
    if let Err(error) = directory.lock() {
        return gone(error);
    }
    match directory.read_state() {
        Ok(_) => {
            return Err(Error::new(ErrorKind::State, format!("container {id} was being created")));
        }
        Err(error) => gone(error)?,
    }
    match directory.read_cgroups_path() {
        Ok(path) => {
            let path = CgroupPath::parse(Some(&path), id.as_str())?;
            // whoever lives in there is not ours: a process of ours has ended with its `create`
            if let Err(error) = Cgroup::existing(&path)?.delete() {
                globals.log.warning(&error.to_string());
            }
        }
        Err(error) => gone(error)?,
    }
    directory.remove()
}

fn end(process: &LiveProcess) -> Result<()> {
    kill(process)?;
    gone(process)
}

fn kill(process: &LiveProcess) -> Result<()> {
    match rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).context(|| "kill"),
    }
}

/// Waits until the process has ended; reaping it is its parent's affair.
fn gone(process: &LiveProcess) -> Result<()> {
    let mut polled = [PollFd::new(&process.pidfd, PollFlags::IN)];
    let patience = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&patience)));
    match ready.context(|| "poll")? {
        0 => Err(Error::new(ErrorKind::State, "container init still running")),
        _ => Ok(()),
    }
}

/// Ends leftover processes, removes control groups and state, then runs the poststop hooks.
///
/// # Errors
/// What cannot be removed. A failing hook is only logged: the container is gone, and nothing can be undone.
pub(super) fn destroy(globals: &Globals, held: Held) -> Result<()> {
    let cgroup = held.cgroup()?;
    if !cgroup.pids()?.is_empty() {
        cgroup.kill_all(Signal::KILL)?;
    }
    cgroup.delete()?;
    held.directory.remove()?;
    let config = held.record.config.get();
    // parsing again is worth it only if there is something to run
    if !config.contains("\"poststop\"") {
        return Ok(());
    }
    let plan = Plan::parse(config.as_bytes(), &held.record.bundle)?;
    let state = document(&held.record, Status::Stopped, 0);
    for hook in &plan.hooks.poststop {
        if let Err(error) = hooks::run(std::slice::from_ref(hook), "poststop", &state) {
            globals.log.warning(&error.to_string());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_created_is_not_taken_for_a_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let id = ContainerId::parse("c1").unwrap();
        let globals = Globals {
            root: dir.path().join("state"),
            root_is: crate::operation::RootIs::AskedFor,
            driver: crate::cgroup::Driver::Cgroupfs,
            log: crate::log::Log::default(),
        };
        let root = RootDirectory::open_or_make(&globals.root).unwrap();
        let creating = root.make(&id).unwrap();
        creating.lock().unwrap();
        std::thread::scope(|threads| {
            let removal = threads.spawn(|| remove_incomplete(&globals, &id));
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!removal.is_finished());
            creating.write_state("{}").unwrap();
            creating.unlock().unwrap();
            assert_eq!(removal.join().unwrap().unwrap_err().kind(), ErrorKind::State);
        });
        assert_eq!(creating.read_state().unwrap(), "{}");
        remove_incomplete(&globals, &ContainerId::parse("none").unwrap()).unwrap();
        root.make(&ContainerId::parse("c2").unwrap()).unwrap();
        remove_incomplete(&globals, &ContainerId::parse("c2").unwrap()).unwrap();
        assert_eq!(root.ids().unwrap(), [id]);
    }
}
