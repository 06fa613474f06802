//! What a filter answers, as the kernel's 32 bits.

use oci_spec::runtime::LinuxSeccompAction;

/// An answer of a filter: action in the high, data in the low 16 bits (include/uapi/linux/seccomp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;

impl Action {
    pub(super) const KILL_THREAD: Self = Self(0);
    pub(super) const ENOSYS: Self = Self(ERRNO | ENOSYS);
    pub(super) const ALLOW: Self = Self(0x7fff_0000);
    pub(super) const LOG: Self = Self(0x7ffc_0000);

    /// `action` with its data: the errno of ERRNO, the message of TRACE, both EPERM if not said.
    pub(super) fn new(action: LinuxSeccompAction, data: Option<u32>) -> Self {
        let data = data.unwrap_or(EPERM) & 0xffff;
        match action {
            LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
                Self::KILL_THREAD
            }
            LinuxSeccompAction::ScmpActKillProcess => Self(0x8000_0000),
            LinuxSeccompAction::ScmpActTrap => Self(0x0003_0000),
            LinuxSeccompAction::ScmpActErrno => Self(ERRNO | data),
            LinuxSeccompAction::ScmpActNotify => Self(0x7fc0_0000),
            LinuxSeccompAction::ScmpActTrace => Self(TRACE | data),
            LinuxSeccompAction::ScmpActLog => Self::LOG,
            LinuxSeccompAction::ScmpActAllow => Self::ALLOW,
        }
    }

    /// Whether a call goes on: an unknown one then gets the kernel's own ENOSYS. A tracer is expected to know calls.
    pub(super) const fn lets_through(self) -> bool {
        matches!(self, Self::ALLOW | Self::LOG) || self.0 & 0xffff_0000 == TRACE
    }
}
