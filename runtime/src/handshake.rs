//! What the runtime and a container's first process say to each other, over one pair of sockets.
//!
//! ```text
//! runtime                                              first process (init)
//!    │ clone3 ─────────────────────────────────────────────►│
//!    │                                                      │ v1 cgroups, namespaces by path, new time namespace
//!    │◄──────────────────────────────────────────── Stage   │ only if a second clone was needed: the pid that counts
//!    │◄─────────────────────────────────────────── Joined   │
//!    │ uid_map, gid_map, timens_offsets, oom_score_adj      │
//!    │ Mapped ─────────────────────────────────────────────►│
//!    │                                                      │ root, mounts, devices
//!    │◄────────────────────────────────────────────── Tree   │ a bind of its own mounts that needs an id map
//!    │ pidfd_getfd, mount_setattr                           │
//!    │ Translated ─────────────────────────────────────────►│
//!    │◄────────────────────────────────────────── Mounted   │ only if there are prestart or createRuntime hooks
//!    │ hooks                                                │
//!    │ HooksRan ───────────────────────────────────────────►│
//!    │                                                      │ createContainer hooks, pivot_root, identity, masks
//!    │◄───────────────────────────────────────── Listener   │ only with a seccomp supervisor; with no_new_privs after Go
//!    │ pidfd_getfd, the listener goes to the supervisor     │
//!    │ Listening ──────────────────────────────────────────►│
//!    │◄──────────────────────────────────────────── Ready   │ nothing is left that can fail but for hooks and exec
//!    │ pid file, state file                                 │
//!    │ Go (run, exec) ─────────────────────────────────────►│ create: somebody connects to start.sock instead
//!    │                                                      │ startContainer hooks, exec
//!    │◄─────────────────────────────────────────────── EOF  │ the socket is close-on-exec: the program runs
//! ```
//!
//! At any moment the first process may send `Failed` with a text, and exit. After `create`, `Failed` and EOF go to
//! whoever connected to `start.sock`.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::supervisor::Supervisor;

/// Most bytes of one message.
const MAX_BYTES: usize = 16 << 10;

/// From the first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FromInit {
    Failed(ErrorKind, String),
    Joined,
    /// The number, in that process, of a seccomp listener.
    Listener(i32),
    Mounted,
    Ready,
    Stage(i32),
    /// The number, in that process, of a mount that has to get its id map.
    Tree(i32),
}

/// From the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToInit {
    Go,
    HooksRan,
    /// The listener is somebody else's, too.
    Listening,
    Mapped,
    /// The mount has its id map.
    Translated,
}

/// The runtime's end.
#[derive(Debug)]
pub(crate) struct RuntimeEnd(OwnedFd);

/// The first process' end.
#[derive(Debug)]
pub(crate) struct InitEnd(OwnedFd);

/// Two connected ends, both close-on-exec.
///
/// # Errors
/// The kernel's.
pub(crate) fn pair() -> Result<(RuntimeEnd, InitEnd)> {
    let (a, b) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .context(|| "socketpair")?;
    Ok((RuntimeEnd(a), InitEnd(b)))
}

impl RuntimeEnd {
    pub(crate) fn send(&self, message: ToInit) -> Result<()> {
        answer(self.0.as_fd(), message)
    }

    /// The next message; `None` once the other end is closed.
    pub(crate) fn receive(&self) -> Result<Option<FromInit>> {
        receive(self.0.as_fd())
    }

    /// Waits for `expected`, handing a seccomp listener over meanwhile.
    ///
    /// # Errors
    /// What the first process says went wrong; anything else it says; its death.
    pub(crate) fn expect_beside(&self, expected: &FromInit, agent: Agent<'_>) -> Result<()> {
        match receive_beside(self.0.as_fd(), agent)? {
            Some(message) if message == *expected => Ok(()),
            other => Err(unexpected(other, &format!("{expected:?}"))),
        }
    }

    /// Waits for `expected`.
    ///
    /// # Errors
    /// What the first process says went wrong; anything else it says; its death.
    pub(crate) fn expect(&self, expected: &FromInit) -> Result<()> {
        match self.receive()? {
            Some(message) if message == *expected => Ok(()),
            other => Err(unexpected(other, &format!("{expected:?}"))),
        }
    }

    /// Waits until the program runs, handing a seccomp listener over meanwhile.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn until_exec(&self, agent: Agent<'_>) -> Result<()> {
        match receive_beside(self.0.as_fd(), agent)? {
            None => Ok(()),
            other => Err(unexpected(other, "exec")),
        }
    }
}

/// What takes the seccomp listener of the process at the other end; `None` where no profile has one.
pub(crate) type Agent<'a> = Option<&'a Supervisor>;

/// Receives one message that is no listener; a listener is handed to `agent` first.
///
/// # Errors
/// The kernel's; what the hand-over answers.
pub(crate) fn receive_beside(socket: BorrowedFd<'_>, agent: Agent<'_>) -> Result<Option<FromInit>> {
    loop {
        match (receive(socket)?, agent) {
            (Some(FromInit::Listener(number)), Some(agent)) => {
                agent.hand_over(number)?;
                answer(socket, ToInit::Listening)?;
            }
            (other, _) => return Ok(other),
        }
    }
}

fn answer(socket: BorrowedFd<'_>, message: ToInit) -> Result<()> {
    let byte = match message {
        ToInit::Go => b'g',
        ToInit::HooksRan => b'h',
        ToInit::Listening => b'l',
        ToInit::Mapped => b'm',
        ToInit::Translated => b't',
    };
    send(socket, &[&[byte]]).context(|| format!("tell the first process {message:?}"))
}

/// Tells the runtime at `socket` the number of a seccomp listener and waits until somebody else holds it, too.
///
/// Only write(2) comes before that: a profile may ask the supervisor about any other call, and there is none yet.
///
/// # Errors
/// The kernel's.
pub(crate) fn offer_listener(socket: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> Result<()> {
    use std::os::fd::AsRawFd;
    let [a, b, c, d] = listener.as_raw_fd().to_ne_bytes();
    rustix::io::write(socket, &[b'L', a, b, c, d]).context(|| "tell the runtime")?;
    expect_at(socket, ToInit::Listening)
}

/// Turns a message that was not the awaited one into an error.
pub(crate) fn unexpected(message: Option<FromInit>, expected: &str) -> Error {
    match message {
        // the program's own failure is told as a shell would
        Some(FromInit::Failed(ErrorKind::Program, text)) => Error::new(ErrorKind::Program, text),
        // runc's words, which its callers show
        Some(FromInit::Failed(kind, text)) => {
            Error::new(kind, text).within("unable to start container process")
        }
        Some(other) => {
            Error::system(format!("first process: found message {other:?}, expected {expected}"))
        }
        None => Error::system(format!("first process: ended before {expected}")),
    }
}

impl InitEnd {
    pub(crate) fn send(&self, message: &FromInit) -> Result<()> {
        tell(self.0.as_fd(), message)
    }

    /// Has the runtime give `tree`, which is attached nowhere, its id map.
    ///
    /// # Errors
    /// If the runtime cannot and is gone.
    pub(crate) fn offer_tree(&self, tree: BorrowedFd<'_>) -> Result<()> {
        use std::os::fd::AsRawFd;
        self.send(&FromInit::Tree(tree.as_raw_fd()))?;
        self.expect(ToInit::Translated)
    }

    /// Waits for `expected`.
    ///
    /// # Errors
    /// If the runtime says something else or is gone.
    pub(crate) fn expect(&self, expected: ToInit) -> Result<()> {
        expect_at(self.0.as_fd(), expected)
    }
}

fn expect_at(socket: BorrowedFd<'_>, expected: ToInit) -> Result<()> {
    let mut buffer = [0; 4];
    let length = read(socket, &mut buffer).context(|| "hear from the runtime")?;
    let found = match buffer.get(..length) {
        Some(b"g") => Some(ToInit::Go),
        Some(b"h") => Some(ToInit::HooksRan),
        Some(b"l") => Some(ToInit::Listening),
        Some(b"m") => Some(ToInit::Mapped),
        Some(b"t") => Some(ToInit::Translated),
        _ => None,
    };
    if found == Some(expected) {
        return Ok(());
    }
    Err(Error::system(format!("runtime: found message {found:?}, expected {expected:?}")))
}

impl AsFd for InitEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends one message of the first process over `socket`.
pub(crate) fn tell(socket: BorrowedFd<'_>, message: &FromInit) -> Result<()> {
    let (tag, payload): (u8, Vec<u8>) = match message {
        FromInit::Failed(kind, text) => (b'F', [&[kind_byte(*kind)], text.as_bytes()].concat()),
        FromInit::Joined => (b'J', Vec::new()),
        FromInit::Listener(number) => (b'L', number.to_ne_bytes().to_vec()),
        FromInit::Mounted => (b'M', Vec::new()),
        FromInit::Ready => (b'R', Vec::new()),
        FromInit::Stage(pid) => (b'S', pid.to_ne_bytes().to_vec()),
        FromInit::Tree(number) => (b'T', number.to_ne_bytes().to_vec()),
    };
    let payload = payload.get(..MAX_BYTES - 1).unwrap_or(&payload);
    send(socket, &[&[tag], payload]).context(|| "tell the runtime")
}

/// Receives one message of a first process from `socket`; `None` at its end.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<FromInit>> {
    let mut buffer = [0; MAX_BYTES];
    let length = match read(socket, &mut buffer) {
        // an end that is closed with something unread in it resets the other one
        Err(Errno::CONNRESET) => return Ok(None),
        other => other.context(|| "hear from the first process")?,
    };
    let Some((tag, payload)) = buffer.get(..length).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    let message = match (tag, payload) {
        (b'F', [kind, text @ ..]) => {
            FromInit::Failed(kind_of(*kind), String::from_utf8_lossy(text).into_owned())
        }
        (b'J', []) => FromInit::Joined,
        (b'M', []) => FromInit::Mounted,
        (b'R', []) => FromInit::Ready,
        (b'L', [a, b, c, d]) => FromInit::Listener(i32::from_ne_bytes([*a, *b, *c, *d])),
        (b'S', [a, b, c, d]) => FromInit::Stage(i32::from_ne_bytes([*a, *b, *c, *d])),
        (b'T', [a, b, c, d]) => FromInit::Tree(i32::from_ne_bytes([*a, *b, *c, *d])),
        _ => return Err(Error::system("first process: a message that is not understood")),
    };
    Ok(Some(message))
}

/// Only the kinds that something inside the container can cause.
fn kind_byte(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Program => b'p',
        ErrorKind::Spec => b's',
        _ => b'y',
    }
}

fn kind_of(byte: u8) -> ErrorKind {
    match byte {
        b'p' => ErrorKind::Program,
        b's' => ErrorKind::Spec,
        _ => ErrorKind::System,
    }
}

fn send(socket: BorrowedFd<'_>, parts: &[&[u8]]) -> rustix::io::Result<()> {
    let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &parts,
            &mut rustix::net::SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL,
        )
    })
    .map(drop)
}

fn read(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let (length, _) =
        rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()))?;
    Ok(length)
}

/// Sends `descriptor` over a stream socket, with `name` as the data, as runc sends a console.
///
/// # Errors
/// The kernel's.
pub(crate) fn send_descriptor(
    socket: BorrowedFd<'_>,
    descriptor: BorrowedFd<'_>,
    name: &[u8],
) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Error::system("send a descriptor: no room for it"));
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(name)], &mut control, SendFlags::NOSIGNAL)
    });
    sent.context(|| "send a descriptor").map(drop)
}

/// Receives the one descriptor that [`send_descriptor`] sent.
///
/// # Errors
/// The kernel's; or none came.
pub(crate) fn receive_descriptor(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 4096];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [std::io::IoSliceMut::new(&mut data)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .context(|| "receive a descriptor")?;
    for message in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(Error::system("receive a descriptor: none came"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (runtime, init) = pair().unwrap();
        for message in [
            FromInit::Failed(ErrorKind::Spec, "no".into()),
            FromInit::Joined,
            FromInit::Listener(7),
            FromInit::Mounted,
            FromInit::Ready,
            FromInit::Stage(4711),
            FromInit::Tree(8),
        ] {
            init.send(&message).unwrap();
            assert_eq!(runtime.receive().unwrap(), Some(message));
        }
        for message in
            [ToInit::Go, ToInit::HooksRan, ToInit::Listening, ToInit::Mapped, ToInit::Translated]
        {
            runtime.send(message).unwrap();
            init.expect(message).unwrap();
        }
    }

    #[test]
    fn a_failure_ends_the_wait_with_its_text_and_kind() {
        let (runtime, init) = pair().unwrap();
        init.send(&FromInit::Failed(ErrorKind::Spec, "x".repeat(MAX_BYTES * 2))).unwrap();
        let error = runtime.expect(&FromInit::Ready).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Spec);
        drop(init);
        let error = runtime.expect(&FromInit::Ready).unwrap_err();
        assert_eq!(error.to_string(), "first process: ended before Ready");
        assert!(runtime.until_exec(None).is_ok());
    }

    #[test]
    fn a_descriptor_travels() {
        let (runtime, init) = pair().unwrap();
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        send_descriptor(init.as_fd(), file.as_fd(), b"stat").unwrap();
        let received = receive_descriptor(runtime.0.as_fd()).unwrap();
        assert_eq!(
            rustix::fs::fstat(&received).unwrap().st_ino,
            rustix::fs::fstat(&file).unwrap().st_ino
        );
    }
}
