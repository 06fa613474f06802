//! What can go wrong with control groups, in runc's words where callers match them.

use rustix::io::Errno;

/// Why a control group could not be made, set or removed. The cause, if the kernel gave one, is the source.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what the message above them prints")]
pub enum Error {
    /// systemd's driver, and another first process.
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NoSystemd,
    /// systemd's driver for somebody else than root.
    #[error("the systemd cgroup driver is for root: a user's own systemd is not asked")]
    NotRoot,
    /// systemd refused.
    #[error("unable to {call} unit {unit:?}")]
    Unit { call: &'static str, unit: String, source: crate::dbus::Error },
    /// systemd's job ended otherwise than well.
    #[error("error creating systemd unit `{unit}`: got `{result}`")]
    Job { unit: String, result: String },
    /// The way to systemd.
    #[error("failed to connect to dbus")]
    Bus(#[from] crate::dbus::Error),
    /// A path that leads where no container may be.
    #[error("cgroupsPath {path:?}: {reason}")]
    Path { path: String, reason: &'static str },
    /// `exec --cgroup` with a path that climbs.
    #[error("bad sub cgroup path: {0}")]
    SubPath(String),
    /// Neither v1 nor v2.
    #[error("no cgroup hierarchy is mounted at /sys/fs/cgroup")]
    NotMounted,
    /// Something else is mounted where cgroups belong.
    #[error("{path} is not on a cgroup filesystem")]
    NotCgroup { path: String },
    /// Somebody's processes are in the container's control group already.
    #[error("container's cgroup is not empty: {0} process(es) found")]
    NotEmpty(usize),
    /// The control group was there, and frozen.
    #[error("container's cgroup unexpectedly frozen")]
    Frozen,
    /// A limit whose controller is not mounted or not switched on.
    #[error("cannot set {controller} limit: container could not join or create cgroup")]
    NoController { controller: &'static str, source: Option<Box<Self>> },
    /// The control group above holds processes of its own.
    #[error("cannot enter cgroupv2 {path:?} with domain controllers -- it is in {state}")]
    Threaded { path: String, state: String },
    /// A system call refused.
    #[error("{call} {path}")]
    Call { call: &'static str, path: String, source: Errno },
    /// The kernel refused a value.
    #[error("write {value:?} to {path}")]
    Write { path: String, value: String, source: Errno },
    /// The kernel answered something unknown.
    #[error("{path}: {found:?} is not {expected}")]
    Content { path: String, found: String, expected: &'static str },
    /// A value that no kernel would take, or that contradicts another.
    #[error("{0}")]
    Value(String),
    /// The container forks faster than it freezes.
    #[error("unable to freeze")]
    FreezeTimeout,
    /// There is no freezer.
    #[error("cannot toggle freezer: cgroups not configured for container")]
    NoFreezer,
    /// Processes that do not go away.
    #[error("{path}: still busy: {left} process(es) left after {waited_ms} ms")]
    Busy { path: String, left: usize, waited_ms: u64 },
    /// The denial would hit the node itself, or cannot be expressed.
    #[error("device-mapper cannot be denied on the parent of {path}: {reason}")]
    DeviceMapperParent { path: String, reason: &'static str },
    /// bpf(2) refused.
    #[error("{call} on {path}")]
    Bpf { call: &'static str, path: String, source: hallmark_sys::Error },
}

impl Error {
    /// The errno behind this error, where the kernel gave one.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call { source, .. } | Self::Write { source, .. } => Some(*source),
            _ => None,
        }
    }
}
