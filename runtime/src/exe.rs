//! The runtime's own binary, which the container must not be able to write to through /proc/PID/exe (CVE-2019-5736).
//!
//! | the binary lies on | what is done |
//! |---|---|
//! | a dm-verity volume, or has fs-verity | nothing: nobody can write to it |
//! | an overlay without upper | nothing: this is how it looks once sealed |
//! | anything else | sealed: executed once more through an overlay that has no upper, attached nowhere |
//!
//! No copy in memory: a kernel with IPE refuses to execute one, and it would cost its size in every container. That
//! somebody may replace the file on the host is another matter; whoever can, is root there.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use hallmark_sys::process::exec_descriptor;
use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::error::{Context, Error, Result};
use crate::log::Log;

/// `OVERLAYFS_SUPER_MAGIC` of <linux/magic.h>.
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

/// Returns if the binary cannot be written to; else becomes it again where it cannot.
///
/// `other` is any directory of the host that does not hold the binary: an overlay without upper needs two lowers.
///
/// # Errors
/// If the kernel refuses the overlay. The runtime then does not go on.
pub(crate) fn protect(other: &Path, log: &Log) -> Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let exe = rustix::fs::open("/proc/self/exe", flags, Mode::empty())
        .context(|| "open /proc/self/exe")?;
    // runc's words, by which its readers find the step
    match protection(exe.as_fd())? {
        Protection::Sealed => {
            log.debug("runc exeseal: using /proc/self/exe clone");
            return Ok(());
        }
        Protection::Verified => return Ok(()),
        Protection::None => {}
    }
    let sealed = seal(other).context(|| "seal the runtime's binary")?;
    log.debug("runc exeseal: using overlayfs for sealed /proc/self/exe");
    let args = std::env::args_os().map(|arg| c_string(arg.into_vec()));
    let args = args.collect::<Result<Vec<CString>>>()?;
    let env = std::env::vars_os()
        .map(|(key, value)| c_string([key.as_bytes(), b"=", value.as_bytes()].concat()));
    let env = env.collect::<Result<Vec<CString>>>()?;
    Err(Error::from(exec_descriptor(sealed.as_fd(), &args, &env))
        .within("execute the sealed binary"))
}

fn c_string(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).map_err(std::io::Error::from).context(|| "argument or environment")
}

/// What keeps the binary from being written to.
enum Protection {
    None,
    /// An overlay without upper.
    Sealed,
    /// The kernel verifies what it reads.
    Verified,
}

fn protection(exe: BorrowedFd<'_>) -> Result<Protection> {
    let stat = rustix::fs::statx(exe, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .context(|| "statx /proc/self/exe")?;
    if stat.stx_attributes.contains(StatxAttributes::VERITY) {
        return Ok(Protection::Verified);
    }
    let magic = rustix::fs::fstatfs(exe).context(|| "fstatfs /proc/self/exe")?.f_type;
    let flags = rustix::fs::fstatvfs(exe).context(|| "fstatvfs /proc/self/exe")?.f_flag;
    if u64::try_from(magic) == Ok(OVERLAYFS_MAGIC) && flags.contains(StatVfsMountFlags::RDONLY) {
        return Ok(Protection::Sealed);
    }
    let uuid = format!("/sys/dev/block/{}:{}/dm/uuid", stat.stx_dev_major, stat.stx_dev_minor);
    let verified = std::fs::read_to_string(uuid).is_ok_and(|uuid| is_verity(&uuid));
    Ok(if verified { Protection::Verified } else { Protection::None })
}

/// veritysetup's and our snapshotter's names for a device with a verity table.
fn is_verity(uuid: &str) -> bool {
    ["CRYPT-VERITY-", "HALLMARK-"].iter().any(|prefix| uuid.starts_with(prefix))
}

/// The binary through an overlay of its directory on which nothing can be written, not even by remounting it.
fn seal(other: &Path) -> Result<OwnedFd> {
    let path = std::env::current_exe().context(|| "path of /proc/self/exe")?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::system(format!("{}: names no file", path.display())));
    };
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .context(|| "fsopen(overlay)")?;
    let lowers = [escaped(directory), escaped(other)].join(&b":"[..]);
    let set = |key: &str, value: &[u8]| {
        rustix::mount::fsconfig_set_string(&context, key, value)
            .context(|| format!("fsconfig({key})"))
    };
    set("lowerdir", &lowers)?;
    set("xino", b"off")?;
    rustix::mount::fsconfig_create(&context).context(|| "fsconfig(overlay, CREATE)")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .context(|| "fsmount(overlay)")?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, name, flags, Mode::empty()).context(|| "open the sealed binary")
}

/// As overlayfs reads a list of lowers: `:` and `\` stand for themselves after a `\`.
fn escaped(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_a_path_are_escaped() {
        assert_eq!(escaped(Path::new("/a:b\\c")), b"/a\\:b\\\\c");
    }

    #[test]
    fn verity_devices_are_known_by_their_uuid() {
        assert!(is_verity("CRYPT-VERITY-00ff-usr\n") && is_verity("HALLMARK-00ff-s-1\n"));
        assert!(!is_verity("LVM-abc\n") && !is_verity(""));
    }
}
