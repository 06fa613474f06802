//! One process of a container: the first one, or one added later.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix_libc_wrappers::process::SignalExt;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::io::{Addresses, ProcessIo};
use crate::reaper::Exit;
use crate::sync::lock;

/// Where a process is in its life. `Created` is a first process that waits for `Start`, or a process that was described by
/// `Exec` and not made yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Stopped,
    Deleted,
}

impl Phase {
    /// The word for messages.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }
}

/// A process and everything known of it. Its two asynchronous locks order requests, never data:
/// `verbs` is held by `Start` and `Delete` throughout; `starting` by `Start` alone, until its event is out, so that no exit
/// is told before it.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty for the container's first process.
    pub(crate) exec_id: String,
    pub(crate) addresses: Addresses,
    pub(crate) verbs: tokio::sync::Mutex<()>,
    pub(crate) starting: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    pid: Option<Pid>,
    /// The process itself, whoever has its number later.
    handle: Option<OwnedFd>,
    io: Option<ProcessIo>,
}

impl Process {
    pub(crate) fn new(exec_id: String, addresses: Addresses) -> Self {
        Self {
            exec_id,
            addresses,
            verbs: tokio::sync::Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            inner: Mutex::new(Inner { phase: Phase::Created, pid: None, handle: None, io: None }),
            exit: watch::Sender::new(None),
        }
    }

    /// The runtime made the process.
    pub(crate) fn made(&self, pid: Pid, io: ProcessIo) {
        let mut inner = lock(&self.inner);
        inner.pid = Some(pid);
        // one that has been collected already needs no handle
        inner.handle = pidfd_open(pid, PidfdFlags::empty()).ok();
        inner.io = Some(io);
    }

    /// Moves on, unless the process has gone further meanwhile.
    pub(crate) fn advance(&self, to: Phase) {
        let mut inner = lock(&self.inner);
        if inner.phase != Phase::Stopped || to == Phase::Deleted {
            inner.phase = to;
        }
    }

    /// The process is gone; whoever waits is woken.
    pub(crate) fn exited(&self, exit: Exit) {
        let mut inner = lock(&self.inner);
        inner.phase = Phase::Stopped;
        inner.handle = None;
        drop(inner);
        self.exit.send_replace(Some(exit));
    }

    pub(crate) fn phase(&self) -> Phase {
        lock(&self.inner).phase
    }

    /// The pid, 0 before there is one.
    pub(crate) fn pid(&self) -> u32 {
        let pid = lock(&self.inner).pid;
        pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the exit. The sender lives in `self`, so that there always comes one or none.
    pub(crate) async fn wait(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        let told = exit.wait_for(Option::is_some).await;
        told.ok().and_then(|exit| *exit)
    }

    pub(crate) fn close_stdin(&self) {
        if let Some(io) = &lock(&self.inner).io {
            io.close_stdin();
        }
    }

    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        lock(&self.inner).io.as_ref().map_or(Ok(()), |io| io.resize(width, height))
    }

    /// Takes the streams, to end them.
    pub(crate) fn take_io(&self) -> Option<ProcessIo> {
        lock(&self.inner).io.take()
    }

    /// Signals this very process.
    ///
    /// # Errors
    /// It is gone, was never made, or the number is no signal, or one that C libraries keep for themselves (32 to 34).
    pub(crate) fn signal(&self, signal: u32) -> Result<()> {
        let invalid = || Error::Invalid {
            what: "signal",
            value: signal.to_string(),
            reason: "expected 1 to 31, or 35 to 64".to_owned(),
        };
        let inner = lock(&self.inner);
        if inner.phase == Phase::Created {
            let subject = format!("process {}", self.exec_id);
            return Err(Error::State { subject, verb: "kill", state: inner.phase.word() });
        }
        let handle = inner.handle.as_ref().ok_or(Error::Finished)?;
        let raw = i32::try_from(signal).map_err(|_error| invalid())?;
        let signal = Signal::from_raw(raw).ok_or_else(invalid)?;
        match pidfd_send_signal(handle, signal) {
            Err(rustix::io::Errno::SRCH) => Err(Error::Finished),
            result => result.map_err(Error::io("signal", &self.exec_id)),
        }
    }
}
