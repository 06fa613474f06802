//! What `enforce` adds to every container, privileged ones too.
//!
//! Why each: [`Memory::DenyWriteExecute`] closes private mappings of signed files that are written to and run (IPE
//! judges the file, not the page); [`Pokes::Denied`] closes PTRACE_POKETEXT, which writes through a read-only mapping,
//! on nodes where the kernel controls execution (elsewhere whoever could poke may as well bring a program); a holder of
//! CAP_MAC_ADMIN switches IPE off, CAP_MAC_OVERRIDE leaves its label, CAP_SYS_MODULE adds kernel code, CAP_SYS_BOOT replaces the kernel (kexec); whoever opens
//! device-mapper's control node can forge a "signed" volume, and a container in the host's cgroup namespace can leave
//! the cgroup on which that is denied. The denial belongs on the *parent* cgroup: a program on the container's own can
//! be detached from inside. A container that sees the host's processes, in its PID
//! namespace or through a bind of its /proc or control groups, would undo all of it: with CAP_SYS_PTRACE it
//! writes into them, with CAP_SYS_ADMIN it enters their namespaces. It gets neither.

use hallmark_trust::{Enforcement, ExecControl};

/// What the runtime has to apply, all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardening {
    /// For the first process and every later one.
    pub memory: Memory,
    /// For the first process and every later one.
    pub pokes: Pokes,
    /// Names of capabilities that no set of any process may hold.
    pub drop_capabilities: &'static [&'static str],
    /// Which cgroup namespace the container gets.
    pub cgroup_namespace: CgroupNamespace,
    /// Character devices that the container's parent cgroup denies: (major, minor).
    pub deny_devices: &'static [(u32, u32)],
}

/// Whose processes the container sees, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processes {
    /// Its own, another container's, or in a user namespace of its own, which gives no power over the host's.
    Contained,
    /// The host's, as root of the host.
    Host,
}

/// Memory that is written to and executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// As the specification asks for.
    AsAsked,
    /// `PR_SET_MDWE` with `PR_MDWE_REFUSE_EXEC_GAIN`.
    DenyWriteExecute,
}

/// Another process' code written over through ptrace(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pokes {
    /// As the specification asks for.
    AsAsked,
    /// A seccomp filter against PTRACE_POKETEXT and POKEDATA.
    Denied,
}

/// The container's cgroup namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupNamespace {
    /// As the specification asks for.
    AsAsked,
    /// A new one, whatever the specification asks for.
    Private,
}

/// Misc major and `MAPPER_CTRL_MINOR` of <linux/miscdevice.h>.
const DEVICE_MAPPER_CONTROL: (u32, u32) = (10, 236);

impl Hardening {
    /// What a mode adds: all of it that the node's exec control gives a sense, or under audit nothing.
    pub fn of(mode: Enforcement, exec_control: ExecControl, processes: Processes) -> Self {
        match mode {
            Enforcement::Enforce => Self {
                memory: Memory::DenyWriteExecute,
                pokes: match exec_control {
                    ExecControl::Ipe => Pokes::Denied,
                    ExecControl::LaunchOnly => Pokes::AsAsked,
                },
                drop_capabilities: match processes {
                    Processes::Contained => {
                        &["CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_SYS_BOOT", "CAP_SYS_MODULE"]
                    }
                    Processes::Host => &[
                        "CAP_MAC_ADMIN",
                        "CAP_MAC_OVERRIDE",
                        "CAP_SYS_ADMIN",
                        "CAP_SYS_BOOT",
                        "CAP_SYS_MODULE",
                        "CAP_SYS_PTRACE",
                    ],
                },
                cgroup_namespace: CgroupNamespace::Private,
                deny_devices: &[DEVICE_MAPPER_CONTROL],
            },
            Enforcement::Audit => Self {
                memory: Memory::AsAsked,
                pokes: Pokes::AsAsked,
                drop_capabilities: &[],
                cgroup_namespace: CgroupNamespace::AsAsked,
                deny_devices: &[],
            },
        }
    }
}
