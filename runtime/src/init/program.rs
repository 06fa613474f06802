//! The end: the program is found, the word to start is awaited, everything else is closed, and the program runs.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use hallmark_sys::process;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::Common;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::handshake::{self, FromInit, ToInit};
use crate::spec::ProcessPlan;

/// How the word to start comes.
#[derive(Debug)]
pub(crate) enum Go {
    /// Somebody connects to this socket (`create`, then `start`).
    Connection(OwnedFd),
    /// The runtime says so (`run`, `exec`).
    Message,
}

/// What is executed.
#[derive(Debug)]
pub(super) struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<String>,
}

impl Program {
    pub(super) fn env(&self) -> &[String] {
        &self.env
    }
}

/// To whom a failure is told after the word to start; closed by exec, which is how success is told.
#[derive(Debug)]
pub(super) enum Report {
    Connection(OwnedFd),
    Runtime(OwnedFd),
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Connection(fd) | Self::Runtime(fd) => fd.as_fd(),
        }
    }
}

/// Finds the program as a shell would, with the process' own PATH and rights, so that "not found" is an error of
/// `create` already.
pub(super) fn find(process: &ProcessPlan) -> Result<Program> {
    let env = environment(&process.env, process.user.uid);
    let name = process.args.first().map_or("", String::as_str);
    let path = look_up(name, &env)?;
    Ok(Program { path: c_string(&path)?, args: c_strings(&process.args)?, env })
}

fn look_up(name: &str, env: &[String]) -> Result<String> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Errno::NOENT) => {
                Err(Error::spec(format!("exec: {name:?}: stat {name}: no such file or directory")))
            }
            Err(Errno::ISDIR) => Err(Error::spec(format!("exec: {name:?}: is a directory"))),
            Err(Errno::ACCESS) => Err(Error::spec(format!("exec: {name:?}: permission denied"))),
            Err(errno) => Err(errno).context(|| format!("exec: {name:?}")),
        };
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{name}");
        if !name.is_empty() && executable(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(Error::spec(format!("exec: {name:?}: executable file not found in $PATH")))
}

fn executable(path: &str) -> rustix::io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// The last value of each name counts, as in runc; HOME is the user's, unless it is set.
fn environment(env: &[String], uid: u32) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or(entry.len(), |(name, _)| name.len());
    let mut list: Vec<String> = Vec::with_capacity(env.len() + 1);
    for (index, entry) in env.iter().enumerate() {
        let prefix = entry.get(..=name(entry)).unwrap_or(entry);
        let later = env.get(index + 1..).unwrap_or_default();
        if !later.iter().any(|other| other.starts_with(prefix)) {
            list.push(entry.clone());
        }
    }
    list.retain(|entry| entry != "HOME=");
    if !list.iter().any(|entry| entry.starts_with("HOME=")) {
        let passwd = text_file("/etc/passwd").unwrap_or_default();
        list.push(format!("HOME={}", home(&passwd, uid).unwrap_or("/")));
    }
    list
}

/// What a file of the image says, if it is one: a FIFO in its place would keep us waiting, an endless one reading.
fn text_file(path: &str) -> Option<String> {
    const MOST_BYTES: u64 = 16 << 20;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let mode = rustix::fs::fstat(&file).ok()?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return None;
    }
    let mut text = String::new();
    std::fs::File::from(file).take(MOST_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The sixth field of the line whose third field is `uid`.
fn home(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse::<u32>().ok()?;
        let home = fields.nth(2)?;
        (found == uid && home.starts_with('/')).then_some(home)
    })
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(OsStr::new(text).as_bytes())
        .map_err(std::io::Error::from)
        .context(|| format!("{text:?}"))
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>> {
    texts.iter().map(|text| c_string(text)).collect()
}

/// Closes what this copy of the runtime was born with, directories of the host first of all, before it waits for the
/// word to start: /proc/PID/fd of a waiting process is a way out for whoever may look into it (CVE-2016-9962).
///
/// Before seccomp, because a profile need not allow it. What stays is the way to whoever gives the word. Nothing else is
/// used or dropped from here to exec.
pub(super) fn close_the_hosts(common: &Common<'_>) -> Result<()> {
    let mut kept = vec![common.end.as_fd()];
    if let Go::Connection(listener) = &common.go {
        kept.push(listener.as_fd());
    }
    Ok(process::close_all_but(common.preserved.saturating_add(3), &kept)?)
}

/// Waits; returns to whom a failure is told from now on.
pub(super) fn wait_for_go(common: &Common<'_>) -> Result<Report> {
    match &common.go {
        Go::Message => {
            common.end.expect(ToInit::Go)?;
            let end = rustix::io::fcntl_dupfd_cloexec(common.end.as_fd(), 3).context(|| "dup")?;
            Ok(Report::Runtime(end))
        }
        Go::Connection(listener) => {
            // as the first process of a PID namespace it would not hear them
            process::end_on(&[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM])?;
            let accepted = rustix::io::retry_on_intr(|| {
                rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
            });
            Ok(Report::Connection(accepted.context(|| "wait for start")?))
        }
    }
}

/// Becomes the program.
///
/// [`close_the_hosts`] has run: what is still open and not the program's are sockets, close-on-exec, which lead to no
/// file, so a path below /proc/self/fd, looked up before close-on-exec happens, finds nothing (CVE-2024-21626).
pub(super) fn exec(program: &Program, report: &Report) -> ! {
    let error = match (c_strings(&program.env), process::restore_signals()) {
        (Ok(env), Ok(())) => {
            let failed = process::exec(&program.path, &program.args, &env);
            match failed.errno() {
                Some(errno) => Error::new(
                    ErrorKind::Program,
                    format!("exec {}: {}", program.path.to_string_lossy(), Error::from(errno)),
                ),
                None => failed.into(),
            }
        }
        (Err(error), _) => error,
        (_, Err(error)) => error.into(),
    };
    fail(report, &error)
}

/// Tells whoever gave the word to start why nothing runs, and exits.
pub(super) fn fail(report: &Report, error: &Error) -> ! {
    let failure = FromInit::Failed(error.kind(), error.to_string());
    // the answer is the last thing there is; if it does not arrive, the exit status still says so
    drop(handshake::tell(report.as_fd(), &failure));
    process::exit_immediately(1)
}

/// Tells why the process cannot become what it should, and exits.
pub(crate) fn give_up(common: &Common<'_>, error: &Error) -> ! {
    let failure = FromInit::Failed(error.kind(), error.to_string());
    // nobody may be left to hear it
    drop(common.end.send(&failure));
    process::exit_immediately(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_last_value_counts_and_home_is_added() {
        let env = environment(&strings(&["A=1", "PATH=/x", "A=2", "HOME="]), u32::MAX - 1);
        assert_eq!(env, ["PATH=/x", "A=2", "HOME=/"]);
        let env = environment(&strings(&["HOME=/h", "AB=1", "A=1"]), 0);
        assert_eq!(env, ["HOME=/h", "AB=1", "A=1"]);
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, file) = (dir.path().join("fifo"), dir.path().join("file"));
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        std::fs::write(&file, "text").unwrap();
        assert_eq!(text_file(fifo.to_str().unwrap()), None);
        assert_eq!(text_file("/dev/zero"), None);
        assert_eq!(text_file(file.to_str().unwrap()).as_deref(), Some("text"));
    }

    #[test]
    fn a_home_is_found_by_number() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nbad\nx:y:z\nu:x:1000:100::/home/u:\nv:x:7:7::rel:/";
        assert_eq!(home(passwd, 1000), Some("/home/u"));
        assert_eq!(home(passwd, 7), None);
        assert_eq!(home(passwd, 9), None);
    }

    #[test]
    fn a_program_is_found_as_runc_says_it() {
        let env = strings(&["PATH=/no/such:/bin"]);
        assert_eq!(look_up("sh", &env).unwrap(), "/bin/sh");
        for (name, expected) in [
            ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
            ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
            ("/etc", "exec: \"/etc\": is a directory"),
            ("", "exec: \"\": executable file not found in $PATH"),
        ] {
            assert_eq!(look_up(name, &env).unwrap_err().to_string(), expected);
        }
    }
}
