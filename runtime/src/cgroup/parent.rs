//! Device-mapper's control node denied on the control group *above* the container's.
//!
//! A container with CAP_SYS_ADMIN can detach the device program of its own control group, or write its own
//! `devices.allow`; it cannot reach the group above if its cgroup namespace is private. So the denial of c 10:236 sits
//! there, once for all containers of that group.
//!
//! | layout | how | what it does not do |
//! |---|---|---|
//! | v2 | eBPF program, ALLOW_MULTI | bind who is not below the group; hold where the container has the host's cgroup namespace |
//! | v1, hybrid | `devices.deny` | the same; refused where the group above allows by a wildcard; a container below whose rules allow `c 10:*`, or `c *:*` beside single block devices, does not start |
//!
//! Neither counts against the host's root. On v2 a container with every capability was seen to detach its own program
//! and still be refused by the one above (Linux 6.12). On v1 a child's rules are checked against its parent's at every
//! write of `devices.allow` (security/device_cgroup.c, `verify_new_ex`).

use std::os::fd::AsFd as _;

use hallmark_sys::bpf::{DeviceProgram, attached_device_programs};

use super::devices::{Access, Device, Kind, Policy, Verdict};
use super::dir::{Dir, Version};
use super::filter;
use super::group::Group;
use super::{Cgroup, Error};

/// `/dev/mapper/control`: misc major 10, `MAPPER_CTRL_MINOR` 236.
const CONTROL: Device = Device { major: Some(10), minor: Some(236), kind: Kind::Char };
/// To read or to write is to open.
const OPEN: Access = Access::READ.union(Access::WRITE);
const PROGRAM_NAME: &str = "hallmark_no_dm";

/// How the denial is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentDenial {
    /// A device program on the group above, in cgroup2.
    Ebpf,
    /// `devices.deny` of the group above, in the v1 devices hierarchy.
    DevicesController,
}

impl Cgroup {
    /// Denies device-mapper's control node to everything below the group that holds this container's, and stays so
    /// after the container is gone. Repeating it changes nothing.
    ///
    /// Only for containers with a private cgroup namespace and no cgroup mount of the host: those with the host's can
    /// move themselves out.
    ///
    /// # Errors
    /// [`Error::DeviceMapperParent`] where the group above is the hierarchy's root or holds this process: the denial
    /// would hit the node's own daemons; or where v1 cannot express it. [`Error::Bpf`], [`Error::Write`].
    pub fn deny_device_mapper_on_parent(&self) -> Result<ParentDenial, Error> {
        let group = match self.version {
            Version::V2 => self.v2()?,
            Version::V1 => self
                .groups
                .iter()
                .find(|group| group.has("devices"))
                .ok_or(Error::NoController { controller: "devices", source: None })?,
        };
        let refuse =
            |reason| Error::DeviceMapperParent { path: group.dir.path().to_owned(), reason };
        if group.is_at_root() {
            return Err(refuse("the group above is the root, which holds the node's own daemons"));
        }
        if holds_this_process(group)? {
            return Err(refuse(
                "the group above holds this runtime, and so its daemons; put the container below another (cgroupsPath, --cgroup-parent)",
            ));
        }
        match self.version {
            Version::V2 => attach(&group.parent).map(|()| ParentDenial::Ebpf),
            Version::V1 => write_deny(&group.parent)?
                .then_some(ParentDenial::DevicesController)
                .ok_or_else(|| {
                    refuse("the group above allows it through a wildcard, which v1 cannot narrow")
                }),
        }
    }
}

/// One program of this content is enough: the kernel takes 64, and containers come and go.
fn attach(parent: &Dir) -> Result<(), Error> {
    let fail = |call| move |source| Error::Bpf { call, path: parent.path().to_owned(), source };
    let program = DeviceProgram::load(PROGRAM_NAME, &filter::assemble_denial(CONTROL))
        .map_err(fail("load device-mapper denial"))?;
    let tag = program.tag().map_err(fail("ask for a program's tag"))?;
    for other in attached_device_programs(parent.as_fd()).map_err(fail("list device programs"))? {
        if other.tag().map_err(fail("ask for a program's tag"))? == tag {
            return Ok(());
        }
    }
    program.attach(parent.as_fd()).map_err(fail("attach device-mapper denial"))
}

/// Whether the denial holds afterwards. An allowing group does not list what it denies: there the write itself counts.
///
/// Not mknod: a node that cannot be opened does nothing, and with mknod denied above, v1 would refuse every container
/// below its usual `c *:* m`.
fn write_deny(parent: &Dir) -> Result<bool, Error> {
    parent.write("devices.deny", &format!("{CONTROL} {OPEN}"))?;
    let policy = Policy::parse_list(&parent.read("devices.list")?)?;
    let covers = |device: &Device| {
        device.kind == CONTROL.kind
            && device.major.is_none_or(|major| Some(major) == CONTROL.major)
            && device.minor.is_none_or(|minor| Some(minor) == CONTROL.minor)
    };
    Ok(policy.default == Verdict::Allow
        || policy
            .exceptions
            .iter()
            .all(|(device, access)| !covers(device) || !access.intersects(OPEN)))
}

/// Whether the group above the container's is this process's own, or above it.
fn holds_this_process(group: &Group) -> Result<bool, Error> {
    let own = group.path_of("self")?;
    let parent = group.parent_path();
    Ok(own.is_some_and(|own| {
        own.strip_prefix(&parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }))
}
