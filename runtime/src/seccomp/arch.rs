//! Architectures and their system calls.
//!
//! Names and numbers come from the `syscalls` crate (the kernel's own tables, 6.17). x32 is not in it: it is x86_64's
//! table without the calls marked `64` and with those marked `x32`, all with bit 30 set. i386 has some calls twice: by
//! a number of their own and as a sub-call of `socketcall` or `ipc`.
//!
//! Source: arch/x86/entry/syscalls/syscall_64.tbl (column abi), include/uapi/linux/{net,ipc,audit}.h.

#[cfg(target_arch = "x86_64")]
use std::collections::HashSet;

use oci_spec::runtime::Arch;

/// `__X32_SYSCALL_BIT`.
#[cfg(target_arch = "x86_64")]
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// A set of system call numbers. Two of them, x86_64 and x32, share what the kernel tells a filter about the
/// architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    #[cfg(target_arch = "x86_64")]
    X86_64,
    #[cfg(target_arch = "x86_64")]
    X32,
    #[cfg(target_arch = "x86_64")]
    I386,
    #[cfg(target_arch = "aarch64")]
    Aarch64,
    #[cfg(target_arch = "aarch64")]
    Arm,
}

/// `AUDIT_ARCH_*`, as in `seccomp_data.arch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AuditArch(pub(super) u32);

/// How wide the arguments are that a filter may trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// The upper halves are not looked at, as in libseccomp.
    Bits32,
    Bits64,
}

/// The machine's own architecture.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: Abi = Abi::X86_64;
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: Abi = Abi::Aarch64;

/// What `listed` means on this machine, by audit architecture, the machine's own first.
pub(super) fn wanted(listed: &[Arch]) -> Vec<(AuditArch, Vec<Abi>)> {
    let mut wanted: Vec<(AuditArch, Vec<Abi>)> = vec![(NATIVE.audit(), vec![NATIVE])];
    for abi in listed.iter().filter_map(|arch| Abi::parse(*arch)) {
        match wanted.iter_mut().find(|(audit, _)| *audit == abi.audit()) {
            Some((_, abis)) if abis.contains(&abi) => {}
            Some((_, abis)) => abis.push(abi),
            None => wanted.push((abi.audit(), vec![abi])),
        }
    }
    wanted
}

/// Numbers that no program of `abis` uses, and that are killed: x32 calls where only x86_64 is wanted. -1 is not among
/// them: a tracer puts it in place of a call that is to be skipped.
#[cfg(target_arch = "x86_64")]
pub(super) fn strays(abis: &[Abi]) -> &'static [(u32, u32)] {
    match abis {
        [Abi::X86_64] => &[(X32_BIT, u32::MAX - 1)],
        _ => &[],
    }
}

/// Numbers that no program of `abis` uses, and that are killed: none here.
#[cfg(target_arch = "aarch64")]
pub(super) fn strays(_abis: &[Abi]) -> &'static [(u32, u32)] {
    &[]
}

/// A call that is reached through another one: the other's number, and what its first argument then is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Multiplexed {
    pub(super) number: u32,
    pub(super) call: u64,
}

#[cfg(target_arch = "x86_64")]
impl Abi {
    /// The architecture that `arch` names, if this machine can run its programs.
    fn parse(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchX86_64 | Arch::ScmpArchNative => Some(Self::X86_64),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchX86 => Some(Self::I386),
            _ => None,
        }
    }

    pub(super) const fn audit(self) -> AuditArch {
        match self {
            Self::X86_64 | Self::X32 => AuditArch(0xc000_003e),
            Self::I386 => AuditArch(0x4000_0003),
        }
    }

    pub(super) const fn width(self) -> Width {
        match self {
            Self::X86_64 => Width::Bits64,
            Self::X32 | Self::I386 => Width::Bits32,
        }
    }

    /// The numbers among which this one's calls lie, first and last.
    pub(super) const fn spaces(self) -> &'static [(u32, u32)] {
        match self {
            Self::X86_64 => &[(0, X32_BIT - 1), (X32_BIT * 2, X32_BIT * 3 - 1)],
            Self::X32 => &[(X32_BIT, X32_BIT * 2 - 1), (X32_BIT * 3, u32::MAX)],
            Self::I386 => &[(0, u32::MAX)],
        }
    }

    /// Every call, number and name.
    pub(super) fn table(self) -> Box<dyn Iterator<Item = (u32, &'static str)>> {
        match self {
            Self::X86_64 => Box::new(table_64()),
            Self::X32 => {
                let others = HashSet::from(ONLY_64);
                let common = table_64().filter(move |(_, name)| !others.contains(name));
                let all = common.chain((512..).zip(ONLY_X32));
                Box::new(all.map(|(number, name)| (number | X32_BIT, name)))
            }
            Self::I386 => {
                use syscalls::x86::Sysno;
                let calls = (0_u32..).zip(0..=last(Sysno::last().id()));
                Box::new(
                    calls.filter_map(|(number, id)| Some((number, plain(Sysno::new(id)?.name())))),
                )
            }
        }
    }

    /// Calls that have a second way, or only this one (`accept`, `send`, `semop`…).
    pub(super) fn multiplexed(self) -> impl Iterator<Item = (&'static str, Multiplexed)> {
        const SOCKETCALL: u32 = 102;
        const IPC: u32 = 117;
        let through = |number| move |(name, call)| (name, Multiplexed { number, call });
        let socket = SOCKET_CALLS.into_iter().map(through(SOCKETCALL));
        let all = socket.chain(IPC_CALLS.into_iter().map(through(IPC)));
        all.filter(move |_| self == Self::I386)
    }
}

#[cfg(target_arch = "x86_64")]
fn table_64() -> impl Iterator<Item = (u32, &'static str)> {
    use syscalls::x86_64::Sysno;
    let calls = (0_u32..).zip(0..=last(Sysno::last().id()));
    calls.filter_map(|(number, id)| Some((number, plain(Sysno::new(id)?.name()))))
}

/// `SYS_*` of include/uapi/linux/net.h. `recvmmsg` and `sendmmsg` have numbers older than the direct socket calls, and
/// libseccomp filters only those.
#[cfg(target_arch = "x86_64")]
const SOCKET_CALLS: [(&str, u64); 18] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
];

/// `SEMOP` and the others of include/uapi/linux/ipc.h.
#[cfg(target_arch = "x86_64")]
const IPC_CALLS: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// Calls of the x86_64 table that x32 has not, or under a number of its own.
#[cfg(target_arch = "x86_64")]
const ONLY_64: [&str; 47] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uselib",
    "vserver",
    // and those of ONLY_X32
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// x32's own calls, from number 512 on without a gap.
#[cfg(target_arch = "x86_64")]
const ONLY_X32: [&str; 36] = {
    let mut own = [""; 36];
    let mut at = 0;
    while at < own.len() {
        own[at] = ONLY_64[ONLY_64.len() - own.len() + at];
        at += 1;
    }
    own
};

#[cfg(target_arch = "aarch64")]
impl Abi {
    /// The architecture that `arch` names, if this machine can run its programs.
    fn parse(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchAarch64 | Arch::ScmpArchNative => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    pub(super) const fn audit(self) -> AuditArch {
        match self {
            Self::Aarch64 => AuditArch(0xc000_00b7),
            Self::Arm => AuditArch(0x4000_0028),
        }
    }

    pub(super) const fn width(self) -> Width {
        match self {
            Self::Aarch64 => Width::Bits64,
            Self::Arm => Width::Bits32,
        }
    }

    /// The numbers among which this one's calls lie, first and last.
    pub(super) const fn spaces(self) -> &'static [(u32, u32)] {
        &[(0, u32::MAX)]
    }

    /// Every call, number and name.
    pub(super) fn table(self) -> Box<dyn Iterator<Item = (u32, &'static str)>> {
        match self {
            Self::Aarch64 => {
                use syscalls::aarch64::Sysno;
                let calls = (0_u32..).zip(0..=last(Sysno::last().id()));
                Box::new(
                    calls.filter_map(|(number, id)| Some((number, plain(Sysno::new(id)?.name())))),
                )
            }
            Self::Arm => {
                use syscalls::arm::Sysno;
                // ARM's private calls lie far above the others
                let calls =
                    (0_u32..1024).zip(0..1024).chain((0x0f_0000..0x0f_0010).zip(0x0f_0000..));
                Box::new(
                    calls.filter_map(|(number, id)| Some((number, plain(Sysno::new(id)?.name())))),
                )
            }
        }
    }

    /// No call is reached through another one here.
    pub(super) fn multiplexed(self) -> impl Iterator<Item = (&'static str, Multiplexed)> {
        std::iter::empty()
    }
}

/// A number of the crate, never negative.
fn last(id: i32) -> usize {
    usize::try_from(id).unwrap_or(0)
}

/// The crate spells `break` as Rust must.
fn plain(name: &'static str) -> &'static str {
    name.strip_prefix("r#").unwrap_or(name)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_kernels_numbers() {
        let number = |abi: Abi, call: &str| {
            abi.table().find(|(_, name)| *name == call).map(|(number, _)| number)
        };
        for (name, on_64, on_x32, on_386) in [
            ("read", Some(0), Some(X32_BIT), Some(3)),
            ("ioctl", Some(16), Some(X32_BIT | 514), Some(54)),
            ("pwritev2", Some(328), Some(X32_BIT | 547), Some(379)),
            ("uselib", Some(134), None, Some(86)),
            ("uretprobe", Some(335), Some(X32_BIT | 335), None),
            ("clone3", Some(435), Some(X32_BIT | 435), Some(435)),
            ("break", None, None, Some(17)),
            ("socket", Some(41), Some(X32_BIT | 41), Some(359)),
            ("no_such_call", None, None, None),
        ] {
            assert_eq!(number(Abi::X86_64, name), on_64, "{name}");
            assert_eq!(number(Abi::X32, name), on_x32, "{name}");
            assert_eq!(number(Abi::I386, name), on_386, "{name}");
        }
    }

    #[test]
    fn the_machines_own_architecture_is_always_in() {
        let native = (AuditArch(0xc000_003e), vec![Abi::X86_64]);
        for listed in [&[][..], &[Arch::ScmpArchAarch64], &[Arch::ScmpArchX86_64]] {
            assert_eq!(wanted(listed), std::slice::from_ref(&native));
        }
        let all = [Arch::ScmpArchX86, Arch::ScmpArchX32, Arch::ScmpArchNative, Arch::ScmpArchX86];
        assert_eq!(
            wanted(&all),
            [
                (AuditArch(0xc000_003e), vec![Abi::X86_64, Abi::X32]),
                (AuditArch(0x4000_0003), vec![Abi::I386])
            ]
        );
    }
}
