//! What systemd wants of a service: a socket it may have opened for us, and word when we are ready.
//!
//! Source: sd_listen_fds(3), sd_notify(3): both are environment variables and one datagram, no library.

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use anyhow::{Context as _, Result, bail};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The first descriptor that systemd passes.
const FIRST: i32 = 3;

/// The listening socket that systemd opened, if it did.
pub(crate) fn socket() -> Result<Option<UnixListener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    if number("LISTEN_PID") != Some(getpid().as_raw_nonzero().get()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => {
            // A copy of our own descriptor 3, by the one call that takes a number from outside.
            let ourselves = pidfd_open(getpid(), PidfdFlags::empty()).context("pidfd_open")?;
            let socket: OwnedFd = pidfd_getfd(ourselves, FIRST, PidfdGetfdFlags::empty())
                .context("the socket that systemd passed")?;
            Ok(Some(UnixListener::from(socket)))
        }
        Some(count) => bail!("systemd passed {count} sockets, expected 1"),
    }
}

/// Tells systemd what became of us; without systemd nothing.
pub(crate) fn notify(state: &str) -> Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let shown = path.display();
    let address = address.with_context(|| format!("NOTIFY_SOCKET {shown}"))?;
    let socket = UnixDatagram::unbound().context("datagram socket")?;
    socket.send_to_addr(state.as_bytes(), &address).with_context(|| format!("notify {shown}"))?;
    Ok(())
}
