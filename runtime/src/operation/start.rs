//! `start`: lets the program of a created container run.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Globals;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::handshake;
use crate::hooks;
use crate::spec::Plan;
use crate::state::{Container, ContainerId, Created, Held, LiveProcess, Running, Status, document};
use crate::supervisor::Supervisor;

pub(crate) fn start(globals: &Globals, id: &ContainerId) -> Result<()> {
    let refused = |what: &str| Err(Error::new(ErrorKind::State, what));
    match Container::load_locked(&globals.root, id)? {
        Container::Created(created) => created.start().map(drop::<Running>),
        Container::Running(_) => refused("cannot start an already running container"),
        Container::Paused(_) => refused("cannot start a container in the paused state"),
        Container::Stopped(_) => refused("cannot start a container that has stopped"),
    }
}

impl Created {
    /// Gives the word to start and waits until the program runs; then runs the poststart hooks.
    ///
    /// # Errors
    /// Why the program does not run; a failing poststart hook, after which the container is killed.
    pub(crate) fn start(self) -> Result<Running> {
        let what = || "start.sock";
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context(what)?;
        let address = SocketAddrUnix::new(self.held.directory.start_address()).context(what)?;
        rustix::net::connect(&socket, &address).context(what)?;
        let agent = self.agent()?;
        let socket = std::os::fd::AsFd::as_fd(&socket);
        if let Some(message) = handshake::receive_beside(socket, agent.as_ref())? {
            return Err(handshake::unexpected(Some(message), "exec"));
        }
        self.held.directory.remove_start()?;
        let Self { held, process } = self;
        poststart(&held, &process)?;
        Ok(Running { held, process })
    }

    /// What takes the seccomp listener that comes after the word to start.
    fn agent(&self) -> Result<Option<Supervisor>> {
        let record = &self.held.record;
        // parsing again is worth it only if there is something to find
        if !record.config.get().contains("\"listenerPath\"") {
            return Ok(None);
        }
        let plan = Plan::parse(record.config.get().as_bytes(), &record.bundle)?;
        let state = document(record, Status::Created, record.pid);
        Supervisor::of(plan.seccomp.as_ref(), &self.process, state)
    }
}

/// Runs the poststart hooks; a failure ends the container.
pub(super) fn poststart(held: &Held, process: &LiveProcess) -> Result<()> {
    let config = held.record.config.get();
    // parsing again is worth it only if there is something to run
    if !config.contains("\"poststart\"") {
        return Ok(());
    }
    let plan = Plan::parse(config.as_bytes(), &held.record.bundle)?;
    let state = document(&held.record, Status::Running, held.record.pid);
    let ran = hooks::run(&plan.hooks.poststart, "poststart", &state);
    if ran.is_err() {
        let killed =
            rustix::process::pidfd_send_signal(&process.pidfd, rustix::process::Signal::KILL);
        killed.context(|| "kill the container after a failed poststart hook")?;
    }
    ran
}
