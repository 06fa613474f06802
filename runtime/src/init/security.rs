//! `no_new_privs`, write-or-execute memory, and seccomp.
//!
//! seccomp without `no_new_privs` needs CAP_SYS_ADMIN, so it comes before the capabilities go; with it, it comes last,
//! so that the profile has to allow as little as possible of what we do ourselves: `execve`, and what hooks do.

use std::os::fd::{AsFd, BorrowedFd};

use super::Common;
use crate::error::{Context, Result};
use crate::handshake;
use crate::spec::ProcessPlan;
use crate::state::Hardening;

pub(super) fn no_new_privileges(process: &ProcessPlan) -> Result<()> {
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).context(|| "prctl(PR_SET_NO_NEW_PRIVS)")?;
    }
    Ok(())
}

/// What the gate adds on a node that defends against native code made at run time: no memory of its own that is
/// written to and executed, and no writing to another process' code.
pub(super) fn deny_write_execute(hardening: &Hardening) -> Result<()> {
    if hardening.deny_write_execute {
        hallmark_sys::process::deny_write_execute()?;
    }
    if hardening.deny_pokes {
        crate::seccomp::deny_poke()?.install().context(|| "deny PTRACE_POKETEXT").map(drop)?;
    }
    Ok(())
}

pub(super) fn seccomp_early(common: &Common<'_>) -> Result<()> {
    if common.process.no_new_privileges { Ok(()) } else { seccomp(common, common.end.as_fd()) }
}

/// `runtime` is whoever gave the word to start.
pub(super) fn seccomp_late(common: &Common<'_>, runtime: BorrowedFd<'_>) -> Result<()> {
    if common.process.no_new_privileges { seccomp(common, runtime) } else { Ok(()) }
}

fn seccomp(common: &Common<'_>, runtime: BorrowedFd<'_>) -> Result<()> {
    let Some(filter) = common.filter else { return Ok(()) };
    match filter.install().context(|| "unable to init seccomp")? {
        // only a profile that asks a supervisor has one
        Some(listener) => handshake::offer_listener(runtime, listener.as_fd()),
        None => Ok(()),
    }
}
