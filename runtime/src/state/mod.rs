//! A container's state: one type for each state of the specification, so that what a state forbids does not exist.
//!
//! ```text
//! create ─► Created ──start──► Running ⇄ Paused
//!              │                  │         │
//!              └──── its first process ends ┴──► Stopped ──delete──► (gone)
//! ```
//!
//! Nothing writes the state down: it follows from the first process (number and start time), from `start.sock` and
//! from the freezer, so it cannot lag behind.

mod directory;
mod id;
mod process;
mod record;
#[cfg(fuzzing)]
pub(crate) use process::parse as process_stat;

use std::path::Path;

use serde_json::{Value, json};

use crate::cgroup::{Cgroup, FreezerState};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::spec::OCI_VERSION;

pub(crate) use directory::{Directory, RootDirectory, not_found};
pub use id::ContainerId;
pub(crate) use process::{LiveProcess, stat};
pub(crate) use record::{Hardening, Record, SCHEMA_VERSION};

/// A container that exists, in the state it was in when it was looked at.
#[derive(Debug)]
pub(crate) enum Container {
    Created(Created),
    Running(Running),
    Paused(Paused),
    Stopped(Stopped),
}

/// Everything is set up; the program waits for `start`.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) held: Held,
    pub(crate) process: LiveProcess,
}

/// The program runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) held: Held,
    pub(crate) process: LiveProcess,
}

/// The program is frozen.
#[derive(Debug)]
pub(crate) struct Paused {
    pub(crate) held: Held,
    pub(crate) process: LiveProcess,
}

/// The first process is gone.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) held: Held,
}

/// What every state has: the directory and what state.json says.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) directory: Directory,
    pub(crate) record: Record,
}

impl Held {
    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        Ok(Cgroup::from_paths(&self.record.cgroup_paths, self.record.cgroup_driver)?)
    }
}

impl Container {
    /// Finds a container below `root`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none.
    pub(crate) fn load(root: &Path, id: &ContainerId) -> Result<Self> {
        let root = RootDirectory::open(root)?.ok_or_else(not_found)?;
        Self::of(root.container(id)?)
    }

    /// The same, waiting until nobody else changes it and keeping others waiting.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none.
    pub(crate) fn load_locked(root: &Path, id: &ContainerId) -> Result<Self> {
        let root = RootDirectory::open(root)?.ok_or_else(not_found)?;
        let directory = root.container(id)?;
        directory.lock()?;
        Self::of(directory)
    }

    pub(crate) fn of(directory: Directory) -> Result<Self> {
        let record =
            Record::parse(&directory.read_state()?).context(|| directory.id().to_string())?;
        let process = LiveProcess::find(record.pid, record.pid_start_time)?;
        let waits = directory.awaits_start()?;
        let held = Held { directory, record };
        let Some(process) = process else { return Ok(Self::Stopped(Stopped { held })) };
        if waits {
            return Ok(Self::Created(Created { held, process }));
        }
        match held.cgroup()?.freezer_state()? {
            FreezerState::Frozen => Ok(Self::Paused(Paused { held, process })),
            _ => Ok(Self::Running(Running { held, process })),
        }
    }

    pub(crate) fn held(&self) -> &Held {
        match self {
            Self::Created(state) => &state.held,
            Self::Running(state) => &state.held,
            Self::Paused(state) => &state.held,
            Self::Stopped(state) => &state.held,
        }
    }

    /// The first process, unless it is gone.
    pub(crate) fn process(&self) -> Option<&LiveProcess> {
        match self {
            Self::Created(state) => Some(&state.process),
            Self::Running(state) => Some(&state.process),
            Self::Paused(state) => Some(&state.process),
            Self::Stopped(_) => None,
        }
    }

    /// The specification's word for the state.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Created(_) => Status::Created,
            Self::Running(_) => Status::Running,
            Self::Paused(_) => Status::Paused,
            Self::Stopped(_) => Status::Stopped,
        }
    }
}

/// The specification's words, and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The state as hooks and callers get it (runtime-spec `runtime.md`, State). A stopped container has pid 0.
pub(crate) fn document(record: &Record, status: Status, pid: i32) -> Value {
    let mut state = json!({
        "ociVersion": OCI_VERSION,
        "id": record.id,
        "status": status.name(),
        "pid": pid,
        "bundle": record.bundle,
    });
    if !record.annotations.is_empty() {
        state["annotations"] = json!(record.annotations);
    }
    state
}

/// runc's words, which containerd takes for "it is over".
pub(crate) fn not_running() -> Error {
    Error::new(ErrorKind::NotRunning, "container not running")
}
