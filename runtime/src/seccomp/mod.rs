//! seccomp: an OCI profile compiled to one classic BPF program, without libseccomp.
//!
//! ```text
//! ld arch
//! arch == x86_64? ── ld nr ── binary tree over ranges of numbers ── ret action
//!        │no                                                    └── tests on arguments ── ret action or default
//! arch == i386?   ── …
//!        │no
//! ret KILL (an architecture that the profile does not name)
//! ```
//!
//! What runc with libseccomp decides, this decides (held by a test that asks libseccomp about every number):
//!
//! - a name that an architecture does not have is passed over; the machine's own architecture is always in;
//! - of several rules for one call, one without conditions wins, else the first whose conditions hold; a rule that says
//!   what the default says is passed over; conditions that name one argument twice are alternatives;
//! - numbers above the highest that the profile names answer ENOSYS unless the default lets calls through, so that
//!   programs fall back from calls younger than the profile;
//! - x32 numbers (bit 30) are killed unless the profile has x32; -1, by which a tracer skips a call, is not;
//! - on i386 the socket and IPC calls are also filtered inside `socketcall` and `ipc`.
//!
//! A tree keeps every path short: the kernel walks the filter once for each number at installation, and for each call
//! later that is not plainly allowed.
//!
//! Source: seccomp(2); libseccomp 2.5 `db.c`, `gen_bpf.c`, `arch-x86.c`; runc 1.5 `libcontainer/seccomp`.

mod action;
mod arch;
mod assemble;
mod poke;
mod rule;

// the vectors and libseccomp's answers are those of x86_64
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod cases;
#[cfg(any(test, fuzzing))]
#[cfg(target_arch = "x86_64")]
mod interpret;
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod oracle;
#[cfg(fuzzing)]
#[cfg(target_arch = "x86_64")]
pub mod plain;

use std::os::fd::OwnedFd;

use hallmark_sys::seccomp::{FilterFlags, Instruction, Listener, MAX_INSTRUCTIONS, install};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

use action::Action;
use assemble::Assembler;
use rule::Profile;

pub(crate) use poke::deny_poke;

/// Why a profile cannot be compiled, in runc's words where they exist.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Every call would wait for a supervisor, the one that hands over its descriptor included.
    #[error("SCMP_ACT_NOTIFY cannot be used as default action")]
    NotifyByDefault,
    /// The listener's descriptor is handed over by a write.
    #[error("SCMP_ACT_NOTIFY cannot be used for the write syscall")]
    NotifyOnWrite,
    /// A call has six arguments.
    #[error("seccomp rule for {syscall}: argument {index}, calls have 0 to 5")]
    Argument {
        /// The first name of the rule.
        syscall: String,
        /// What it says.
        index: usize,
    },
    /// The kernel takes 4096 instructions.
    #[error("seccomp profile needs {0} instructions, the kernel takes 4096")]
    TooLong(usize),
}

/// A compiled profile, ready to be installed by the process it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: FilterFlags,
    listener: Listener,
}

impl Filter {
    /// The program.
    #[must_use]
    pub fn program(&self) -> &[Instruction] {
        &self.program
    }

    /// The flags of seccomp(2) that go with it.
    #[must_use]
    pub const fn flags(&self) -> FilterFlags {
        self.flags
    }

    /// All flags as seccomp(2) takes them, the listener's included.
    #[must_use]
    pub const fn bits(&self) -> u64 {
        /// `SECCOMP_FILTER_FLAG_NEW_LISTENER` of <linux/seccomp.h>.
        const NEW_LISTENER: u64 = 1 << 3;
        match self.listener {
            Listener::Wanted => self.flags.bits() | NEW_LISTENER,
            Listener::Absent => self.flags.bits(),
        }
    }

    /// Whether a supervisor decides on some calls, so that [`install`](Self::install) returns its descriptor.
    #[must_use]
    pub const fn listener(&self) -> Listener {
        self.listener
    }

    /// Installs the program in the calling thread; see [`hallmark_sys::seccomp::install`].
    ///
    /// # Errors
    /// What seccomp(2) answers.
    pub fn install(&self) -> hallmark_sys::Result<Option<OwnedFd>> {
        install(&self.program, self.flags, self.listener)
    }
}

/// Compiles `profile` for this machine.
///
/// Architectures that this machine cannot run (a profile for ARM lists them on x86) are passed over.
///
/// # Errors
/// See [`Error`].
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, Error> {
    let rules = Profile::new(profile)?;
    let mut code = Assembler::ending_with(Action::KILL_THREAD);
    let wanted = arch::wanted(profile.architectures().as_deref().unwrap_or_default());
    // written from its end: the machine's own architecture comes first in the program
    for (audit, abis) in wanted.iter().rev() {
        code.prepend_arch(*audit, &rules.segments(abis));
    }
    let program = code.finish();
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLong(program.len()));
    }
    // runc's default where the profile says nothing, which is not the same as an empty list
    let unsaid = [LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow];
    let said = profile.flags().as_deref().unwrap_or(&unsaid);
    let flags = said.iter().map(|flag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => FilterFlags::LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FilterFlags::SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
            FilterFlags::WAIT_KILLABLE_RECV
        }
        // one thread: nothing to synchronise
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => FilterFlags::default(),
    });
    let flags = flags.fold(FilterFlags::default(), FilterFlags::union);
    let notify = LinuxSeccompAction::ScmpActNotify;
    let listener = match profile.syscalls().iter().flatten().any(|rule| rule.action() == notify) {
        true => Listener::Wanted,
        false => Listener::Absent,
    };
    Ok(Filter { program, flags, listener })
}
