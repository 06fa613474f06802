//! The attributes of a bind mount: what its options name, and what holds of its source whatever they say.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hallmark_sys::mount::{self, Attributes, Change, Extent};
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;

use super::attach::{self, Bind};
use super::mounts::guard;
use super::root::Root;
use crate::error::{Context, Error, Result};
use crate::spec::{Kind, MountPlan, Plan};

/// Attributes that a user namespace may not take from a mount it was given.
const LOCKABLE: Attributes = Attributes::READ_ONLY
    .union(Attributes::NOSUID)
    .union(Attributes::NODEV)
    .union(Attributes::NOEXEC);

/// Whether the attributes of a source can be taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Free,
    /// In a user namespace they stay: a host's read-only mount must not come out writable.
    Locked,
}

/// Attaches `bind` at the destination of `mount`.
pub(super) fn attach(mount: &MountPlan, bind: Bind, root: &Root, plan: &Plan) -> Result<OwnedFd> {
    let target = root.mount_point(&mount.destination, bind.kind)?;
    guard(mount, target.as_fd(), bind.content, root)?;
    let source = if plan.namespaces.contains(Kind::User) { Source::Locked } else { Source::Free };
    set_attributes(mount, bind.tree.as_fd(), source)?;
    attach::move_to(bind.tree.as_fd(), target.as_fd())?;
    Ok(bind.tree)
}

/// As runc: a bind with any option has exactly the options it names, one without keeps those of its source; naming no
/// way to note access times keeps that of the source.
fn set_attributes(mount: &MountPlan, tree: BorrowedFd<'_>, source: Source) -> Result<()> {
    let asked = Asked::of(mount);
    if asked.set.is_empty() && mount.clear.is_empty() && asked.access_time.is_none() {
        return Ok(());
    }
    let held = match source {
        Source::Free => Attributes::none(),
        Source::Locked => locked(mount, tree, &asked)?,
    };
    let set = asked.set.union(held).union(asked.access_time.unwrap_or(Attributes::none()));
    let times = match asked.access_time {
        Some(_) => Attributes::ATIME_MODE.union(Attributes::NODIRATIME),
        None => Attributes::none(),
    };
    let all = LOCKABLE.union(Attributes::NOSYMFOLLOW);
    let change = Change { set, clear: all.without(set).union(times), ..Change::default() };
    Ok(mount::set_attributes(tree, Extent::Mount, &change)?)
}

/// What the options of a bind name.
struct Asked {
    /// Without those that say how access times are noted.
    set: Attributes,
    /// That, whole, if an option says so: `nodiratime` alone means relatime, as for mount(2).
    access_time: Option<Attributes>,
}

impl Asked {
    fn of(mount: &MountPlan) -> Self {
        let directories = mount.set.intersection(Attributes::NODIRATIME);
        let named = mount.access_time.is_some() || !directories.is_empty();
        let mode = mount.access_time.unwrap_or(Attributes::none()).union(directories);
        Self { set: mount.set.without(Attributes::NODIRATIME), access_time: named.then_some(mode) }
    }
}

/// The attributes of the source that stay.
///
/// # Errors
/// If the options name the opposite of one.
fn locked(mount: &MountPlan, tree: BorrowedFd<'_>, asked: &Asked) -> Result<Attributes> {
    let (held, access_time) = attributes(tree)?;
    if asked.access_time.is_some_and(|asked| asked != access_time) {
        return Err(Error::from(Errno::PERM).within("cannot change locked atime flags"));
    }
    let opposed = held.intersection(mount.clear);
    if opposed.is_empty() {
        return Ok(held);
    }
    // what goes was the mount's own; what stays is the file system's, and asking for its opposite does no harm
    let change = Change { clear: opposed, ..Change::default() };
    mount::set_attributes(tree, Extent::Mount, &change)?;
    let (left, _) = attributes(tree)?;
    if left.contains(opposed) {
        return Ok(held.without(opposed));
    }
    Err(Error::from(Errno::PERM).within("cannot clear locked flags"))
}

/// Of the mount and its file system: what can be locked, and how access times are noted.
fn attributes(tree: BorrowedFd<'_>) -> Result<(Attributes, Attributes)> {
    let flags = rustix::fs::fstatvfs(tree).context(|| "fstatvfs")?.f_flag;
    let pick = |pairs: &[(StatVfsMountFlags, Attributes)]| {
        let found = pairs.iter().filter(|(flag, _)| flags.contains(*flag));
        found.fold(Attributes::none(), |all, (_, attribute)| all.union(*attribute))
    };
    let held = pick(&[
        (StatVfsMountFlags::RDONLY, Attributes::READ_ONLY),
        (StatVfsMountFlags::NOSUID, Attributes::NOSUID),
        (StatVfsMountFlags::NODEV, Attributes::NODEV),
        (StatVfsMountFlags::NOEXEC, Attributes::NOEXEC),
    ]);
    let times = pick(&[
        (StatVfsMountFlags::NOATIME, Attributes::NOATIME),
        (StatVfsMountFlags::NODIRATIME, Attributes::NODIRATIME),
    ]);
    let strict = !flags.intersects(StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME);
    Ok((held, if strict { times.union(Attributes::STRICTATIME) } else { times }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::minimal;
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen,
    };
    use serde_json::json;

    /// A mount attached nowhere, with `attributes`.
    fn source(attributes: MountAttrFlags) -> OwnedFd {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap()
    }

    fn bound(
        from: MountAttrFlags,
        options: &[&str],
        of: Source,
    ) -> Result<(Attributes, Attributes)> {
        let tree = source(from);
        let mount =
            json!([{"destination": "/d", "source": "/s", "type": "bind", "options": options}]);
        let plan = minimal(|config| config["mounts"] = mount).unwrap();
        set_attributes(&plan.mounts[0], tree.as_fd(), of)?;
        attributes(tree.as_fd())
    }

    #[test]
    fn a_hosts_attributes_stay_in_a_user_namespace() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
        let quiet =
            read_only | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOATIME;
        let held = |of| bound(quiet, &["bind", "nosuid"], of).unwrap();
        let nosuid = Attributes::NOSUID;
        let kept = nosuid.union(Attributes::READ_ONLY).union(Attributes::NOEXEC);
        assert_eq!(held(Source::Locked), (kept, Attributes::NOATIME));
        assert_eq!(held(Source::Free), (nosuid, Attributes::NOATIME));
        for opposite in ["rw", "exec", "relatime", "strictatime", "nodiratime"] {
            let refused = bound(quiet, &["bind", opposite], Source::Locked).unwrap_err();
            assert!(refused.to_string().ends_with("operation not permitted"), "{refused}");
            bound(quiet, &["bind", opposite], Source::Free).unwrap();
        }
    }

    #[test]
    fn access_times_are_noted_as_before_unless_an_option_says_how() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let quiet = MountAttrFlags::MOUNT_ATTR_NOATIME;
        let times = |options: &[&str]| bound(quiet, options, Source::Free).unwrap().1;
        for kept in ["atime", "norelatime", "diratime", "nostrictatime"] {
            assert_eq!(times(&["bind", "ro", kept]), Attributes::NOATIME, "{kept}");
        }
        assert_eq!(times(&["bind", "relatime"]), Attributes::none());
        assert_eq!(times(&["bind", "nodiratime"]), Attributes::NODIRATIME);
        let strict = Attributes::STRICTATIME.union(Attributes::NODIRATIME);
        assert_eq!(times(&["bind", "nodiratime", "strictatime"]), strict);
    }
}
