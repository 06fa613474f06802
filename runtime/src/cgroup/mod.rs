//! Control groups: the container's place in every hierarchy, its limits, its processes, its end.
//!
//! ```text
//! parent                                           child (one thread)
//! CgroupPath::parse ─► Cgroup::create ─► NewCgroup
//!                      apply(resources)
//!                      join() ─► Join ── clone3(CLONE_INTO_CGROUP = join.clone_into()) ─►
//!                                                  join.enter(): "0" into each v1 `tasks`
//!                      commit() ─► Cgroup, paths() into state.json
//! later: Cgroup::from_paths ─► freeze, thaw, kill_all, pids, update, join (exec), delete
//! ```
//!
//! Why the child moves itself: a write of another pid, or any write to `cgroup.procs`, waits for an RCU grace period
//! (7 to 15 ms); `tasks` = "0" by a process of one thread, and CLONE_INTO_CGROUP, do not.
//!
//! | layout | place | limits by | devices by | join by |
//! |---|---|---|---|---|
//! | v2 | one directory | v2 files | eBPF program | CLONE_INTO_CGROUP |
//! | v1 | one directory a hierarchy | v1 files | `devices.allow`, `devices.deny` | `tasks` |
//! | hybrid | as v1, and one in cgroup2 | v1 files | as v1 | `tasks` and CLONE_INTO_CGROUP |
//!
//! Only the cgroupfs driver: systemd's is refused by name.

mod devices;
mod dir;
mod error;
mod filter;
mod freezer;
mod from_spec;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod group;
#[cfg(test)]
mod kernel;
mod layout;
mod limits;
mod oom;
mod parent;
mod path;
mod processes;
mod resources;
mod stats;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::ops::Deref;

use rustix::fs::OFlags;
use rustix::process::Pid;

pub use devices::DeviceRule;
pub use error::Error;
pub use freezer::FreezerState;
pub use group::Join;
pub use oom::OomNotifier;
pub use parent::ParentDenial;
pub use path::CgroupPath;
pub use resources::{
    BlockIo, Cpu, HugepageLimit, InterfacePriority, Memory, Network, Pids, Rdma, Resources,
    ThrottleDevice, WeightDevice,
};

pub use stats::Stats;

use dir::{Dir, Made, Version};
use group::{Group, Traces};
use layout::Layout;

/// Who makes the directories: we do, or systemd is asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Directories made by the runtime.
    Cgroupfs,
    /// Scopes asked of systemd.
    Systemd,
}

/// A container's control groups: its directory in v2, or one in each v1 hierarchy (and in cgroup2 beside them).
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
    /// [`Version::V2`]: the only hierarchy is cgroup2.
    version: Version,
}

/// Control groups that go away again, with the directories made on the way, unless [`commit`](Self::commit)ted.
#[derive(Debug)]
pub struct NewCgroup {
    cgroup: Cgroup,
    traces: Traces,
}

impl Cgroup {
    /// Makes the container's control groups at `path` in every hierarchy.
    ///
    /// A directory that is there already is taken only if it is empty and not frozen: somebody else's processes would
    /// share the container's limits, and be killed with it.
    ///
    /// # Errors
    /// [`Error::SystemdDriver`], [`Error::NotEmpty`], [`Error::Frozen`], [`Error::NotMounted`], and what the kernel
    /// answers.
    pub fn create(
        path: &CgroupPath,
        driver: Driver,
        resources: &Resources,
    ) -> Result<NewCgroup, Error> {
        if driver == Driver::Systemd {
            return Err(Error::SystemdDriver);
        }
        let mut traces = Traces::new();
        // from here on an error removes what was made
        let (cgroup, made) = match Layout::read()? {
            Layout::V2(root) => v2::make(&root, path, resources, &mut traces)?,
            Layout::V1(hierarchies) => v1::make(hierarchies, path, &mut traces)?,
        };
        if made == Made::Before {
            cgroup.refuse_if_in_use()?;
        }
        Ok(NewCgroup { cgroup, traces })
    }

    /// Opens what there is of control groups at `path`.
    ///
    /// # Errors
    /// [`Error::NotMounted`], and what the kernel answers.
    pub fn existing(path: &CgroupPath) -> Result<Self, Error> {
        let (hierarchies, version) = hierarchies()?;
        let mut groups = Vec::new();
        for hierarchy in hierarchies {
            let kind = if hierarchy.controllers.is_empty() { Version::V2 } else { Version::V1 };
            groups.extend(Group::open(&hierarchy.root, (hierarchy.controllers, kind), path)?);
        }
        Ok(Self { groups, version })
    }

    /// Opens the control groups of a container whose state was saved with [`paths`](Self::paths).
    ///
    /// Hierarchies in which the directory is gone are left out: deleting twice is no error.
    ///
    /// # Errors
    /// [`Error::Path`] for a path that is not below the mount point of its hierarchy.
    pub fn from_paths(paths: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut groups = Vec::new();
        let (hierarchies, version) = hierarchies()?;
        for hierarchy in hierarchies {
            let saved = match &hierarchy.controllers[..] {
                [] => paths.get(""),
                controllers => controllers.iter().find_map(|controller| paths.get(controller)),
            };
            let Some(saved) = saved else { continue };
            let below = saved.strip_prefix(hierarchy.root.path()).and_then(|p| p.strip_prefix('/'));
            let below = below.ok_or_else(|| Error::Path {
                path: saved.clone(),
                reason: "it is not below its hierarchy's mount point",
            })?;
            let kind = if hierarchy.controllers.is_empty() { Version::V2 } else { Version::V1 };
            let path = CgroupPath::parse_saved(below)?;
            groups.extend(Group::open(&hierarchy.root, (hierarchy.controllers, kind), &path)?);
        }
        Ok(Self { groups, version })
    }

    /// Controller to directory, for the state file; cgroup2 has the key `""`, as in runc's.
    #[must_use]
    pub fn paths(&self) -> BTreeMap<String, String> {
        let mut paths = BTreeMap::new();
        for group in &self.groups {
            let path = group.dir.path();
            if group.version == Version::V2 {
                paths.insert(String::new(), path.to_owned());
            }
            paths.extend(group.controllers.iter().map(|name| (name.clone(), path.to_owned())));
        }
        paths
    }

    /// Sets every limit, and which devices may be used: what the spec lists, then the devices every container has.
    ///
    /// # Errors
    /// [`Error::NoController`] if a limit is asked for whose controller is not there; [`Error::Value`] for a value that
    /// makes no sense; [`Error::Write`] with the kernel's refusal.
    pub fn apply(&self, resources: &Resources) -> Result<(), Error> {
        self.set_limits(resources)?;
        self.set_devices(resources.devices.as_deref().unwrap_or_default())
    }

    /// Sets the limits of `next` (see [`Resources::updated_by`]); if one is refused, those of `previous` again.
    ///
    /// # Errors
    /// As [`apply`](Self::apply), for `next`.
    pub fn update(&self, previous: &Resources, next: &Resources) -> Result<(), Error> {
        self.set_limits(next).inspect_err(|_refused| {
            // the refusal is what the caller has to hear; a value that was there before is accepted again
            drop(self.set_limits(previous));
        })
    }

    /// What moves a new process into the control groups: the container's first process, and each exec.
    ///
    /// # Errors
    /// What opening the files answers.
    pub fn join(&self) -> Result<Join, Error> {
        self.join_sub("")
    }

    /// As [`join`](Self::join), into `sub` below the container's control groups (`exec --cgroup`).
    ///
    /// # Errors
    /// [`Error::SubPath`] for a `sub` with `..`; ENOENT if it is not there.
    pub fn join_sub(&self, sub: &str) -> Result<Join, Error> {
        let names = path::parse_sub(sub)?;
        self.join_each(|_| names.clone())
    }

    fn join_each<'a>(&self, names: impl Fn(&Group) -> Vec<&'a str>) -> Result<Join, Error> {
        let mut join = Join { tasks: Vec::new(), into: None };
        for group in &self.groups {
            let dir = group.below(&names(group))?;
            match group.version {
                Version::V1 => join.tasks.push(dir.open("tasks", OFlags::WRONLY)?),
                Version::V2 => join.into = Some(dir.into_fd()),
            }
        }
        Ok(join)
    }

    /// As [`join_sub`](Self::join_sub) for the arguments of `exec --cgroup`: one path for all hierarchies, or
    /// `controller[,controller]:path` for some.
    ///
    /// # Errors
    /// As for `join_sub`; [`Error::Value`] for a controller that is not there or is named twice.
    pub fn join_places(&self, places: &[String]) -> Result<Join, Error> {
        let places = path::parse_places(places)?;
        let known = |name: &&str| name.is_empty() || self.groups.iter().any(|g| g.has(name));
        if let Some(unknown) = places.keys().find(|name| !known(name)) {
            return Err(Error::Value(format!("unknown controller {unknown} in --cgroup")));
        }
        self.join_each(|group| {
            let own = group.controllers.iter().find_map(|name| places.get(name.as_str()));
            own.or_else(|| places.get("")).cloned().unwrap_or_default()
        })
    }

    /// As [`join`](Self::join), but in cgroup2 next to the container's first process `init`: for an exec into a
    /// container that moved its processes below its own group, which then takes none (EBUSY).
    ///
    /// # Errors
    /// [`Error::SubPath`] if `init` is not in the container's control group or below it.
    pub fn join_beside(&self, init: Pid) -> Result<Join, Error> {
        let mut join = self.join()?;
        if let Ok(group) = self.v2() {
            let place = group.path_of(&init.as_raw_nonzero().to_string())?.unwrap_or_default();
            let own = group.own_path();
            let below =
                place.strip_prefix(&own).filter(|rest| rest.is_empty() || rest.starts_with('/'));
            let below = below.ok_or_else(|| Error::SubPath(place.clone()))?;
            join.into = Some(group.below(&path::parse_sub(below)?)?.into_fd());
        }
        Ok(join)
    }

    fn set_limits(&self, resources: &Resources) -> Result<(), Error> {
        match self.version {
            Version::V1 => v1::set_limits(self, resources),
            Version::V2 => v2::set_limits(&self.v2()?.dir, resources),
        }
    }

    fn set_devices(&self, rules: &[DeviceRule]) -> Result<(), Error> {
        let wanted = devices::Policy::new(rules)?;
        match self.version {
            Version::V1 => v1::set_devices(self, &wanted),
            Version::V2 => v2::set_devices(&self.v2()?.dir, &wanted),
        }
    }

    fn refuse_if_in_use(&self) -> Result<(), Error> {
        let pids = self.pids()?;
        if !pids.is_empty() {
            return Err(Error::NotEmpty(pids.len()));
        }
        if self.freezer_state()? == FreezerState::Frozen {
            return Err(Error::Frozen);
        }
        Ok(())
    }

    /// The directory with the v1 `controller`.
    fn v1(&self, controller: &'static str) -> Result<&Dir, Error> {
        let group = self.groups.iter().find(|group| group.has(controller));
        group.map(|group| &group.dir).ok_or(Error::NoController { controller, source: None })
    }

    /// The directory in cgroup2.
    fn v2(&self) -> Result<&Group, Error> {
        self.groups.iter().find(|group| group.version == Version::V2).ok_or(Error::NotMounted)
    }
}

/// Every hierarchy there is; cgroup2 has no controllers of its own here.
fn hierarchies() -> Result<(Vec<layout::Mounted>, Version), Error> {
    Ok(match Layout::read()? {
        Layout::V2(root) => (vec![layout::Mounted { controllers: Vec::new(), root }], Version::V2),
        Layout::V1(hierarchies) => (hierarchies, Version::V1),
    })
}

impl NewCgroup {
    /// Keeps the control groups: the container lives.
    #[must_use]
    pub fn commit(self) -> Cgroup {
        self.traces.keep();
        self.cgroup
    }
}

impl Deref for NewCgroup {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.cgroup
    }
}
