//! What only the runtime, with the host's rights, can set for a process of the container.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdGetfdFlags, Rlimit, pidfd_getfd};

use crate::error::{Context, Result};
use crate::handshake::{self, FromInit, RuntimeEnd, ToInit};
use crate::idle;
use crate::init::{Limits, Translation};
use crate::spec::{IdMaps, Kind, NamespacePlan, ProcessPlan};
use crate::state::LiveProcess;
use hallmark_sys::procfs::Procfs;

/// Of which process and namespaces.
#[derive(Debug)]
pub(crate) struct Settings<'a> {
    pub(crate) process: &'a ProcessPlan,
    pub(crate) namespaces: &'a NamespacePlan,
}

impl Settings<'_> {
    /// What the process needs before it goes on: maps, clock offsets; and its place in the queue for the OOM killer.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn before(&self, pid: Pid, procfs: &Procfs, end: &RuntimeEnd) -> Result<()> {
        self.oom_score(pid, procfs)?;
        let makes_user = self.namespaces.makes(Kind::User);
        if !makes_user && self.namespaces.time_offsets.is_none() {
            return Ok(());
        }
        end.expect(&FromInit::Joined)?;
        let number = pid.as_raw_nonzero();
        if makes_user {
            write_maps(pid, &self.namespaces.id_maps, procfs)?;
        }
        if let Some(offsets) = &self.namespaces.time_offsets {
            procfs.write(&format!("{number}/timens_offsets"), offsets)?;
        }
        end.send(ToInit::Mapped)
    }

    /// # Errors
    /// The kernel's; a score below the current one needs CAP_SYS_RESOURCE.
    pub(crate) fn oom_score(&self, pid: Pid, procfs: &Procfs) -> Result<()> {
        let Some(score) = self.process.oom_score_adj else { return Ok(()) };
        procfs
            .write(&format!("{}/oom_score_adj", pid.as_raw_nonzero()), &score.to_string())
            .context(|| "failed to update /proc/self/oom_score_adj")
    }

    /// Who sets the limits: in a user namespace only we can raise them.
    pub(crate) fn limits_by(&self) -> Limits {
        if self.namespaces.contains(Kind::User) { Limits::Runtime } else { Limits::Own }
    }

    /// Resource limits, if they are ours to set.
    ///
    /// # Errors
    /// The kernel's; a hard limit above the current one needs CAP_SYS_RESOURCE.
    pub(crate) fn limits(&self, pid: Pid) -> Result<()> {
        if self.limits_by() == Limits::Own {
            return Ok(());
        }
        for limit in &self.process.rlimits {
            let new = Rlimit { current: limit.soft(), maximum: limit.hard() };
            rustix::process::prlimit(Some(pid), limit.resource, new)
                .context(|| format!("error setting rlimit {:?}", limit.resource))?;
        }
        Ok(())
    }
}

fn write_maps(pid: Pid, maps: &IdMaps, procfs: &Procfs) -> Result<()> {
    let pid = pid.as_raw_nonzero();
    procfs.write(&format!("{pid}/uid_map"), &IdMaps::text(&maps.uid))?;
    Ok(procfs.write(&format!("{pid}/gid_map"), &IdMaps::text(&maps.gid))?)
}

/// Gives binds of what the container itself has mounted their id maps, to which it has no right.
///
/// # Errors
/// The kernel's.
pub(super) fn translate(
    translations: &[Translation],
    process: &LiveProcess,
    end: &RuntimeEnd,
) -> Result<()> {
    for translation in translations {
        let number = match end.receive()? {
            Some(FromInit::Tree(number)) => number,
            other => return Err(handshake::unexpected(other, "Tree")),
        };
        let tree = pidfd_getfd(&process.pidfd, number, PidfdGetfdFlags::empty())
            .context(|| "pidfd_getfd(mount)")?;
        translation.apply(tree.as_fd())?;
        end.send(ToInit::Translated)?;
    }
    Ok(())
}

/// A user namespace with `maps` and nobody in it, for an id-mapped mount.
///
/// # Errors
/// The kernel's.
pub(super) fn user_namespace(maps: &IdMaps, procfs: &Procfs) -> Result<OwnedFd> {
    let texts = (IdMaps::text(&maps.uid), IdMaps::text(&maps.gid));
    idle::user_namespace(procfs, (&texts.0, &texts.1))
        .context(|| "user namespace of an id-mapped mount")
}
