//! `kill`: a signal for the container's first process, or for all where the first cannot take the others along.

use rustix::io::Errno;
use rustix::process::Signal;
use rustix_libc_wrappers::process::SignalExt;

use super::Globals;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::spec::{Kind, Plan};
use crate::state::{Container, ContainerId, Held, not_running};

/// Whether a container that is not running is an error (`--all`, kept for callers, says no).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    Error,
    Fine,
}

pub(crate) fn kill(globals: &Globals, id: &ContainerId, signal: &str, gone: Gone) -> Result<()> {
    let signal = parse(signal)?;
    let container = Container::load(&globals.root, id)?;
    match send(&container, signal) {
        Err(error) if error.kind() == ErrorKind::NotRunning && gone == Gone::Fine => Ok(()),
        other => other,
    }
}

/// Sends `signal`, 0 included, which only asks whether there is somebody.
pub(super) fn send(container: &Container, signal: Option<Signal>) -> Result<()> {
    let held = container.held();
    if signal == Some(Signal::KILL) && !dies_with_its_first(held)? {
        // nobody else ends the processes that the first one leaves behind
        return match held.cgroup()?.pids()?.is_empty() {
            true => Err(not_running()),
            false => Ok(held.cgroup()?.kill_all(Signal::KILL)?),
        };
    }
    let process = container.process().ok_or_else(not_running)?;
    let sent = match signal {
        Some(signal) => rustix::process::pidfd_send_signal(&process.pidfd, signal),
        None => Ok(()),
    };
    match sent {
        Ok(()) => {}
        Err(Errno::SRCH) => return Err(not_running()),
        Err(errno) => return Err(errno).context(|| format!("send {signal:?}")),
    }
    if let (Container::Paused(paused), Some(Signal::KILL)) = (container, signal) {
        // a frozen process of v1 dies only once it runs again
        paused.held.cgroup()?.thaw()?;
    }
    Ok(())
}

/// Whether the kernel ends all processes with the first one: in a PID namespace of the container's own.
fn dies_with_its_first(held: &Held) -> Result<bool> {
    let plan = Plan::parse(held.record.config.get().as_bytes(), &held.record.bundle)?;
    Ok(plan.namespaces.makes(Kind::Pid))
}

/// A number, or a name with or without `SIG`, in any case; `None` for 0.
///
/// Real-time signals have numbers only, as in runc. The images of systemd stop by one (`STOPSIGNAL SIGRTMIN+3` is 37).
/// Those that C libraries keep for themselves, 32 to 34, are unknown.
fn parse(text: &str) -> Result<Option<Signal>> {
    let unknown = || Error::new(ErrorKind::Usage, format!("unknown signal {text:?}"));
    let upper = text.to_ascii_uppercase();
    let number = match text.parse::<i32>() {
        Ok(0) => return Ok(None),
        Ok(number) => number,
        Err(_name) => {
            let name = upper.strip_prefix("SIG").unwrap_or(&upper);
            NAMES.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?.1
        }
    };
    Signal::from_raw(number).map(Some).ok_or_else(unknown)
}

const NAMES: [(&str, i32); 34] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGIO),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_people_and_programs_do() {
        for text in ["KILL", "SIGKILL", "sigkill", "kill", "9"] {
            assert_eq!(parse(text).unwrap(), Some(Signal::KILL), "{text}");
        }
        assert_eq!(parse("0").unwrap(), None);
        assert_eq!(parse("37").unwrap().map(Signal::as_raw), Some(37), "a real-time signal");
        for text in ["", "SIG", "NOPE", "-1", "33", "65", "4000"] {
            assert!(parse(text).unwrap_err().to_string().starts_with("unknown signal"), "{text}");
        }
    }
}
