//! What the gate says about a launch, in the words of a [`Plan`].

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hallmark_sys::mount::{Attributes, Extent, Propagation};
use hallmark_sys::process::Namespaces;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use super::Request;
use crate::cgroup::{NewCgroup, Trust};
use crate::error::{Context, Error, Result};
use crate::gate::{
    self, Access, CgroupNamespace, HookRequest, Memory, MountDecision, MountNamespace,
    MountRequest, Pokes, Processes, Runs, Unverified,
};
use crate::spec::{
    CopyUp, Covers, Hook, Joined, Kind, MountKind, MountPlan, Plan, parse_capability,
};
use crate::state::Hardening;
use hallmark_sys::procfs::{self, Procfs};

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
pub(super) fn judge(request: &Request, plan: &mut Plan, procfs: &Procfs) -> Result<Judged> {
    let mounts: Vec<MountRequest> = plan.mounts.iter().map(asked).collect();
    let hooks: Vec<HookRequest> = plan.hooks.lists().iter().flat_map(hooks_asked).collect();
    let launch = gate::launch(&gate::Request {
        container: request.id.as_str(),
        config: Path::new(gate::CONFIG_PATH),
        rootfs_mounts: request.rootfs_mounts.as_deref(),
        root: &plan.rootfs,
        args: &plan.process.args,
        cwd: Path::new(&plan.process.cwd),
        env: &plan.process.env,
        mount_label: plan.mount_label.as_deref(),
        mount_namespace: mount_namespace(plan),
        processes: processes(plan, procfs)?,
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
    for (mount, volume) in plan.mounts.iter_mut().zip(&launch.volumes) {
        if volume.is_none() && launch.unverified == Unverified::CoversData {
            mount.covers = Covers::Data;
        }
    }
    set_environments(plan, &launch.hook_environments)?;
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

/// Forbids execution on the mount and on all beneath it, after everything that the specification asks for. What the
/// host mounts there later is as the host mounts it, and shows only where the specification asks for that.
///
/// By the attributes of the tree: one of the mount itself would make a bind without options one with options, which
/// has exactly those, and no more the `ro`, `nosuid` and `nodev` of its source.
fn no_exec(mount: &mut MountPlan) {
    mount.tree_set = mount.tree_set.union(Attributes::NOEXEC);
    mount.tree_clear = mount.tree_clear.without(Attributes::NOEXEC);
    if !mount.propagation.iter().any(receives) {
        mount.propagation = vec![(Propagation::Private, Extent::Tree)];
    }
}

/// Whether the mount is asked to show what the host mounts beneath its source later.
fn receives((propagation, _): &(Propagation, Extent)) -> bool {
    matches!(propagation, Propagation::Shared | Propagation::Slave)
}

/// Without an environment of its own a hook has the runtime's.
fn hooks_asked((name, hooks): &(&'static str, &[Hook])) -> Vec<HookRequest> {
    let own = || std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    let runs = if *name == "startContainer" { Runs::Inside } else { Runs::Outside };
    let asked = |hook: &Hook| HookRequest {
        path: hook.path.clone(),
        args: hook.args.clone(),
        env: hook.env.clone().unwrap_or_else(own),
        runs,
    };
    hooks.iter().map(asked).collect()
}

/// Gives every hook the environment that root allows it, in the configuration as well: `start` and `delete` read their
/// hooks from there.
fn set_environments(plan: &mut Plan, environments: &[Option<Vec<String>>]) -> Result<()> {
    if environments.iter().all(Option::is_none) {
        return Ok(());
    }
    for (hook, environment) in plan.hooks.all_mut().zip(environments) {
        if environment.is_some() {
            hook.env.clone_from(environment);
        }
    }
    plan.save_hook_environments()
}

fn asked(mount: &MountPlan) -> MountRequest {
    let kind = match mount.kind {
        MountKind::Bind(_) => gate::MountKind::Bind,
        // with what is there when it is made, which an earlier mount may have brought
        MountKind::Other(_) | MountKind::Tmpfs(CopyUp::Yes) => gate::MountKind::Filled,
        MountKind::Cgroup
        | MountKind::Mqueue
        | MountKind::Proc
        | MountKind::Sysfs
        | MountKind::Tmpfs(CopyUp::No) => gate::MountKind::Other,
    };
    let read_only = mount.set.union(mount.tree_set).contains(Attributes::READ_ONLY);
    MountRequest {
        destination: mount.destination.clone().into(),
        source: mount.source.clone(),
        kind,
        access: if read_only { Access::ReadOnly } else { Access::ReadWrite },
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

/// The host's are those that we see ourselves, be it in its own PID namespace or through a bind.
fn processes(plan: &Plan, procfs: &Procfs) -> Result<Processes> {
    if is_own(plan, Kind::User)? {
        return Ok(Processes::Contained);
    }
    let shown = !is_own(plan, Kind::Pid)? || shows_the_host(plan, procfs)?;
    Ok(if shown { Processes::Host } else { Processes::Contained })
}

/// Whether a bind brings the host's procfs or control groups along: through them a container reaches the host's
/// processes, and leaves the control group on which devices are denied to it.
fn shows_the_host(plan: &Plan, procfs: &Procfs) -> Result<bool> {
    let table = procfs.read_text("thread-self/mountinfo")?;
    let views = || table.lines().filter_map(host_view);
    for mount in &plan.mounts {
        let (MountKind::Bind(extent), Some(source)) = (mount.kind.clone(), &mount.source) else {
            continue;
        };
        // one that is not there is the launch's own error, later
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::open(source, flags, Mode::empty()) else { continue };
        let magic = rustix::fs::fstatfs(&fd).context(|| source.display().to_string())?.f_type;
        let place = procfs.place_of(fd.as_fd())?;
        let beneath = extent == Extent::Tree && views().any(|view| view.starts_with(&place));
        if beneath || u64::try_from(magic).is_ok_and(|magic| HOST_VIEWS.contains(&magic)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// procfs, cgroup and cgroup2, by their numbers in <linux/magic.h>.
const HOST_VIEWS: [u64; 3] = [procfs::MAGIC, 0x27_e0eb, 0x6367_7270];

/// The mount point of a line of mountinfo, if one of [`HOST_VIEWS`] is mounted there.
pub(crate) fn host_view(line: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let kind = right.split(' ').next()?;
    let point = left.split(' ').nth(4)?;
    matches!(kind, "proc" | "cgroup" | "cgroup2").then(|| point.into())
}

/// Whether the container's namespace of a kind is another than ours.
fn is_own(plan: &Plan, kind: Kind) -> Result<bool> {
    if plan.namespaces.makes(kind) {
        return Ok(true);
    }
    let joined = plan.namespaces.joined.iter().find(|joined| joined.kind == kind);
    let Some(joined) = joined else { return Ok(false) };
    let identity = |path: &Path| -> Result<(u64, u64)> {
        let stat = rustix::fs::stat(path).context(|| path.display().to_string())?;
        Ok((stat.st_dev, stat.st_ino))
    };
    let ours = format!("/proc/self/ns/{}", kind.file());
    Ok(identity(&joined.path)? != identity(Path::new(&ours))?)
}

fn hardening(asked: &gate::Hardening) -> Result<Hardening> {
    for name in asked.drop_capabilities {
        parse_capability(name)
            .ok_or_else(|| Error::system(format!("capability {name:?} to drop: unknown")))?;
    }
    Ok(Hardening {
        deny_write_execute: asked.memory == Memory::DenyWriteExecute,
        deny_pokes: asked.pokes == Pokes::Denied,
        dropped_capabilities: asked
            .drop_capabilities
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
    })
}

impl Judged {
    /// Which annotations may speak to systemd: under enforce none that reach beyond the container.
    pub(super) fn annotations(&self) -> Trust {
        if self.deny_devices.is_empty() { Trust::All } else { Trust::Harmless }
    }

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
    fn the_hosts_processes_are_known_by_any_name() {
        let of = |namespaces: serde_json::Value| {
            let plan = minimal(|c| c["linux"]["namespaces"] = namespaces).unwrap();
            processes(&plan, &Procfs::open().unwrap()).unwrap()
        };
        let pid = |path: &str| json!({"type": "pid", "path": path});
        assert_eq!(of(json!([{"type": "mount"}])), Processes::Host);
        assert_eq!(of(json!([{"type": "mount"}, pid("/proc/self/ns/pid")])), Processes::Host);
        assert_eq!(of(json!([{"type": "mount"}, {"type": "pid"}])), Processes::Contained);
        let bound = |source: &str, option: &str| {
            let bind = json!({"destination": "/h", "source": source, "options": [option]});
            let plan = minimal(|c| {
                c["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
                c["mounts"] = json!([bind]);
            });
            processes(&plan.unwrap(), &Procfs::open().unwrap()).unwrap()
        };
        assert_eq!(bound("/proc/self", "bind"), Processes::Host);
        assert_eq!(bound("/sys/fs/cgroup", "rbind"), Processes::Host);
        assert_eq!(bound("/", "rbind"), Processes::Host);
        assert_eq!(bound("/", "bind"), Processes::Contained);
        assert_eq!(bound("/etc", "rbind"), Processes::Contained);
        let user = json!({"type": "user", "path": "/proc/self/ns/user"});
        assert_eq!(of(json!([{"type": "mount"}, user])), Processes::Host);
    }

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
        // what comes later would not be noexec
        assert_eq!(bind(json!(["rbind"])).propagation, [(Propagation::Private, Extent::Tree)]);
    }

    #[test]
    fn a_hooks_environment_is_kept_for_start_and_delete() {
        let hook = json!({"path": "/bin/true", "env": ["LD_PRELOAD=/evil.so"]});
        let hooks = json!({"prestart": [hook], "poststop": [hook]});
        let mut plan = minimal(|c| c["hooks"] = hooks).unwrap();
        let allowed = vec!["PATH=/sbin".to_owned()];
        set_environments(&mut plan, &[Some(allowed.clone()), Some(allowed.clone())]).unwrap();
        let saved = Plan::parse(plan.config.get().as_bytes(), &plan.bundle).unwrap();
        assert_eq!(plan.hooks.prestart[0].env, Some(allowed.clone()));
        assert_eq!(saved.hooks.poststop[0].env, Some(allowed));
        let untouched = minimal(|c| c["hooks"] = json!({"prestart": [hook]})).unwrap();
        assert_eq!(untouched.hooks.prestart[0].env, Some(vec!["LD_PRELOAD=/evil.so".to_owned()]));
    }
}
