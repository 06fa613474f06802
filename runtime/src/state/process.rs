//! A process that a state file names: found again by number and start time, held by descriptor.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags};

use crate::error::{Context, Error, Result};

/// A process that is alive and is the one that was meant.
#[derive(Debug)]
pub(crate) struct LiveProcess {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

impl LiveProcess {
    /// The process with this number, if it started at `start_time` (ticks since boot) and is no zombie.
    ///
    /// The descriptor is opened before the start time is read: a number reused in between shows another time.
    ///
    /// # Errors
    /// The kernel's, but for "no such process".
    pub(crate) fn find(pid: i32, start_time: u64) -> Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 0) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => {
                return Err(errno).context(|| format!("pidfd_open({})", pid.as_raw_nonzero()));
            }
        };
        let alive = match stat(pid)? {
            Some(stat) => stat.start_time == start_time && !matches!(stat.state, 'Z' | 'X'),
            None => false,
        };
        Ok(alive.then_some(Self { pid, pidfd }))
    }
}

/// What /proc/PID/stat says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// One letter, as in ps.
    pub(crate) state: char,
    /// Ticks since boot.
    pub(crate) start_time: u64,
}

/// `None` if there is no such process.
///
/// # Errors
/// If the text is not what the kernel documents.
pub(crate) fn stat(pid: Pid) -> Result<Option<Stat>> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    // bytes: the process may give itself a name that is not UTF-8
    let text = match std::fs::read(&path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // the process ended between open and read
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error).context(|| format!("read {path}")),
    };
    parse(&text).map(Some).ok_or_else(|| Error::system(format!("{path}: not understood")))
}

/// Fields 3 and 22; the second may hold anything, parentheses included, so counting starts after its last `)`.
pub(crate) fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let text = "7 (a) R 1 (b)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(parse(text), Some(Stat { state: 'S', start_time: 4242 }));
        assert_eq!(parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_found_and_another_start_time_is_not() {
        let pid = rustix::process::getpid();
        let start = stat(pid).unwrap().unwrap().start_time;
        let raw = pid.as_raw_nonzero().get();
        assert!(LiveProcess::find(raw, start).unwrap().is_some());
        assert!(LiveProcess::find(raw, start + 1).unwrap().is_none());
        assert!(LiveProcess::find(0, 0).unwrap().is_none());
    }

    /// A container names its processes, and must not get out of reach by that.
    #[test]
    fn a_name_that_is_no_text_hides_nobody() {
        use std::io::BufRead;
        use std::process::{Command, Stdio};
        let mut command = Command::new("sh");
        command.args(["-c", "printf '\\377) Z 1' >/proc/self/comm; echo named; read end"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let output = child.stdout.take().unwrap();
        std::io::BufReader::new(output).read_line(&mut line).unwrap();
        let found = Pid::from_raw(child.id().try_into().unwrap()).map(stat);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(line, "named\n");
        // running or asleep, but no zombie, as its name would have it
        let state = found.unwrap().unwrap().unwrap().state;
        assert!(matches!(state, 'R' | 'S' | 'D'), "{state}");
    }
}
