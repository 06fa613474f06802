//! `pause` and `resume`: the freezer.

use super::Globals;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Container, ContainerId, Status};

pub(crate) fn pause(globals: &Globals, id: &ContainerId) -> Result<()> {
    match Container::load_locked(&globals.root, id)? {
        Container::Running(state) => Ok(state.held.cgroup()?.freeze()?),
        Container::Created(state) => Ok(state.held.cgroup()?.freeze()?),
        other => Err(wrong(other.status(), "pause", "running or created")),
    }
}

pub(crate) fn resume(globals: &Globals, id: &ContainerId) -> Result<()> {
    match Container::load_locked(&globals.root, id)? {
        Container::Paused(state) => Ok(state.held.cgroup()?.thaw()?),
        // a created container may be frozen as well, which its state does not show
        Container::Created(state) => Ok(state.held.cgroup()?.thaw()?),
        other => Err(wrong(other.status(), "resume", "paused")),
    }
}

fn wrong(found: Status, what: &str, expected: &str) -> Error {
    let problem = match found {
        Status::Stopped => "container not running".to_owned(),
        found => format!("cannot {what} a container that is {}, expected {expected}", found.name()),
    };
    Error::new(ErrorKind::State, problem)
}
