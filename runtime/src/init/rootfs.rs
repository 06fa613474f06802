//! The root: attached, entered by pivot_root, finished.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use hallmark_sys::mount::{self, Attributes, Change, Extent, Propagation};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::{Init, attach, devices, root::Root};
use crate::error::{Context, Error, Result};
use crate::spec::{Kind, Plan, ProcessPlan, RootPropagation};

/// The container's view of the host's mounts, and the root attached in it at `root.path`.
pub(super) fn attach(init: &mut Init<'_>) -> Result<Root> {
    let plan = init.plan;
    let path = &plan.rootfs;
    if plan.namespaces.makes(Kind::Mount) {
        keep_from_the_host(plan)?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let at = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .context(|| format!("open rootfs {}", path.display()))?;
    let tree = match init.rootfs.take() {
        Some(judged) => judged,
        None => attach::clone_tree(at.as_fd(), Extent::Tree)?,
    };
    attach::move_to(tree.as_fd(), at.as_fd())
        .context(|| format!("attach rootfs {}", path.display()))?;
    // modes are given as they are meant
    rustix::process::umask(Mode::empty());
    Ok(Root::new(tree))
}

/// Nothing that is mounted in the new namespace shows on the host.
fn keep_from_the_host(plan: &Plan) -> Result<()> {
    let everything = plan
        .root_propagation
        .unwrap_or(RootPropagation { kind: Propagation::Slave, extent: Extent::Tree });
    change("/", everything).context(|| "error preparing rootfs")?;
    separate(&plan.rootfs, everything.kind)
}

fn change(path: &str, to: RootPropagation) -> Result<()> {
    mount_change(Path::new(path), to).context(|| format!("propagation of {path}"))
}

fn mount_change(path: &Path, to: RootPropagation) -> rustix::io::Result<()> {
    let flags = match to.kind {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Unbindable => MountPropagationFlags::UNBINDABLE,
    };
    let flags = match to.extent {
        Extent::Mount => flags,
        Extent::Tree => flags | MountPropagationFlags::REC,
    };
    rustix::mount::mount_change(path, flags)
}

/// The mount that holds `path` must not be shared: pivot_root refuses, and our root would show on the host.
fn separate(path: &Path, kind: Propagation) -> Result<()> {
    let kind = if kind == Propagation::Slave { kind } else { Propagation::Private };
    for holder in path.ancestors() {
        match mount_change(holder, RootPropagation { kind, extent: Extent::Mount }) {
            Ok(()) => return Ok(()),
            // not the root of a mount: the one that holds it is further up
            Err(Errno::INVAL) => {}
            Err(errno) => {
                return Err(errno).context(|| format!("propagation of {}", holder.display()));
            }
        }
    }
    Err(Error::system(format!("propagation of {}: no mount holds it", path.display())))
}

/// Makes the root `/` and lets go of the host's.
///
/// In the host's own mount namespace the host's root cannot be let go of: there it is only left.
pub(super) fn pivot(plan: &Plan, root: &Root) -> Result<()> {
    if !plan.namespaces.makes(Kind::Mount) {
        root.enter()?;
        rustix::process::chroot(".").context(|| "chroot(rootfs)")?;
        return rustix::process::chdir("/").context(|| "chdir(/)");
    }
    enter(root.as_fd()).context(|| "error jailing process inside rootfs")?;
    let Some(propagation) = plan.root_propagation else { return Ok(()) };
    // private and slave are what it is already
    if matches!(propagation.kind, Propagation::Shared | Propagation::Unbindable) {
        change("/", propagation)?;
    }
    Ok(())
}

fn enter(root: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).context(|| "open /")?;
    rustix::process::fchdir(root).context(|| "fchdir(rootfs)")?;
    // the old root ends up on top of the new one, where it is taken off again
    rustix::process::pivot_root(".", ".").context(|| "pivot_root(., .)")?;
    rustix::process::fchdir(&old).context(|| "fchdir(old root)")?;
    let slave = RootPropagation { kind: Propagation::Slave, extent: Extent::Tree };
    mount_change(Path::new("."), slave).context(|| "propagation of the old root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .context(|| "umount2(old root, MNT_DETACH)")?;
    rustix::process::chdir("/").context(|| "chdir(/)")
}

/// A standard stream on the host's null device becomes the container's own.
pub(super) fn reopen_null(plan: &Plan) -> Result<()> {
    if !devices::are_ours(plan) {
        return Ok(());
    }
    let mut null: Option<OwnedFd> = None;
    for number in 0..3 {
        let stream = match number {
            0 => rustix::stdio::stdin(),
            1 => rustix::stdio::stdout(),
            _ => rustix::stdio::stderr(),
        };
        if !rustix::fs::fstat(stream).is_ok_and(|stat| is_null(&stat)) {
            continue;
        }
        let own = match null.take() {
            Some(own) => own,
            None => open_null()?,
        };
        put(own.as_fd(), number).context(|| "reopen /dev/null inside container")?;
        null = Some(own);
    }
    Ok(())
}

fn open_null() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let own = rustix::fs::open("/dev/null", flags, Mode::empty())
        .context(|| "error reopening /dev/null inside container")?;
    if is_null(&rustix::fs::fstat(&own).context(|| "fstat /dev/null")?) {
        return Ok(own);
    }
    Err(Error::spec("can't reopen /dev/null: container's /dev/null is invalid"))
}

/// Makes `fd` the standard stream `number`, from 0 to 2.
pub(super) fn put(fd: BorrowedFd<'_>, number: u8) -> rustix::io::Result<()> {
    match number {
        0 => rustix::stdio::dup2_stdin(fd),
        1 => rustix::stdio::dup2_stdout(fd),
        _ => rustix::stdio::dup2_stderr(fd),
    }
}

/// Whether it is the null device, 1:3.
pub(super) fn is_null(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3)
}

/// The working directory is made if the image lacks it, as runc does; we are inside the root already.
pub(super) fn make_cwd(process: &ProcessPlan) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder.create(&process.cwd).context(|| format!("make cwd {:?}", process.cwd))
}

/// What had to be writable until now becomes read-only, and the umask what the process gets.
pub(super) fn finish(plan: &Plan, root: &Root, late: Vec<OwnedFd>) -> Result<()> {
    let change = Change { set: Attributes::READ_ONLY, ..Change::default() };
    for mount in late {
        mount::set_attributes(&mount, Extent::Mount, &change)?;
    }
    if plan.read_only_root {
        mount::set_attributes(root, Extent::Mount, &change)
            .context(|| "error setting rootfs as readonly")?;
    }
    umask(&plan.process);
    Ok(())
}

/// The process' umask.
pub(super) fn umask(process: &ProcessPlan) {
    rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
}
