//! Children: started here, collected here, nowhere else.
//!
//! The shim is a subreaper, so a container's first process becomes its child when the runtime that made it exits. One
//! loop collects every child on SIGCHLD. Three kinds of exit meet there:
//! - a child that [`Reaper::spawn`] started: the table knows its pid before anybody can collect it, for both happen
//!   under the table's lock;
//! - a process that the runtime made and whose pid was learned from a pid file ([`Expectation::adopt`]): it may have
//!   exited before the file was read, so while an [`Expectation`] is held, exits of unknown pids are kept;
//! - a stranger (an orphan of a container in the host's pid namespace): collected and forgotten.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use rustix::process::{pidfd_open, pidfd_send_signal};
use tokio::signal::unix::Signal as Signals;
use tokio::sync::oneshot;

use crate::sync::lock;

/// How and when a process ended. `status` as a shell tells it: the exit code, or 128 + the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

/// A process whose exit will be told once.
#[derive(Debug)]
pub(crate) struct Child {
    exited: oneshot::Receiver<Exit>,
}

impl Child {
    /// Waits for the exit. A reaper that is gone counts as SIGKILL: nobody will ever know better.
    pub(crate) async fn wait(&mut self) -> Exit {
        let lost = Exit { status: 128 + 9, at: SystemTime::now() };
        (&mut self.exited).await.unwrap_or(lost)
    }
}

/// A child that was started here. It is killed when nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Spawned {
    child: Child,
    /// A number would be another process' once the child was collected.
    handle: OwnedFd,
    ended: bool,
}

impl Spawned {
    /// Waits for the exit.
    pub(crate) async fn wait(&mut self) -> Exit {
        let exit = self.child.wait().await;
        self.ended = true;
        exit
    }

    /// Signals it; one that has ended is not there to hear.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.handle, signal) {
            log::debug!("{signal:?}: {error}");
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(Signal::KILL);
        }
    }
}

/// The table of children, shared by everyone who starts one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    awaited: HashMap<Pid, oneshot::Sender<Exit>>,
    expectations: usize,
    early: HashMap<Pid, Exit>,
}

impl Reaper {
    /// Starts `command`. The caller closes its own copies of whatever was given to the child.
    ///
    /// # Errors
    /// What `Command::spawn` says: the program is missing or may not be executed. No descriptors left.
    pub(crate) fn spawn(&self, command: &mut Command) -> std::io::Result<Spawned> {
        let mut table = lock(&self.0);
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Ok(Spawned { child: table.await_exit(pid), handle, ended: false }),
            Err(error) => {
                child.kill()?;
                Err(error.into())
            }
        }
    }

    /// Whether an exit of this pid is kept for whoever expects one.
    pub(crate) fn is_gone(&self, pid: Pid) -> bool {
        lock(&self.0).early.contains_key(&pid)
    }

    /// Keeps the exits of unknown pids until the returned value is dropped.
    pub(crate) fn expect(&self) -> Expectation {
        lock(&self.0).expectations += 1;
        Expectation(self.clone())
    }

    /// Collects children for as long as the program runs.
    pub(crate) async fn run(self, mut sigchld: Signals) {
        while sigchld.recv().await.is_some() {
            self.collect();
        }
    }

    fn collect(&self) {
        let mut table = lock(&self.0);
        // ECHILD ends the loop as much as "none has exited" does
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(status) = shell_status(status) {
                table.exited(pid, Exit { status, at: SystemTime::now() });
            }
        }
    }
}

impl Table {
    fn await_exit(&mut self, pid: Pid) -> Child {
        let (sender, exited) = oneshot::channel();
        self.awaited.insert(pid, sender);
        Child { exited }
    }

    fn exited(&mut self, pid: Pid, exit: Exit) {
        let unheard = match self.awaited.remove(&pid) {
            Some(sender) => sender.send(exit).is_err(),
            None => true,
        };
        if unheard && self.expectations > 0 {
            self.early.insert(pid, exit);
        }
    }
}

/// Held while a pid is about to become known; see the module's description.
#[derive(Debug)]
pub(crate) struct Expectation(Reaper);

impl Expectation {
    /// The process `pid`, made by the runtime, alive or not.
    pub(crate) fn adopt(&self, pid: Pid) -> Child {
        let mut table = lock(&self.0.0);
        let child = table.await_exit(pid);
        if let Some(exit) = table.early.remove(&pid) {
            table.exited(pid, exit);
        }
        child
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut table = lock(&self.0.0);
        table.expectations -= 1;
        if table.expectations == 0 {
            table.early.clear();
        }
    }
}

/// `None` for a process that only stopped or continued.
fn shell_status(status: WaitStatus) -> Option<u32> {
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    u32::try_from(status.exit_status().or(signal)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::signal::unix::{SignalKind, signal};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    // One test: the process has one SIGCHLD and one `waitpid(-1)`, and the harness runs tests as threads.
    #[tokio::test]
    async fn every_kind_of_exit_is_told_once() {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let reaper = Reaper::default();
        let sigchld = signal(SignalKind::child()).unwrap();
        tokio::spawn(reaper.clone().run(sigchld));

        for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            let mut child = reaper.spawn(&mut shell(script)).unwrap();
            assert_eq!(child.wait().await.status, status, "{script}");
        }
        assert!(reaper.spawn(&mut Command::new("/does/not/exist")).is_err());

        // nobody waits for it any more
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("echo $$ > {0}; exec sleep 1000", file.path().display());
        let abandoned = reaper.spawn(&mut shell(&script)).unwrap();
        let pid = loop {
            let text = std::fs::read_to_string(file.path()).unwrap();
            if let Ok(pid) = text.trim().parse().map(Pid::from_raw) {
                break pid.unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        drop(abandoned);
        while rustix::process::test_kill_process(pid).is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }

        // an orphan that is gone before its pid is known, but not before its parent is, which would collect it
        let expectation = reaper.expect();
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sh -c 'sleep 0.1; exit 5' & echo $! > {}", file.path().display());
        reaper.spawn(&mut shell(&script)).unwrap().wait().await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let pid = std::fs::read_to_string(file.path()).unwrap().trim().parse().unwrap();
        let mut orphan = expectation.adopt(Pid::from_raw(pid).unwrap());
        assert_eq!(orphan.wait().await.status, 5);
        drop(expectation);
        let table = lock(&reaper.0);
        assert!(table.early.is_empty() && table.awaited.is_empty());
    }

    #[test]
    fn strangers_are_forgotten() {
        let mut table = Table::default();
        let exit = Exit { status: 0, at: SystemTime::UNIX_EPOCH };
        table.exited(Pid::from_raw(4_000_000).unwrap(), exit);
        assert!(table.early.is_empty());
    }
}
