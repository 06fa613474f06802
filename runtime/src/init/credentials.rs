//! Bounding set, user, groups, the other four capability sets, and the working directory.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::{Common, rootfs};
use crate::error::{Context, Error, Result};
use crate::spec::{Capabilities, User, parse_capability};

/// Becomes the process' user with exactly its capabilities, in its working directory.
pub(super) fn drop_to(common: &Common<'_>) -> Result<()> {
    let process = common.process;
    let mut capabilities = process.capabilities;
    let mut dropped = CapabilitySet::empty();
    for name in &common.hardening.dropped_capabilities {
        dropped |= parse_capability(name)
            .ok_or_else(|| Error::system(format!("capability {name:?} to drop: unknown")))?;
    }
    capabilities.remove(dropped);
    drop_bounding(capabilities.bounding)?;
    rustix::thread::set_keep_capabilities(true).context(|| "prctl(PR_SET_KEEPCAPS)")?;
    let arrived = enter_directory(&process.cwd);
    become_user(&process.user)?;
    if arrived.is_err() {
        // root of a user namespace may lack what the user has
        enter_directory(&process.cwd)?;
    }
    rustix::thread::set_keep_capabilities(false).context(|| "prctl(PR_SET_KEEPCAPS)")?;
    apply(&capabilities)
}

fn drop_bounding(keep: CapabilitySet) -> Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // beyond the last capability of this kernel
            Err(Errno::INVAL) => break,
            Err(errno) => {
                return Err(errno).context(|| format!("drop {capability:?} from the bounding set"));
            }
        }
    }
    Ok(())
}

fn apply(capabilities: &Capabilities) -> Result<()> {
    let sets = CapabilitySets {
        effective: capabilities.effective,
        permitted: capabilities.permitted,
        inheritable: capabilities.inheritable,
    };
    rustix::thread::set_capabilities(None, sets).context(|| "unable to apply caps")?;
    rustix::thread::clear_ambient_capability_set().context(|| "prctl(PR_CAP_AMBIENT_CLEAR_ALL)")?;
    for capability in capabilities.ambient.iter() {
        match rustix::thread::configure_capability_in_ambient_set(capability, true) {
            Ok(()) => {}
            // not both permitted and inheritable: weaker than asked for is what runc gives, too
            Err(Errno::PERM) => {}
            Err(errno) => {
                return Err(errno).context(|| format!("ambient capability {capability:?}"));
            }
        }
    }
    Ok(())
}

fn become_user(user: &User) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    own_streams(uid)?;
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups)
        .context(|| format!("setgroups({:?})", user.additional_gids))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .context(|| format!("setresgid({})", user.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context(|| format!("setresuid({})", user.uid))
}

/// The user must be able to open its own standard streams again, for example through /dev/stdout.
fn own_streams(uid: Uid) -> Result<()> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    streams.into_iter().try_for_each(|stream| own_stream(stream, uid))
}

fn own_stream(stream: BorrowedFd<'_>, uid: Uid) -> Result<()> {
    let stat = match rustix::fs::fstat(stream) {
        Ok(stat) => stat,
        // started without it
        Err(Errno::BADF) => return Ok(()),
        Err(errno) => return Err(errno).context(|| "fstat a standard stream"),
    };
    if stat.st_uid == uid.as_raw() || rootfs::is_null(&stat) {
        return Ok(());
    }
    match rustix::fs::fchown(stream.as_fd(), Some(uid), None) {
        // what cannot be given away is left as it is, as in runc: a file of an unmapped user, a read-only one
        Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno).context(|| "fchown a standard stream"),
    }
}

/// `chdir`, and proof that it ended inside the root (CVE-2024-21626).
fn enter_directory(cwd: &str) -> Result<()> {
    rustix::process::chdir(cwd)
        .context(|| format!("chdir to cwd ({cwd:?}) set in config.json failed"))?;
    let reached = rustix::process::getcwd(Vec::new());
    match reached {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        Ok(path) => Err(Error::spec(format!(
            "cwd {cwd:?} is outside of the container: {}",
            path.to_string_lossy()
        ))),
        Err(errno) => Err(errno).context(|| format!("cwd {cwd:?} is outside of the container")),
    }
}
