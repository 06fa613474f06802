//! Processes: clone3, execve, and the few settings of a thread that rustix does not have.
//!
//! Everything here is meant for a process with one thread. [`clone3`] and [`unshare`] refuse in any other.
//!
//! Source: clone(2), unshare(2), execve(2), close_range(2), prctl(2), sched_setattr(2), ioprio_set(2), personality(2),
//! set_mempolicy(2), keyctl(2), signalfd(2), netdevice(7).

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;
pub use rustix::thread::UnshareFlags as Namespaces;

use crate::{Error, Result};

/// Who becomes the parent of a cloned process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// The caller, which gets SIGCHLD.
    Caller,
    /// The caller's own parent, which gets the signal that it gets for the caller.
    Grandparent,
}

/// What a clone gets that its parent has not.
#[derive(Debug)]
pub struct Clone<'a> {
    /// Namespaces made for it. The cgroup namespace is better left out: the kernel roots it at the *parent's* cgroup.
    pub namespaces: Namespaces,
    /// A cgroup v2 directory to be born in (`CLONE_INTO_CGROUP`, Linux 5.7): free of the grace period that moving costs.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whose child it is.
    pub parent: Parent,
}

/// On which side of [`clone3`] the caller is now.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the old one.
    Parent {
        /// The new process, as the old one's PID namespace numbers it.
        pid: Pid,
        /// The new process itself, immune to reuse of its number.
        pidfd: OwnedFd,
    },
}

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a process that is a copy of this one: memory and descriptors copied, as after fork.
///
/// # Errors
/// Malformed if this process has more than one thread: a copied lock that another thread held would never open.
/// The kernel's errno otherwise, with the flags in the text.
pub fn clone3(what: &Clone<'_>) -> Result<Cloned> {
    require_one_thread("clone3")?;
    let mut pidfd: RawFd = -1;
    let mut flags = u64::from(what.namespaces.bits()) | u64::from(libc::CLONE_PIDFD.unsigned_abs());
    let mut arguments = CloneArgs {
        // the kernel writes there: the compiler has to know that somebody may
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = what.cgroup {
        // CLONE_INTO_CGROUP of <linux/sched.h>: bit 33, out of reach of libc's c_int
        flags |= 1 << 33;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    match what.parent {
        Parent::Caller => arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs()),
        Parent::Grandparent => flags |= u64::from(libc::CLONE_PARENT.unsigned_abs()),
    }
    arguments.flags = flags;
    // SAFETY: no CLONE_VM, so the child has its own copy of memory and stack and returns here like after fork; this
    // process has one thread (checked above), so no lock is held by a thread that the child lacks. `arguments` and
    // `pidfd` outlive the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) };
    if answer == 0 {
        return Ok(Cloned::Child);
    }
    let pid = i32::try_from(answer).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
    let Some(pid) = pid else {
        return Err(Error::last(format!(
            "clone3(flags {flags:#x}, cgroup {:?}, parent {:?})",
            what.cgroup.map(|fd| fd.as_raw_fd()),
            what.parent
        )));
    };
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a fresh descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid, pidfd })
}

/// Leaves the shared namespaces named in `namespaces` for new ones.
///
/// # Errors
/// Malformed if this process has more than one thread, or for flags that are not namespaces; the kernel's errno
/// otherwise.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    require_one_thread("unshare")?;
    let others = Namespaces::FILES | Namespaces::FS | Namespaces::SYSVSEM;
    if namespaces.intersects(others) {
        return Err(Error::malformed(format!("unshare({namespaces:?})"), "not a namespace"));
    }
    // SAFETY: CLONE_FILES, which could leave one thread with another's descriptors, was refused above.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }
        .map_err(|errno| Error::call(format!("unshare({namespaces:?})"), errno))
}

fn require_one_thread(call: &str) -> Result<()> {
    // unshare(2): CLONE_THREAD changes nothing in a process of one thread and is EINVAL in any other. No look into
    // /proc, which is another PID namespace's once a mount namespace is joined.
    let flags = rustix::thread::UnshareFlags::from_bits_retain(libc::CLONE_THREAD.unsigned_abs());
    // SAFETY: CLONE_THREAD alone moves nothing, least of all descriptors.
    match unsafe { rustix::thread::unshare_unsafe(flags) } {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL) => {
            Err(Error::malformed(call, "needs a process of one thread"))
        }
        Err(errno) => Err(Error::call("unshare(CLONE_THREAD)", errno)),
    }
}

/// Becomes the program at `path`. Returns only if that failed.
#[must_use]
pub fn exec(path: &CStr, args: &[CString], env: &[CString]) -> Error {
    let args: Vec<*const libc::c_char> = terminated(args);
    let env: Vec<*const libc::c_char> = terminated(env);
    // SAFETY: `path` and every element of both lists are NUL-terminated strings that live until the call is over, and
    // both lists end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Error::last(format!("execve({})", path.to_string_lossy()))
}

/// Becomes the program that `file` is, whatever its path. Returns only if that failed.
#[must_use]
pub fn exec_descriptor(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Error {
    let args: Vec<*const libc::c_char> = terminated(args);
    let env: Vec<*const libc::c_char> = terminated(env);
    // SAFETY: the path is a NUL-terminated literal; every element of both lists is a NUL-terminated string that lives
    // until the call is over, and both lists end with a null pointer. `file` is borrowed for the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Error::last(format!("execveat(fd {})", file.as_raw_fd()))
}

fn terminated(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Closes every descriptor from `first` on, but `kept`.
///
/// For a cloned copy of a process, which holds whatever the original held: afterwards the descriptors of every other
/// live `OwnedFd` and `File` are gone. The caller must use and drop none of them, and leave by [`exec`] or
/// [`exit_immediately`].
///
/// # Errors
/// The kernel's errno.
pub fn close_all_but(first: u32, kept: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut next = first;
    for number in kept {
        if number > next {
            close_range(next, number - 1)?;
        }
        next = next.max(number.saturating_add(1));
    }
    close_range(next, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: no pointer is passed. That owners of these descriptors dangle is the documented effect of
    // `close_all_but`, whose callers touch none of them until exec or `_exit`.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if answer == 0 { Ok(()) } else { Err(Error::last(format!("close_range({first}, {last})"))) }
}

/// Leaves without running destructors or exit handlers, as a cloned copy of a process must.
pub fn exit_immediately(status: i32) -> ! {
    // SAFETY: `_exit` takes a number and does not return.
    unsafe { libc::_exit(status) }
}

/// Undoes what the Rust runtime and [`signal_descriptor`] did to signals, for a program that is executed next:
/// SIGPIPE is deadly again and nothing is blocked.
///
/// # Errors
/// The kernel's errno.
pub fn restore_signals() -> Result<()> {
    // SAFETY: SIG_DFL is no handler, so no code of ours can run in a signal's context.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(Error::last("signal(SIGPIPE, SIG_DFL)"));
    }
    set_mask(libc::SIG_SETMASK, &signal_set(&[])?)
}

/// Has each of `signals` end this process with status 128 + its number.
///
/// That is what they do by default, except to the first process of a PID namespace, for which the kernel drops them.
/// Exec makes them default.
///
/// # Errors
/// The kernel's errno; EINVAL for a number that is no signal.
pub fn end_on(signals: &[i32]) -> Result<()> {
    extern "C" fn end(number: libc::c_int) {
        exit_immediately(128 + number);
    }
    let handler = end as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in signals {
        // SAFETY: the handler only calls _exit, which is safe in a signal's context.
        if unsafe { libc::signal(*signal, handler) } == libc::SIG_ERR {
            return Err(Error::last(format!("signal({signal})")));
        }
    }
    Ok(())
}

/// Blocks `signals` and returns a descriptor from which they are read with [`read_signal`].
///
/// # Errors
/// The kernel's errno; EINVAL for a number that is no signal.
pub fn signal_descriptor(signals: &[i32]) -> Result<OwnedFd> {
    let set = signal_set(signals)?;
    set_mask(libc::SIG_BLOCK, &set)?;
    // SAFETY: `set` is an initialised signal set that lives until the call is over.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(Error::last(format!("signalfd({signals:?})")));
    }
    // SAFETY: signalfd succeeded, so it is a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next signal waiting at a descriptor made by [`signal_descriptor`], if there is one.
///
/// # Errors
/// The kernel's errno.
pub fn read_signal(signals: BorrowedFd<'_>) -> Result<Option<i32>> {
    let mut buffer = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(signals, &mut buffer) {
        Ok(read) if read == buffer.len() => {
            let [a, b, c, d, ..] = buffer;
            Ok(i32::try_from(u32::from_ne_bytes([a, b, c, d])).ok())
        }
        Ok(_) => Err(Error::malformed("signalfd", "short read")),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Error::call("read(signalfd)", errno)),
    }
}

fn signal_set(signals: &[i32]) -> Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by sigemptyset just above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: the set is initialised; a number that is no signal is answered with EINVAL.
        if unsafe { libc::sigaddset(&raw mut set, *signal) } != 0 {
            return Err(Error::last(format!("sigaddset({signal})")));
        }
    }
    Ok(set)
}

fn set_mask(how: libc::c_int, set: &libc::sigset_t) -> Result<()> {
    // SAFETY: `set` is an initialised signal set; the old mask is not asked for.
    if unsafe { libc::sigprocmask(how, set, std::ptr::null_mut()) } == 0 {
        return Ok(());
    }
    Err(Error::last("sigprocmask"))
}

/// Refuses from now on, for this process and its children, memory that is writable and executable, and making
/// executable what was not (`PR_SET_MDWE`, Linux 6.3).
///
/// # Errors
/// EINVAL where the kernel lacks it.
pub fn deny_write_execute() -> Result<()> {
    // PR_SET_MDWE and PR_MDWE_REFUSE_EXEC_GAIN of <linux/prctl.h>
    let (option, gain): (libc::c_int, libc::c_ulong) = (65, 1);
    let zero: libc::c_ulong = 0;
    // SAFETY: this prctl takes numbers only.
    if unsafe { libc::prctl(option, gain, zero, zero, zero) } == 0 {
        return Ok(());
    }
    Err(Error::last("prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN)"))
}

/// Sets the execution domain, for example `PER_LINUX32`.
///
/// # Errors
/// The kernel's errno.
pub fn set_personality(persona: u32) -> Result<()> {
    // SAFETY: personality takes a number only.
    if unsafe { libc::personality(libc::c_ulong::from(persona)) } >= 0 {
        return Ok(());
    }
    Err(Error::last(format!("personality({persona:#x})")))
}

/// Scheduling of one thread, as `struct sched_attr` of <linux/sched/types.h>.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerAttributes {
    /// Bytes of this struct; filled in by [`set_scheduler`].
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// Sets the calling thread's scheduling.
///
/// # Errors
/// The kernel's errno.
pub fn set_scheduler(attributes: &SchedulerAttributes) -> Result<()> {
    let size = u32::try_from(size_of::<SchedulerAttributes>()).unwrap_or(u32::MAX);
    let attributes = SchedulerAttributes { size, ..*attributes };
    // SAFETY: `attributes` is a live `struct sched_attr` (version 0) whose size it states; the kernel copies it.
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if answer == 0 { Ok(()) } else { Err(Error::last(format!("sched_setattr({attributes:?})"))) }
}

/// Sets the calling thread's I/O priority: `class << 13 | level`.
///
/// # Errors
/// The kernel's errno.
pub fn set_io_priority(value: i32) -> Result<()> {
    let who_process = 1;
    // SAFETY: ioprio_set takes numbers only.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_set, who_process, 0, value) };
    if answer == 0 { Ok(()) } else { Err(Error::last(format!("ioprio_set({value:#x})"))) }
}

/// Sets the calling thread's NUMA policy: a mode with its flags, and the nodes as a bit mask of 64-bit words.
///
/// # Errors
/// The kernel's errno.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<()> {
    let bits = nodes.len().saturating_mul(64);
    // the kernel reads one bit less than it is told
    let maximum = if nodes.is_empty() { 0 } else { bits.saturating_add(1) };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the mask is null with a maximum of 0, or holds `bits` bits, of which the kernel reads `maximum - 1`.
    let answer = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, maximum) };
    if answer == 0 {
        Ok(())
    } else {
        Err(Error::last(format!("set_mempolicy({mode:#x}, {nodes:x?})")))
    }
}

/// Gives this process a new session keyring named `name`, or joins the one of that name that it may search, and sets
/// its permissions to `(old & keep) | add` (`KEY_*` bits of keyutils.h).
///
/// # Errors
/// ENOSYS where the kernel has no keyrings; the kernel's errno otherwise.
pub fn join_session_keyring(name: &CStr, keep: u32, add: u32) -> Result<()> {
    // SAFETY: `name` is a NUL-terminated string that the kernel copies.
    let key = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    };
    if key < 0 {
        return Err(Error::last(format!(
            "keyctl(JOIN_SESSION_KEYRING, {})",
            name.to_string_lossy()
        )));
    }
    let mut description = [0_u8; 512];
    // SAFETY: the buffer is writable for the length given.
    let length = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_DESCRIBE,
            key,
            description.as_mut_ptr(),
            description.len(),
        )
    };
    if length < 0 {
        return Err(Error::last(format!("keyctl(DESCRIBE, {key})")));
    }
    let Some(old) = permissions(&description) else {
        return Err(Error::malformed(
            format!("keyctl(DESCRIBE, {key})"),
            "no permissions in the answer",
        ));
    };
    let new = (old & keep) | add;
    // SAFETY: this keyctl takes numbers only.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, key, new) };
    if answer == 0 { Ok(()) } else { Err(Error::last(format!("keyctl(SETPERM, {key}, {new:#x})"))) }
}

/// The fourth field of `type;uid;gid;perm;description`, which is hexadecimal.
fn permissions(description: &[u8]) -> Option<u32> {
    let field = description.split(|byte| *byte == b';').nth(3)?;
    u32::from_str_radix(std::str::from_utf8(field).ok()?, 16).ok()
}

/// Brings the network namespace's loopback interface up.
///
/// # Errors
/// The kernel's errno.
pub fn loopback_up() -> Result<()> {
    // SIOCGIFFLAGS and SIOCSIFFLAGS of <linux/sockios.h>, in the type that this C library's ioctl takes
    const GET_FLAGS: libc::Ioctl = 0x8913;
    const SET_FLAGS: libc::Ioctl = 0x8914;
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| Error::call("socket(AF_INET, SOCK_DGRAM)", errno))?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: `request` is a live ifreq with a NUL-terminated name; the kernel fills in `ifru_flags`.
    if unsafe { libc::ioctl(socket.as_raw_fd(), GET_FLAGS, &raw mut request) } != 0 {
        return Err(Error::last("ioctl(lo, SIOCGIFFLAGS)"));
    }
    // SAFETY: SIOCGIFFLAGS succeeded, so the union holds flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: `request` is a live ifreq with a NUL-terminated name and flags; the kernel only reads it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SET_FLAGS, &raw mut request) } != 0 {
        return Err(Error::last("ioctl(lo, SIOCSIFFLAGS, IFF_UP)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn many_threads_are_refused() {
        let (hold, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let clone = Clone { namespaces: Namespaces::empty(), cgroup: None, parent: Parent::Caller };
        let error = clone3(&clone).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Malformed, "{error}");
        assert!(unshare(Namespaces::NEWUTS).is_err());
        drop(hold);
        other.join().unwrap().unwrap_err();
    }

    #[test]
    fn only_namespaces_are_unshared() {
        let error = unshare(Namespaces::FILES).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Malformed, "{error}");
    }

    #[test]
    fn permissions_of_a_key_are_read_from_its_description() {
        assert_eq!(permissions(b"keyring;0;0;3f130000;_ses.c1\0\0"), Some(0x3f13_0000));
        assert_eq!(permissions(b"keyring;0"), None);
    }

    #[test]
    fn signals_are_read_from_their_descriptor() {
        // in a thread of its own: the mask is the thread's
        let read = std::thread::spawn(|| {
            let fd = signal_descriptor(&[libc::SIGWINCH]).unwrap();
            assert_eq!(read_signal(fd.as_fd()).unwrap(), None);
            // SAFETY: raise takes a number; SIGWINCH is blocked in this thread
            assert_eq!(unsafe { libc::raise(libc::SIGWINCH) }, 0);
            read_signal(fd.as_fd()).unwrap()
        });
        assert_eq!(read.join().unwrap(), Some(libc::SIGWINCH));
    }
}
