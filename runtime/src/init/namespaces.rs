//! Control groups and namespaces: moving into those that are there, making those that are new.
//!
//! Usually one `clone3` makes everything. A second clone is needed where the kernel gives a namespace to children
//! only (a joined PID namespace), or where the new ones must belong to a user namespace that is joined, or where
//! others are joined with the host's rights before a user namespace is made; see [`Membership::needs_stage`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hallmark_sys::process::{self, Clone, Cloned, Namespaces, Parent};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::DumpableBehavior;
use rustix::thread::{Gid, Uid};

use super::{Common, Init};
use crate::cgroup::Join;
use crate::error::{Context, Error, Result};
use crate::handshake::{FromInit, InitEnd, ToInit};
use crate::spec::{Joined, Kind, NamespacePlan, Plan};
use hallmark_sys::procfs::Procfs;

/// From <linux/magic.h>.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A namespace that exists, by descriptor.
#[derive(Debug)]
pub(crate) struct JoinedNamespace {
    kind: Kind,
    fd: OwnedFd,
    name: String,
}

/// Which namespaces the first process makes and joins.
#[derive(Debug)]
pub(crate) struct Membership<'a> {
    pub(crate) plan: &'a NamespacePlan,
    pub(crate) joined: Vec<JoinedNamespace>,
    /// A cgroup namespace, whether or not the configuration asks for one.
    pub(crate) new_cgroup: bool,
}

/// Opens namespaces by path, in the host's namespaces, and makes sure that they are some.
///
/// # Errors
/// If a path leads to something else. That the type is right is checked by the kernel when it is joined.
pub(crate) fn open_joined(joined: &[Joined]) -> Result<Vec<JoinedNamespace>> {
    joined
        .iter()
        .map(|joined| {
            let name = format!("{} namespace {}", joined.kind.name(), joined.path.display());
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let fd =
                rustix::fs::open(&joined.path, flags, Mode::empty()).context(|| name.clone())?;
            let magic = rustix::fs::fstatfs(&fd).context(|| name.clone())?.f_type;
            if u64::try_from(magic) != Ok(NSFS_MAGIC) {
                return Err(Error::spec(format!(
                    "{name}: found file system {magic:#x}, expected a namespace"
                )));
            }
            Ok(JoinedNamespace { kind: joined.kind, fd, name })
        })
        .collect()
}

/// The user namespace among them, if there is one.
pub(crate) fn joined_user(joined: &[JoinedNamespace]) -> Option<BorrowedFd<'_>> {
    joined.iter().find(|joined| joined.kind == Kind::User).map(|joined| joined.fd.as_fd())
}

impl JoinedNamespace {
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it is the one that the runtime is in itself, the host's.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn is_own(&self, procfs: &Procfs) -> Result<bool> {
        let own = procfs.open_link(&format!("self/ns/{}", self.kind.file()))?;
        let own = rustix::fs::fstat(&own).context(|| self.name.clone())?;
        let other = rustix::fs::fstat(&self.fd).context(|| self.name.clone())?;
        Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
    }
}

impl Membership<'_> {
    /// Whether the process that joins cannot be the one that becomes the container's first.
    pub(crate) fn needs_stage(&self) -> bool {
        let joins = |kind: Kind| self.joined.iter().any(|joined| joined.kind == kind);
        joins(Kind::Pid)
            || joins(Kind::User)
            || (self.plan.makes(Kind::User) && !self.joined.is_empty())
    }

    /// What the clone that makes the first process makes. Of the others, `cgroup` must come after the move into the
    /// cgroup, and `time` needs its offsets before anybody is in it.
    pub(crate) fn cloned(&self) -> Namespaces {
        self.plan.new - Namespaces::NEWCGROUP - Namespaces::NEWTIME
    }

    /// Whether the runtime has to write maps or offsets before the first process can go on.
    pub(crate) fn needs_mapping(&self) -> bool {
        self.plan.makes(Kind::User) || self.plan.time_offsets.is_some()
    }

    /// Joins what is there already: as much as possible with the host's rights, the rest with those that joining the
    /// user namespace gives.
    fn join(&self) -> Result<()> {
        let mut later = Vec::new();
        for namespace in self.joined.iter().filter(|namespace| namespace.kind != Kind::User) {
            match setns(namespace) {
                Ok(()) => {}
                Err(Errno::PERM) => later.push(namespace),
                Err(errno) => return Err(failed(namespace, errno)),
            }
        }
        for namespace in self.joined.iter().filter(|namespace| namespace.kind == Kind::User) {
            setns(namespace).map_err(|errno| failed(namespace, errno))?;
        }
        for namespace in later {
            setns(namespace).map_err(|errno| failed(namespace, errno))?;
        }
        Ok(())
    }
}

fn setns(namespace: &JoinedNamespace) -> rustix::io::Result<()> {
    rustix::thread::move_into_link_name_space(namespace.fd.as_fd(), Some(namespace.kind.link()))
}

fn failed(namespace: &JoinedNamespace, errno: Errno) -> Error {
    let error = Error::from(errno).within(format!("join {}", namespace.name));
    match errno {
        Errno::INVAL => error.within(format!("expected a {} namespace", namespace.kind.name())),
        _ => error,
    }
}

/// What the process does that only prepares the clone of the first one: moves into cgroups and joins.
///
/// # Errors
/// The kernel's.
pub(crate) fn stage(membership: &Membership<'_>, join: &Join, end: &InitEnd) -> Result<Cloned> {
    enter_cgroups(join)?;
    hide()?;
    membership.join()?;
    clone_final(membership.cloned(), end)
}

/// Makes the process that counts, a child of the runtime like its maker, and tells the runtime its number.
///
/// The new process goes on only once that is told: it speaks over the same socket, and must not speak first.
fn clone_final(namespaces: Namespaces, end: &InitEnd) -> Result<Cloned> {
    let (told, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "pipe")?;
    let clone = Clone { namespaces, cgroup: None, parent: Parent::Grandparent };
    let cloned = process::clone3(&clone)?;
    match &cloned {
        Cloned::Child => {
            drop(tell);
            let mut byte = [0; 1];
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut byte));
            if read.context(|| "wait for the stage")? != 1 {
                // the stage failed and has said so
                process::exit_immediately(1);
            }
        }
        Cloned::Parent { pid, .. } => {
            end.send(&FromInit::Stage(pid.as_raw_nonzero().get()))?;
            rustix::io::write(&tell, b"t").context(|| "tell the first process")?;
        }
    }
    Ok(cloned)
}

/// The first thing a process does that `clone3` did not put where it belongs: one thread, moving itself.
pub(crate) fn enter_cgroups(join: &Join) -> Result<()> {
    join.enter().context(|| "join cgroup")
}

/// From now until exec nobody in the namespaces to come may look into this process (CVE-2016-9962).
pub(crate) fn hide() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context(|| "prctl(PR_SET_DUMPABLE, 0)")
}

/// Takes the first process into everything that is missing after its clone.
pub(super) fn enter(init: &Init<'_>) -> Result<()> {
    let membership = &init.membership;
    if !membership.needs_stage() {
        enter_cgroups(init.common.join)?;
        hide()?;
        membership.join()?;
    }
    if membership.plan.makes(Kind::Time) {
        process::unshare(Namespaces::NEWTIME)?;
    }
    if membership.needs_mapping() {
        init.common.end.send(&FromInit::Joined)?;
        init.common.end.expect(ToInit::Mapped)?;
    }
    if membership.plan.contains(Kind::User) {
        become_root()?;
    }
    if membership.plan.makes(Kind::Time) {
        let fd = init.procfs.open_link("thread-self/ns/time_for_children")?;
        let link = Some(rustix::thread::LinkNameSpaceType::Time);
        rustix::thread::move_into_link_name_space(fd.as_fd(), link)
            .context(|| "join new time namespace")?;
    }
    if membership.new_cgroup {
        process::unshare(Namespaces::NEWCGROUP)?;
    }
    rustix::process::setsid().context(|| "setsid")?;
    Ok(())
}

/// What a process that `exec` adds does before its last clone: joins the container of `init`, whole, and closes
/// everything but `kept` and the first descriptors, which the program is given.
///
/// The clone is the first that programs of the container can see. Not being dumpable does not stop one that has
/// CAP_SYS_PTRACE and shares our user namespace, and a directory of the host among its descriptors would lead it out
/// (CVE-2016-9962), so there is none by then. Whatever else the caller owns must not be used, nor dropped, again.
///
/// # Errors
/// The kernel's.
pub(crate) fn join_container(
    init: BorrowedFd<'_>,
    kinds: &[Kind],
    common: &Common<'_>,
) -> Result<Cloned> {
    enter_cgroups(common.join)?;
    hide()?;
    let all = kinds.iter().fold(Namespaces::empty(), |all, kind| all | kind.flag());
    // the two types have the same bits
    let types = rustix::thread::ThreadNameSpaceType::from_bits_retain(all.bits());
    rustix::thread::move_into_thread_name_spaces(init, types)
        .context(|| format!("join the container's namespaces {all:?}"))?;
    let console = common.console.as_ref().map(|console| console.0.as_fd());
    let kept: Vec<BorrowedFd<'_>> = console.into_iter().chain([common.end.as_fd()]).collect();
    process::close_all_but(common.preserved.saturating_add(3), &kept)?;
    clone_final(Namespaces::empty(), &common.end)
}

/// The first steps inside, of a process that `exec` adds.
pub(super) fn settle_in(plan: &Plan) -> Result<()> {
    if plan.namespaces.contains(Kind::User) {
        become_root()?;
    }
    rustix::process::setsid().context(|| "setsid")?;
    Ok(())
}

/// Root of the user namespace, with no group left of the host.
pub(crate) fn become_root() -> Result<()> {
    rustix::thread::set_thread_groups(&[]).context(|| "setgroups in the user namespace")?;
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .context(|| "setresgid(0) in the user namespace")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .context(|| "setresuid(0) in the user namespace")?;
    // changing ids made it dumpable again where the kernel thinks so
    hide()
}

/// A new network namespace has a loopback interface that is down.
pub(super) fn bring_up_loopback(plan: &Plan) -> Result<()> {
    if plan.namespaces.makes(Kind::Network) {
        process::loopback_up()?;
    }
    Ok(())
}
