//! The daemon's system calls, one by one: ptrace(2), because it stops a process at the boundary itself.
//!
//! Each call has two boundaries: before it, when nothing of it has happened, and after it, when nobody has learnt of
//! it yet. One thread does everything here, as ptrace demands.

use std::collections::BTreeSet;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What is done to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    /// Nothing: boundaries, or calls that could fail, are only counted.
    None,
    /// SIGKILL at this boundary, counted from 1.
    Kill(u64),
    /// This call on a file of the daemon's, counted from 1, is not made and answers so.
    Fail(u64, i32),
}

/// What was seen until the daemon was gone.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Boundaries of system calls.
    pub(crate) boundaries: u64,
    /// Calls on the daemon's own files.
    pub(crate) file_calls: u64,
}

/// Whether calls on files are told from others, which costs some more system calls of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    Boundaries,
    Files,
}

/// Attaches to every thread of the daemon. From here on it stops at each boundary until [`follow`] lets it go.
pub(crate) fn attach(daemon: Pid) {
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC;
    let mut attached = BTreeSet::new();
    loop {
        let before = attached.len();
        for entry in std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap().flatten() {
            let thread: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            // EPERM: a thread that came since, and came attached
            if attached.insert(thread) && ptrace::seize(Pid::from_raw(thread), options).is_ok() {
                ptrace::interrupt(Pid::from_raw(thread)).ok();
            }
        }
        if attached.len() == before {
            return;
        }
    }
}

/// Lets the daemon run, strikes when told, and returns when it is dead. `files` is the directory of its files.
pub(crate) fn follow(daemon: Pid, blow: Blow, watch: Watch, files: &Path) -> Seen {
    let mut seen = Seen::default();
    let mut failing = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                seen.boundaries += 1;
                if blow == Blow::Kill(seen.boundaries) {
                    kill(daemon, Signal::SIGKILL).unwrap();
                }
                if watch == Watch::Files {
                    fail(thread, blow, &mut seen, &mut failing, files);
                }
                go_on(thread, None);
            }
            Ok(WaitStatus::PtraceEvent(thread, _, _)) => go_on(thread, None),
            Ok(WaitStatus::Stopped(thread, signal)) => go_on(thread, Some(signal)),
            Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, _, _)) => {
                if thread == daemon {
                    return seen;
                }
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("waitpid: {errno}"),
        }
    }
}

fn go_on(thread: Pid, signal: Option<Signal>) {
    // ESRCH: killed meanwhile
    ptrace::syscall(thread, signal).ok();
}

/// At the entry of a call on one of the daemon's files: counts it, and makes it none if its turn has come. At the
/// exit of a call that was made none: gives the answer.
fn fail(thread: Pid, blow: Blow, seen: &mut Seen, failing: &mut Option<(Pid, i32)>, files: &Path) {
    let Ok(mut registers) = ptrace::getregs(thread) else { return };
    if let Some((_, errno)) = failing.take_if(|(failing, _)| *failing == thread) {
        registers.rax = u64::from_ne_bytes((-i64::from(errno)).to_ne_bytes());
        ptrace::setregs(thread, registers).ok();
        return;
    }
    // the kernel's mark of an entry: the answer is -ENOSYS so far
    let entry = registers.rax == u64::from_ne_bytes((-i64::from(libc::ENOSYS)).to_ne_bytes());
    if !entry || !is_file_call(thread, registers.orig_rax, registers.rdi, files) {
        return;
    }
    seen.file_calls += 1;
    if let Blow::Fail(at, errno) = blow
        && at == seen.file_calls
    {
        *failing = Some((thread, errno));
        registers.orig_rax = u64::MAX;
        ptrace::setregs(thread, registers).ok();
    }
}

/// Whether a call changes a file or a name, which is where a disk's failure shows. Those by descriptor count when the
/// descriptor is of a file of ours: sockets and events have no disk behind them.
fn is_file_call(thread: Pid, number: u64, first: u64, files: &Path) -> bool {
    let by_descriptor = [
        libc::SYS_write,
        libc::SYS_pwrite64,
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_writev,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_copy_file_range,
    ];
    let by_name = [
        libc::SYS_mkdir,
        libc::SYS_mkdirat,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_rmdir,
        libc::SYS_unlink,
        libc::SYS_unlinkat,
        libc::SYS_chmod,
        libc::SYS_fchmodat,
        libc::SYS_chown,
        libc::SYS_lchown,
        libc::SYS_fchownat,
        libc::SYS_mount,
        libc::SYS_fsmount,
        libc::SYS_move_mount,
        libc::SYS_umount2,
    ];
    let is = |numbers: &[i64]| numbers.iter().any(|call| u64::try_from(*call) == Ok(number));
    let of_ours = || {
        let link = std::fs::read_link(format!("/proc/{thread}/fd/{first}"));
        link.is_ok_and(|target| target.starts_with(files))
    };
    is(&by_name) || (is(&by_descriptor) && of_ours())
}
