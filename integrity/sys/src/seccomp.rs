//! Installing a compiled seccomp program in the calling thread.
//!
//! The thread needs `no_new_privs` or CAP_SYS_ADMIN. Other threads are left alone (no TSYNC): the caller is a
//! container's first process, which has one. A program can only be added, never taken away.
//!
//! Source: seccomp(2); include/uapi/linux/{seccomp,filter}.h.

use std::os::fd::{FromRawFd, OwnedFd};

use crate::{Error, Result};

/// Most instructions the kernel takes in one program (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// One instruction of classic BPF, as the kernel lays out `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions to skip if the test holds.
    pub jt: u8,
    /// How many instructions to skip if it does not.
    pub jf: u8,
    /// Constant or offset.
    pub k: u32,
}

/// Flags of seccomp(2) that an OCI profile can ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FilterFlags(libc::c_ulong);

impl FilterFlags {
    /// Log every answer but "allow".
    pub const LOG: Self = Self(libc::SECCOMP_FILTER_FLAG_LOG);
    /// Leave the speculative store bypass mitigation as it is.
    pub const SPEC_ALLOW: Self = Self(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    /// Only fatal signals interrupt a call that a supervisor has received (Linux 5.19).
    pub const WAIT_KILLABLE_RECV: Self = Self(1 << 5);

    /// Both sets of flags.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits as seccomp(2) takes them.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// Whether a supervisor outside decides on some calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// The program holds no "notify" answer.
    Absent,
    /// The kernel returns the descriptor on which the supervisor listens.
    Wanted,
}

/// Installs `program` in the calling thread, from this call on and for every child.
///
/// Returns the listener's descriptor (close-on-exec) exactly if one was wanted. Allocates nothing on success, so that
/// it may be called between clone and exec.
///
/// # Errors
/// EACCES without `no_new_privs` and CAP_SYS_ADMIN; EINVAL for a program that the kernel's checker refuses or a flag
/// that this kernel lacks; EBUSY if a listener is there already; and a program that is empty or too long.
pub fn install(
    program: &[Instruction],
    flags: FilterFlags,
    listener: Listener,
) -> Result<Option<OwnedFd>> {
    let len = match u16::try_from(program.len()) {
        Ok(len) if len > 0 && program.len() <= MAX_INSTRUCTIONS => len,
        _ => {
            return Err(Error::malformed(
                format!("seccomp program of {} instructions", program.len()),
                "the kernel takes 1 to 4096",
            ));
        }
    };
    let fprog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    let flags = match listener {
        Listener::Absent => flags.0,
        Listener::Wanted => flags.0 | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    };
    // SAFETY: the kernel only reads `fprog` and the `len` instructions behind it, which `program` borrows for the
    // whole call; `Instruction` has the layout of `struct sock_filter` (repr(C), held by a test below).
    let returned = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog)
    };
    if returned < 0 {
        return Err(Error::last(format!(
            "seccomp(SET_MODE_FILTER, {flags:#x}, {len} instructions)"
        )));
    }
    match (listener, i32::try_from(returned)) {
        (Listener::Absent, _) | (_, Err(_)) => Ok(None),
        // SAFETY: with NEW_LISTENER the call returns a new descriptor that nobody else holds.
        (Listener::Wanted, Ok(fd)) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RET: u16 = 0x06;
    const LD_ABS: u16 = 0x20;
    const JEQ: u16 = 0x15;

    #[test]
    fn instruction_has_the_kernels_layout() {
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
        assert_eq!(
            std::mem::offset_of!(Instruction, jt),
            std::mem::offset_of!(libc::sock_filter, jt)
        );
        assert_eq!(
            std::mem::offset_of!(Instruction, jf),
            std::mem::offset_of!(libc::sock_filter, jf)
        );
        assert_eq!(
            std::mem::offset_of!(Instruction, k),
            std::mem::offset_of!(libc::sock_filter, k)
        );
    }

    #[test]
    fn empty_and_too_long_programs_are_refused() {
        let one = Instruction { code: RET, jt: 0, jf: 0, k: 0x7fff_0000 };
        for count in [0, MAX_INSTRUCTIONS + 1] {
            let error = install(&vec![one; count], FilterFlags::default(), Listener::Absent)
                .expect_err("the kernel would not take it");
            assert_eq!(error.kind(), crate::ErrorKind::Malformed);
        }
    }

    /// The program counts for the installing thread only: the test's other threads go on.
    #[test]
    fn an_installed_program_answers() {
        let program = [
            Instruction { code: LD_ABS, jt: 0, jf: 0, k: 0 },
            Instruction { code: JEQ, jt: 0, jf: 1, k: u32::try_from(libc::SYS_getppid).unwrap() },
            Instruction { code: RET, jt: 0, jf: 0, k: 0x0005_0000 | 77 },
            Instruction { code: RET, jt: 0, jf: 0, k: 0x7fff_0000 },
        ];
        let answer = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let fd = install(&program, FilterFlags::LOG, Listener::Absent).unwrap();
            assert!(fd.is_none());
            // SAFETY: getppid takes nothing and changes nothing.
            let returned = unsafe { libc::syscall(libc::SYS_getppid) };
            (returned, std::io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(answer.join().unwrap(), (-1, Some(77)));
    }

    #[test]
    fn a_wanted_listener_is_returned() {
        let program = [Instruction { code: RET, jt: 0, jf: 0, k: 0x7fff_0000 }];
        let fd = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            install(&program, FilterFlags::default(), Listener::Wanted).unwrap()
        });
        let fd = fd.join().unwrap().expect("a descriptor");
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}
