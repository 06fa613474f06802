//! What the gate says about a launch, in the words of a [`Plan`].

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hallmark_sys::mount::Attributes;
use hallmark_sys::process::Namespaces;
use serde_json::Value;

use super::Request;
use crate::cgroup::NewCgroup;
use crate::error::{Error, Result};
use crate::gate::{self, CgroupNamespace, Memory, MountDecision, MountNamespace, MountRequest};
use crate::spec::{Joined, Kind, MountKind, MountPlan, Plan, parse_capability};
use crate::state::Hardening;

/// `MAPPER_CTRL_MINOR` of the misc devices: what [`Judged::deny_on_parent`] knows how to deny.
const DEVICE_MAPPER_CONTROL: (u32, u32) = (10, 236);

/// A launch that may go on.
#[derive(Debug)]
pub(super) struct Judged {
    /// The judged root, detached.
    pub(super) rootfs: Option<OwnedFd>,
    /// For each mount of the plan, the verified volume that it binds.
    pub(super) volumes: Vec<Option<OwnedFd>>,
    pub(super) hardening: Hardening,
    /// For state.json.
    pub(super) verdict: Value,
    pub(super) warnings: Vec<String>,
    deny_devices: &'static [(u32, u32)],
}

/// Asks the gate, and changes `plan` as it says: `noexec` on mounts, fewer capabilities, a cgroup namespace.
///
/// # Errors
/// `Refused`: the gate's answer. Any other kind: the gate could not answer, and nothing is launched either.
pub(super) fn judge(request: &Request, plan: &mut Plan) -> Result<Judged> {
    let mounts: Vec<MountRequest> = plan.mounts.iter().map(asked).collect();
    let hooks: Vec<PathBuf> = plan.hooks.programs();
    let launch = gate::launch(&gate::Request {
        container: request.id.as_str(),
        config: Path::new(gate::CONFIG_PATH),
        rootfs_mounts: request.rootfs_mounts.as_deref(),
        args: &plan.process.args,
        env: &plan.process.env,
        mount_label: plan.mount_label.as_deref(),
        mount_namespace: mount_namespace(plan),
        mounts: &mounts,
        hooks: &hooks,
    })?;
    let found = (launch.mounts.len(), launch.volumes.len());
    let expected = plan.mounts.len();
    if found != (expected, expected) {
        return Err(Error::system(format!(
            "gate: found {found:?} decisions on mounts and volumes, expected {expected} of each"
        )));
    }
    for (mount, decision) in plan.mounts.iter_mut().zip(&launch.mounts) {
        if *decision == MountDecision::NoExec {
            no_exec(mount);
        }
    }
    if launch.hardening.cgroup_namespace == CgroupNamespace::Private {
        plan.namespaces.joined.retain(|joined: &Joined| joined.kind != Kind::Cgroup);
        plan.namespaces.new |= Namespaces::NEWCGROUP;
    }
    Ok(Judged {
        rootfs: launch.rootfs,
        volumes: launch.volumes,
        hardening: hardening(&launch.hardening)?,
        verdict: serde_json::to_value(&launch.verdict)?,
        warnings: launch.warnings,
        deny_devices: launch.hardening.deny_devices,
    })
}

/// Forbids execution on the mount and on all beneath it, after everything that the specification asks for.
///
/// By the attributes of the tree: one of the mount itself would make a bind without options one with options, which
/// has exactly those, and no more the `ro`, `nosuid` and `nodev` of its source.
fn no_exec(mount: &mut MountPlan) {
    mount.tree_set = mount.tree_set.union(Attributes::NOEXEC);
    mount.tree_clear = mount.tree_clear.without(Attributes::NOEXEC);
}

fn asked(mount: &MountPlan) -> MountRequest {
    let kind = match mount.kind {
        MountKind::Bind(_) => gate::MountKind::Bind,
        MountKind::Other(_) => gate::MountKind::Filled,
        MountKind::Cgroup
        | MountKind::Mqueue
        | MountKind::Proc
        | MountKind::Sysfs
        | MountKind::Tmpfs(_) => gate::MountKind::Other,
    };
    MountRequest {
        destination: mount.destination.clone().into(),
        source: mount.source.clone(),
        kind,
    }
}

fn mount_namespace(plan: &Plan) -> MountNamespace {
    let joined = plan.namespaces.joined.iter().find(|joined| joined.kind == Kind::Mount);
    match joined {
        Some(joined) => MountNamespace::Joined(joined.path.clone()),
        None if plan.namespaces.makes(Kind::Mount) => MountNamespace::New,
        None => MountNamespace::Inherited,
    }
}

fn hardening(asked: &gate::Hardening) -> Result<Hardening> {
    for name in asked.drop_capabilities {
        parse_capability(name)
            .ok_or_else(|| Error::system(format!("capability {name:?} to drop: unknown")))?;
    }
    Ok(Hardening {
        deny_write_execute: asked.memory == Memory::DenyWriteExecute,
        dropped_capabilities: asked
            .drop_capabilities
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
    })
}

impl Judged {
    /// Denies devices where the container cannot take the denial away again: on its parent cgroup.
    ///
    /// # Errors
    /// What the cgroup says; a device that nobody here knows how to deny.
    pub(super) fn deny_on_parent(&self, cgroup: &NewCgroup) -> Result<()> {
        for device in self.deny_devices {
            if *device != DEVICE_MAPPER_CONTROL {
                return Err(Error::system(format!("device {device:?} to deny: not known")));
            }
            cgroup.deny_device_mapper_on_parent()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::minimal;
    use serde_json::json;

    #[test]
    fn noexec_takes_nothing_else_away() {
        let bind = |options: serde_json::Value| {
            let mount = json!({"destination": "/d", "source": "/s", "options": options});
            let mut plan = minimal(|c| c["mounts"] = json!([mount])).unwrap();
            let mut mount = plan.mounts.remove(0);
            no_exec(&mut mount);
            mount
        };
        let plain = bind(json!(["rbind", "rprivate"]));
        assert!(plain.set.is_empty() && plain.clear.is_empty(), "{plain:?}");
        assert!(plain.tree_set.contains(Attributes::NOEXEC));
        let against = bind(json!(["rbind", "exec", "rexec"]));
        assert!(against.tree_set.contains(Attributes::NOEXEC));
        assert!(!against.tree_clear.contains(Attributes::NOEXEC));
    }
}
