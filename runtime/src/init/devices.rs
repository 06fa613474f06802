//! /dev: device nodes, the links every program expects, and ptmx.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hallmark_sys::mount::Extent;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::{attach, root::Root};
use crate::error::{Context, Error, Result};
use crate::spec::{Device, DeviceNode, Kind, MountKind, Plan};

/// Whether /dev is ours to fill: not if the configuration binds one.
pub(super) fn are_ours(plan: &Plan) -> bool {
    !plan
        .mounts
        .iter()
        .any(|mount| mount.destination == "/dev" && matches!(mount.kind, MountKind::Bind(_)))
}

/// Fills /dev.
pub(super) fn make(plan: &Plan, root: &Root) -> Result<()> {
    if !are_ours(plan) {
        return Ok(());
    }
    let bind = plan.namespaces.contains(Kind::User);
    for device in &plan.devices {
        node(root, device, bind.then_some(Errno::PERM))
            .context(|| format!("error creating device nodes: {}", device.path))?;
    }
    ptmx(root).context(|| "error setting up ptmx")?;
    links(root).context(|| "error setting up /dev symlinks")
}

/// Makes one node; `refused`: a user namespace may not, so that the host's node is bound instead.
fn node(root: &Root, device: &Device, refused: Option<Errno>) -> Result<()> {
    let (directory, name) = root.parent(&device.path)?;
    let made = match refused {
        Some(errno) => Err(errno),
        None => {
            let DeviceNode { kind, major, minor } = device.node;
            let mode = Mode::from_raw_mode(device.mode);
            rustix::fs::mknodat(&directory, name, kind, mode, rustix::fs::makedev(major, minor))
        }
    };
    match made {
        Ok(()) => own(directory.as_fd(), name, device),
        Err(Errno::EXIST) => Ok(()),
        Err(Errno::PERM) => bind_host(directory.as_fd(), name, device),
        Err(errno) => Err(errno).context(|| "mknodat"),
    }
}

/// Proves that the node is the one that was made, then gives it its owner and mode.
fn own(directory: BorrowedFd<'_>, name: &str, device: &Device) -> Result<()> {
    let fd = open(directory, name)?;
    require(&fd, device.node)?;
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(&fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).context(|| "chown")
}

fn bind_host(directory: BorrowedFd<'_>, name: &str, device: &Device) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let host = rustix::fs::openat(CWD, device.path.as_str(), flags, Mode::empty())
        .context(|| "open the host's node")?;
    require(&host, device.node)?;
    let create = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, create, Mode::empty()).context(|| "create device inode")?;
    let target = open(directory, name)?;
    let tree = attach::clone_tree(host.as_fd(), Extent::Mount)?;
    attach::move_to(tree.as_fd(), target.as_fd())
}

fn open(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty()).context(|| "open device inode")
}

fn require(fd: &OwnedFd, node: DeviceNode) -> Result<()> {
    let stat = rustix::fs::fstat(fd).context(|| "fstat device inode")?;
    let device = rustix::fs::makedev(node.major, node.minor);
    let right = FileType::from_raw_mode(stat.st_mode) == node.kind
        && (node.kind == FileType::Fifo || stat.st_rdev == device);
    if right {
        return Ok(());
    }
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Err(Error::spec(format!(
        "device inode: found {:?} {major}:{minor}, expected {:?} {}:{}",
        FileType::from_raw_mode(stat.st_mode),
        node.kind,
        node.major,
        node.minor
    )))
}

/// The multiplexer of the container's own devpts, not the host's.
fn ptmx(root: &Root) -> Result<()> {
    let (directory, name) = root.parent("/dev/ptmx")?;
    match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).context(|| "unlink"),
    }
    rustix::fs::symlinkat("pts/ptmx", &directory, name).context(|| "symlink")
}

fn links(root: &Root) -> Result<()> {
    let mut links = vec![
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    if rustix::fs::stat("/proc/kcore").is_ok() {
        links.push(("/proc/kcore", "/dev/core"));
    }
    for (target, path) in links {
        let (directory, name) = root.parent(path)?;
        match rustix::fs::symlinkat(target, &directory, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(|| format!("symlink {path}")),
        }
    }
    Ok(())
}
