//! `run`: `create`, `start`, and unless detached, waiting and `delete`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::create::{self, Options};
use super::foreground::{self, Master};
use super::{Globals, Presence, delete, require_console, require_preserved, start};
use crate::error::{Context, Result};
use crate::handshake;
use crate::launch::{self, Launched, Start};
use crate::spec::Terminal;
use crate::state::Held;

/// Whether the container stays after its program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Afterwards {
    Delete,
    Keep,
}

/// Returns the exit status of the program, or 0 if it goes on without us.
pub(crate) fn run(
    globals: &Globals,
    options: Options,
    presence: Presence,
    after: Afterwards,
) -> Result<u8> {
    require_preserved(options.preserved)?;
    let mut plan = create::load(globals, &options)?;
    let terminal = plan.process.terminal;
    require_console(terminal, presence, options.console_socket.as_deref())?;
    let mut request = create::request(globals, options, Start::Now)?;
    let mut ours = None;
    if presence == Presence::Foreground && terminal != Terminal::No {
        let (near, far) = console_pair()?;
        request.console = Some(far);
        ours = Some(near);
    }
    let launched = launch::launch(request, &mut plan, &globals.log)?;
    let master = match receive_master(ours) {
        Ok(master) => master,
        Err(error) => return Err(abandon(launched, error)),
    };
    if let Err(error) = launched.go() {
        return Err(abandon(launched, error));
    }
    globals.log.debug("init: closing the pipe to signal completion: the program runs");
    let Launched { directory, record, process, cgroup, .. } = launched;
    drop(cgroup);
    let held = Held { directory, record };
    let started = start::poststart(&held, &process);
    if presence == Presence::Detached && started.is_ok() {
        return Ok(0);
    }
    let status = started.and_then(|()| foreground::wait(&process, master));
    if after == Afterwards::Delete || status.is_err() {
        delete::destroy(globals, held)?;
    }
    status
}

/// A program that never ran leaves nothing behind; the first error is the one to tell.
fn abandon(launched: Launched, error: crate::Error) -> crate::Error {
    launched.cgroup.kill_all(rustix::process::Signal::KILL).ok();
    foreground::reap(&launched.process).ok();
    launched.cgroup.delete().ok();
    launched.directory.remove().ok();
    error
}

/// Two ends of a console socket within this process and its child.
pub(super) fn console_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .context(|| "socketpair")
}

pub(super) fn receive_master(ours: Option<OwnedFd>) -> Result<Option<Master>> {
    let receive =
        |near: OwnedFd| Master(handshake::receive_descriptor(near.as_fd())?).with_plain_lines();
    ours.map(receive).transpose()
}
