//! A container's terminal: how its controlling side gets here, and how it is read, written and resized.
//!
//! The runtime connects to the socket named by `--console-socket` and sends the pty's controlling side with SCM_RIGHTS. The
//! socket lies beside the shim's own, for a bundle's path may be longer than a socket's may be.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Result};

/// What the runtime gets to send the terminal.
const LIMIT: Duration = Duration::from_secs(30);

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// The socket that waits for one terminal; its name goes with it.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Names of console sockets begin with the shim's socket's first characters, so that `delete` finds what a crash left.
pub(crate) fn name_prefix(shim_socket: &Path) -> String {
    let name = shim_socket.file_name().unwrap_or_default().to_string_lossy();
    format!("{}-pty", name.chars().take(24).collect::<String>())
}

impl ConsoleSocket {
    /// Binds a fresh name beside `shim_socket`.
    ///
    /// # Errors
    /// The directory is missing, or the name is taken or too long.
    pub(crate) fn bind(shim_socket: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = shim_socket.with_file_name(format!("{}{count}", name_prefix(shim_socket)));
        let listener = UnixListener::bind(&path).map_err(Error::io("bind", &path))?;
        Ok(Self { listener, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the terminal.
    ///
    /// # Errors
    /// Nothing came within 30 seconds, or a message without a descriptor.
    pub(crate) async fn receive(&self) -> Result<Console> {
        let received = tokio::time::timeout(LIMIT, async {
            let (stream, _) = self.listener.accept().await?;
            stream.async_io(Interest::READABLE, || receive_descriptor(&stream)).await
        });
        let late = Error::Timeout { what: "the runtime's terminal", seconds: LIMIT.as_secs() };
        let terminal =
            received.await.or(Err(late))?.map_err(Error::io("receive from", &self.path))?;
        Console::new(terminal).map_err(Error::io("terminal from", &self.path))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("remove {}: {error}", self.path.display());
        }
    }
}

fn receive_descriptor(stream: &UnixStream) -> std::io::Result<OwnedFd> {
    let mut name = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    descriptors.next().ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// The controlling side of a pty. tokio's pipe ends, made without asking whether it is a pipe, are what waits for it:
/// a descriptor each for reading and for writing. Their own `read` is not used: it takes a short read for the last one.
#[derive(Debug)]
pub(crate) struct Console {
    reading: pipe::Receiver,
    writing: pipe::Sender,
}

impl Console {
    fn new(terminal: OwnedFd) -> std::io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&terminal)?;
        rustix::fs::fcntl_setfl(&terminal, flags | OFlags::NONBLOCK)?;
        let writing = pipe::Sender::from_owned_fd_unchecked(terminal.try_clone()?)?;
        Ok(Self { reading: pipe::Receiver::from_owned_fd_unchecked(terminal)?, writing })
    }

    /// Reads what was written to the terminal; 0 once nobody has it open any more (which the kernel calls EIO).
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            self.reading.readable().await?;
            let read = || Ok(rustix::io::read(&self.reading, &mut *buffer)?);
            match self.reading.try_io(read) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.raw_os_error() == Some(EIO) => return Ok(0),
                result => return result,
            }
        }
    }

    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            self.writing.writable().await?;
            let write = || Ok(rustix::io::write(&self.writing, bytes)?);
            match self.writing.try_io(write) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                result => bytes = bytes.get(result?..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Sets the size in characters; the kernel tells the foreground process with SIGWINCH.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size =
            Winsize { ws_row: cells(height), ws_col: cells(width), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.reading, size).map_err(Error::io("resize", "terminal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::io::{IoSlice, Read as _, Write as _};
    use std::os::fd::AsFd as _;

    fn pty() -> (OwnedFd, std::fs::File) {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let peer = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY, 0.into()).unwrap();
        (terminal, peer.into())
    }

    fn send(to: &Path, terminal: Option<&OwnedFd>) {
        let stream = std::os::unix::net::UnixStream::connect(to).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        sendmsg(&stream, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn a_terminal_arrives_and_works() {
        let directory = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::bind(&directory.path().join("shim")).unwrap();
        let (terminal, mut peer) = pty();
        send(socket.path(), Some(&terminal));
        let console = socket.receive().await.unwrap();
        drop((socket, terminal));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);

        console.resize(101, 33).unwrap();
        let size = rustix::termios::tcgetwinsize(&peer).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (101, 33));
        console.write_all(b"in\n").await.unwrap();
        let mut line = [0; 3];
        peer.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"in\n");
        let mut buffer = [0; 64];
        assert_eq!(console.read(&mut buffer).await.unwrap(), 4); // the echo, with CR LF
        peer.write_all(b"out").unwrap();
        assert_eq!(console.read(&mut buffer).await.unwrap(), 3);
        drop(peer);
        assert_eq!(console.read(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_message_without_a_terminal_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::bind(&directory.path().join("shim")).unwrap();
        send(socket.path(), None);
        assert!(socket.receive().await.is_err());
    }
}
