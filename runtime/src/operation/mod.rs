//! The operations, one file each. Each takes what the command line said, parsed, and answers with an exit status.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod features;
mod foreground;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod pause;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod spec;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod update;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::cgroup::Driver;
use crate::error::{Context, Error, Result};
use crate::log::Log;
use crate::spec::Terminal;

/// What the global options say.
#[derive(Debug)]
pub(crate) struct Globals {
    /// `--root`.
    pub(crate) root: PathBuf,
    pub(crate) root_is: RootIs,
    pub(crate) driver: Driver,
    pub(crate) log: Log,
}

/// Whose choice the state directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RootIs {
    AskedFor,
    Default,
}

/// Connects to the socket of whoever waits for a terminal.
pub(crate) fn connect_console(path: &Path) -> Result<OwnedFd> {
    let what = || format!("console socket {}", path.display());
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .context(what)?;
    let address = SocketAddrUnix::new(path).context(what)?;
    rustix::net::connect(&socket, &address).context(what)?;
    Ok(socket)
}

/// Whether the runtime stays until the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Detached,
    Foreground,
}

/// A terminal needs somebody who holds its other end: the runtime while it stays, else whoever listens at a socket.
pub(crate) fn require_console(
    terminal: Terminal,
    presence: Presence,
    socket: Option<&Path>,
) -> Result<()> {
    let needs_socket = terminal != Terminal::No && presence == Presence::Detached;
    match (needs_socket, socket) {
        (true, None) => Err(Error::spec(
            "cannot allocate tty if runc will detach without setting console socket",
        )),
        (false, Some(_)) => {
            Err(Error::spec("cannot use console socket if runc will not detach or allocate tty"))
        }
        _ => Ok(()),
    }
}

/// Whether the `count` descriptors from 3 on that the program is to keep are there.
pub(crate) fn require_preserved(count: u32) -> Result<()> {
    for index in 0..count {
        let path = format!("/proc/self/fd/{}", index.saturating_add(3));
        rustix::fs::readlink(path.as_str(), Vec::new())
            .context(|| format!("unable to stat preserved-fd {index} (of {count})"))?;
    }
    Ok(())
}
