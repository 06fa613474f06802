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
//! Who makes the directories is the [`Driver`]'s affair; all else is the same for both, but that limits are told to
//! systemd as well ([`systemd`]).

mod delegation;
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
mod systemd;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::ops::Deref;

use rustix::fs::OFlags;
use rustix::process::Pid;

use crate::dbus::Value;

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
pub use systemd::Trust;

use dir::{Dir, Made, Version};
use group::{Group, Traces};
use layout::Layout;
use serde::{Deserialize, Serialize};
use systemd::{Devices, NewScope, Scope};

/// Who makes the directories: we do, or systemd is asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Directories made by the runtime.
    Cgroupfs,
    /// Scopes asked of systemd.
    Systemd,
}

/// Where a container's control groups are to be, and who makes them.
#[derive(Debug)]
pub(crate) enum Place {
    Directory(CgroupPath),
    Scope(Scope, Vec<Value>),
}

impl Place {
    /// What `linux.cgroupsPath` says to the driver, and the annotations to systemd.
    ///
    /// # Errors
    /// [`Error::Path`]; of systemd's driver [`Error::Value`].
    pub(crate) fn parse(
        driver: Driver,
        (path, id): (Option<&str>, &str),
        (annotations, trust): (&BTreeMap<String, String>, Trust),
    ) -> Result<Self, Error> {
        Ok(match driver {
            Driver::Cgroupfs => Self::Directory(CgroupPath::parse(path, id)?),
            Driver::Systemd => {
                let properties = systemd::from_annotations(annotations, trust)?;
                Self::Scope(Scope::parse(path, id)?, properties)
            }
        })
    }

    /// The directory in every hierarchy.
    pub(crate) fn path(&self) -> &CgroupPath {
        match self {
            Self::Directory(path) => path,
            Self::Scope(scope, _) => scope.path(),
        }
    }
}

/// A container's control groups: its directory in v2, or one in each v1 hierarchy (and in cgroup2 beside them).
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
    /// [`Version::V2`]: the only hierarchy is cgroup2.
    version: Version,
    /// The scope that they are, if systemd made them.
    unit: Option<String>,
}

/// Control groups that go away again, with the directories made on the way, unless [`commit`](Self::commit)ted.
#[derive(Debug)]
pub struct NewCgroup {
    cgroup: Cgroup,
    // dropped first: directories below a scope are busy while it is there
    scope: Option<NewScope>,
    traces: Traces,
}

impl Cgroup {
    /// Makes the container's control groups at `place` in every hierarchy.
    ///
    /// A directory that is there already is taken only if it is empty and not frozen: somebody else's processes would
    /// share the container's limits, and be killed with it.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::Frozen`], [`Error::NotMounted`], what systemd and what the kernel answer.
    pub(crate) fn create(place: Place, resources: &Resources) -> Result<NewCgroup, Error> {
        let layout = Layout::read()?;
        let version = match layout {
            Layout::V1(_) => Version::V1,
            Layout::V2(_) => Version::V2,
        };
        // from here on an error removes what was made
        let mut traces = Traces::new();
        let (path, scope) = match place {
            Place::Directory(path) => (path, None),
            Place::Scope(scope, properties) => {
                // systemd would take a directory that is there, whoever made it
                Self::existing(scope.path())?.refuse_if_in_use()?;
                let new = NewScope::start(&scope, version, resources, properties)?;
                (scope.path().clone(), Some((new, scope.unit().to_owned())))
            }
        };
        let (mut cgroup, made) = match layout {
            Layout::V2(root) => v2::make(&root, &path, resources, &mut traces)?,
            Layout::V1(hierarchies) => v1::make(hierarchies, &path, &mut traces)?,
        };
        if made == Made::Before && scope.is_none() {
            cgroup.refuse_if_in_use()?;
        }
        let (scope, unit) = scope.unzip();
        cgroup.unit = unit;
        Ok(NewCgroup { cgroup, scope, traces })
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
        Ok(Self { groups, version, unit: None })
    }

    /// Opens the control groups of a container whose state was saved with [`paths`](Self::paths).
    ///
    /// Hierarchies in which the directory is gone are left out: deleting twice is no error.
    ///
    /// # Errors
    /// [`Error::Path`] for a path that is not below the mount point of its hierarchy.
    pub fn from_paths(paths: &BTreeMap<String, String>, driver: Driver) -> Result<Self, Error> {
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
        let named = paths.values().next().and_then(|path| path.rsplit_once('/'));
        let unit = named.filter(|_| driver == Driver::Systemd).map(|(_, name)| name.to_owned());
        Ok(Self { groups, version, unit })
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
    /// makes no sense; [`Error::Write`] with the kernel's refusal, [`Error::Unit`] with systemd's.
    pub fn apply(&self, resources: &Resources) -> Result<(), Error> {
        self.set_limits(resources, Devices::Set)?;
        self.set_devices(resources.devices.as_deref().unwrap_or_default())
    }

    /// Sets the limits of `next` (see [`Resources::updated_by`]); if one is refused, those of `previous` again.
    ///
    /// # Errors
    /// As [`apply`](Self::apply), for `next`.
    pub fn update(&self, previous: &Resources, next: &Resources) -> Result<(), Error> {
        self.set_limits(next, Devices::Leave).inspect_err(|_refused| {
            // the refusal is what the caller has to hear; a value that was there before is accepted again
            drop(self.set_limits(previous, Devices::Leave));
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

    fn set_limits(&self, resources: &Resources, devices: Devices) -> Result<(), Error> {
        let Some(unit) = &self.unit else { return self.write_limits(resources) };
        if self.version == Version::V2 {
            // systemd would let the kernel kill the container first
            v2::refuse_below_usage(&self.v2()?.dir, resources)?;
        }
        self.write_limits(&systemd::set_limits(unit, self.version, resources, devices)?)
    }

    fn write_limits(&self, resources: &Resources) -> Result<(), Error> {
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
    /// Gives a scope to the user its container runs as; directories of our own stay root's, as with runc.
    ///
    /// # Errors
    /// What chown(2) answers.
    pub fn delegate(&self, owner: u32) -> Result<(), Error> {
        if self.scope.is_some() { self.cgroup.delegate(owner) } else { Ok(()) }
    }

    /// Sets what can be set before the first process is in. A scope's limits come later: they would count the process
    /// that keeps it.
    ///
    /// # Errors
    /// As [`Cgroup::apply`].
    pub fn prepare(&self, resources: &Resources) -> Result<(), Error> {
        if self.scope.is_some() { Ok(()) } else { self.cgroup.apply(resources) }
    }

    /// Sets the rest, once the container's first process is in.
    ///
    /// # Errors
    /// As [`Cgroup::apply`].
    pub fn settle(&mut self, resources: &Resources) -> Result<(), Error> {
        let Some(scope) = &mut self.scope else { return Ok(()) };
        self.cgroup.apply(resources)?;
        scope.settle();
        Ok(())
    }

    /// Keeps the control groups: the container lives.
    #[must_use]
    pub fn commit(self) -> Cgroup {
        self.traces.keep();
        if let Some(scope) = self.scope {
            scope.keep();
        }
        self.cgroup
    }
}

impl Deref for NewCgroup {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.cgroup
    }
}
