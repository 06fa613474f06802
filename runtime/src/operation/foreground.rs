//! Staying with a program until it ends: signals are passed on, a terminal is relayed, the exit status is kept.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hallmark_sys::process::{read_signal, signal_descriptor};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, WaitStatus};
use rustix::termios::{OptionalActions, OutputModes, Termios};
use rustix_libc_wrappers::process::SignalExt;

use crate::error::{Context, Error, Result};
use crate::state::LiveProcess;

/// The other end of the program's terminal.
#[derive(Debug)]
pub(crate) struct Master(pub(crate) OwnedFd);

/// What `run` and `exec` exit with for a program that a signal ended: 128 and its number.
const SIGNALLED: i32 = 128;

/// Signals that are passed on, real-time ones too. Those of a stopped terminal reader or writer are ours to have.
fn passed_on() -> Vec<i32> {
    (1..=31)
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
        .filter(|signal| {
            ![libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD, libc::SIGTTIN, libc::SIGTTOU, libc::SIGURG]
                .contains(signal)
                // our own faults must stay deadly
                && ![libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT]
                    .contains(signal)
                && ![libc::SIGSYS, libc::SIGPIPE].contains(signal)
        })
        .collect()
}

/// Waits for the program of `process`, a child of ours, and returns its exit status.
pub(super) fn wait(process: &LiveProcess, master: Option<Master>) -> Result<u8> {
    let signals = signal_descriptor(&passed_on())?;
    let raw = match &master {
        Some(master) => RawTerminal::enter(master)?,
        None => None,
    };
    let mut relay = master.map(Relay::new).transpose()?;
    loop {
        if step(process, signals.as_fd(), relay.as_mut())? == Step::Ended {
            break;
        }
    }
    if let Some(relay) = relay.as_mut() {
        relay.drain()?;
    }
    drop(raw);
    reap(process)
}

impl Master {
    /// Lines come out as the program wrote them, as from a pipe: a terminal at our end adds what it needs itself.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn with_plain_lines(self) -> Result<Self> {
        let mut modes = rustix::termios::tcgetattr(&self.0).context(|| "tcgetattr")?;
        modes.output_modes.remove(OutputModes::ONLCR);
        rustix::termios::tcsetattr(&self.0, OptionalActions::Now, &modes)
            .context(|| "tcsetattr")?;
        Ok(self)
    }
}

/// Collects the exit status of a child that has ended or is about to.
pub(super) fn reap(process: &LiveProcess) -> Result<u8> {
    let waited = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(Some(process.pid), WaitOptions::empty())
    });
    let status = waited.context(|| "wait")?.map(|(_, status)| status);
    status.and_then(exit_status).ok_or_else(|| Error::system("wait: neither exited nor signalled"))
}

fn exit_status(status: WaitStatus) -> Option<u8> {
    let code = status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| SIGNALLED + signal));
    code.and_then(|code| u8::try_from(code & 0xff).ok())
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Ended,
    On,
}

fn step(
    process: &LiveProcess,
    signals: BorrowedFd<'_>,
    mut relay: Option<&mut Relay>,
) -> Result<Step> {
    let mut polled =
        vec![PollFd::new(&process.pidfd, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
    let stdin = rustix::stdio::stdin();
    let (wanted, reads) = relay.as_ref().map_or((PollFlags::empty(), false), |r| r.wants());
    if let Some(relay) = &relay
        && !wanted.is_empty()
    {
        polled.push(PollFd::new(&relay.master, wanted));
    }
    if reads {
        polled.push(PollFd::new(&stdin, PollFlags::IN));
    }
    match rustix::event::poll(&mut polled, None) {
        Err(Errno::INTR) => return Ok(Step::On),
        other => other.context(|| "poll")?,
    };
    let mut ready = polled.iter().map(PollFd::revents).collect::<Vec<_>>().into_iter();
    drop(polled);
    let mut next = || ready.next().unwrap_or(PollFlags::empty());
    let (ended, signalled) = (next(), next());
    let master = if wanted.is_empty() { PollFlags::empty() } else { next() };
    if !signalled.is_empty() {
        pass_on(process, signals, relay.as_deref())?;
    }
    if let Some(relay) = relay.as_mut() {
        relay.move_bytes(master)?;
        if !next().is_empty() {
            relay.input();
        }
    }
    Ok(if ended.is_empty() { Step::On } else { Step::Ended })
}

fn pass_on(process: &LiveProcess, signals: BorrowedFd<'_>, relay: Option<&Relay>) -> Result<()> {
    while let Some(number) = read_signal(signals)? {
        if number == libc::SIGWINCH
            && let Some(relay) = relay
        {
            resize(&relay.master)?;
            continue;
        }
        let Some(signal) = Signal::from_raw(number) else { continue };
        match rustix::process::pidfd_send_signal(&process.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno).context(|| format!("pass on signal {number}")),
        }
    }
    Ok(())
}

/// The program's terminal gets the size of ours, if we have one.
fn resize(master: &OwnedFd) -> Result<()> {
    match rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
        Ok(size) => rustix::termios::tcsetwinsize(master, size).context(|| "ioctl(TIOCSWINSZ)"),
        Err(_no_terminal) => Ok(()),
    }
}

/// Whether more may come from a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Closed,
    Open,
}

/// Bytes in both directions. Neither waits for the other: a program that does not read until its output is read would
/// otherwise stop both.
#[derive(Debug)]
struct Relay {
    /// Non-blocking.
    master: OwnedFd,
    /// From the program. Once nobody has the terminal open the kernel reports that for ever, so it is asked no more.
    output: Side,
    input: Side,
    /// Read from our side and not yet taken by the program's.
    pending: Vec<u8>,
}

impl Relay {
    fn new(master: Master) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master.0).context(|| "fcntl(F_GETFL)")?;
        rustix::fs::fcntl_setfl(&master.0, flags | OFlags::NONBLOCK)
            .context(|| "fcntl(F_SETFL)")?;
        let pending = Vec::new();
        Ok(Self { master: master.0, output: Side::Open, input: Side::Open, pending })
    }

    /// What is awaited of the terminal, and whether our own input is read.
    fn wants(&self) -> (PollFlags, bool) {
        if self.output == Side::Closed {
            return (PollFlags::empty(), false);
        }
        let full = !self.pending.is_empty();
        let write = if full { PollFlags::OUT } else { PollFlags::empty() };
        (PollFlags::IN | write, self.input == Side::Open && !full)
    }

    fn move_bytes(&mut self, ready: PollFlags) -> Result<()> {
        if ready.contains(PollFlags::OUT) {
            self.flush();
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !self.output()? {
            self.output = Side::Closed;
        }
        Ok(())
    }

    /// From the program to us; the end of it shows as EIO. Whether there may be more.
    fn output(&mut self) -> Result<bool> {
        let mut buffer = [0; 8192];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(0) | Err(Errno::IO) => Ok(false),
            Err(Errno::INTR | Errno::AGAIN) => Ok(true),
            Ok(length) => {
                all(rustix::stdio::stdout(), buffer.get(..length).unwrap_or_default())?;
                Ok(true)
            }
            Err(errno) => Err(errno).context(|| "read the terminal"),
        }
    }

    fn input(&mut self) {
        let mut buffer = [0; 8192];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => self.input = Side::Closed,
            Ok(length) => {
                self.pending.extend_from_slice(buffer.get(..length).unwrap_or_default());
                self.flush();
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_unreadable) => self.input = Side::Closed,
        }
    }

    /// Hands the program as much as its terminal takes.
    fn flush(&mut self) {
        match rustix::io::write(&self.master, &self.pending) {
            Ok(written) => drop(self.pending.drain(..written)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // nobody has the terminal open any more
            Err(_gone) => {
                self.pending.clear();
                self.input = Side::Closed;
            }
        }
    }

    /// What the program wrote before it ended; a process that outlives it may keep the terminal open.
    fn drain(&mut self) -> Result<()> {
        loop {
            let mut polled = [PollFd::new(&self.master, PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now)));
            let readable = ready.context(|| "poll")? > 0
                && polled.iter().any(|fd| fd.revents().contains(PollFlags::IN));
            if !readable || !self.output()? {
                return Ok(());
            }
        }
    }
}

fn all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "write"),
        }
    }
    Ok(())
}

/// Our own terminal, passing every key on; as before once dropped.
#[derive(Debug)]
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter(master: &Master) -> Result<Option<Self>> {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = rustix::termios::tcgetattr(stdin) else { return Ok(None) };
        resize(&master.0)?;
        let mut raw = before.clone();
        raw.make_raw();
        // lines still begin at the left: the program's own terminal leaves that to this one
        raw.output_modes |= before.output_modes & OutputModes::OPOST;
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).context(|| "tcsetattr")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // the terminal may be gone; there is nobody to tell then
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_our_own_are_not_passed_on() {
        let list = passed_on();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGWINCH, libc::SIGUSR1, 37]
        {
            assert!(list.contains(&signal), "{signal}");
        }
        for signal in [libc::SIGKILL, libc::SIGCHLD, libc::SIGSEGV] {
            assert!(!list.contains(&signal), "{signal}");
        }
    }

    #[test]
    fn a_terminal_that_nobody_has_open_is_asked_no_more() {
        use rustix::pty::OpenptFlags;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        drop(rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap());
        let mut relay = Relay::new(Master(master)).unwrap();
        assert_eq!(relay.wants(), (PollFlags::IN, true));
        relay.move_bytes(PollFlags::HUP).unwrap();
        assert_eq!(relay.wants(), (PollFlags::empty(), false));
    }
}
