//! SELinux labels, asked of the kernel before anything is made: a label that cannot be applied is an error, always.
//!
//! What applies them is the kernel, through `attr/exec`, `attr/keycreate` and `context=`, and it refuses a label that
//! it does not know; the question before gives the refusal its sentence, and nothing has to be undone.
//!
//! Source: Linux security/selinux/selinuxfs.c (`context`), hooks.c (`selinux_setprocattr`).

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::spec::ProcessPlan;
use hallmark_sys::procfs::Procfs;

/// From <linux/magic.h>.
const SELINUX_MAGIC: u64 = 0xf97c_ff8c;
/// Where libselinux and everybody else mounts it.
const MOUNTED: &str = "/sys/fs/selinux/context";

/// Makes sure that a process can get its label.
///
/// # Errors
/// As [`require`].
pub(crate) fn require_of(procfs: &Procfs, process: &ProcessPlan) -> Result<()> {
    process.selinux_label.as_deref().map_or(Ok(()), |label| require(procfs, label))
}

/// Refuses a label where nothing would enforce it, and one that the loaded policy does not know.
///
/// # Errors
/// [`ErrorKind::System`] if SELinux is off or no policy is loaded; [`ErrorKind::Spec`] for an unknown label.
pub(crate) fn require(procfs: &Procfs, label: &str) -> Result<()> {
    if !is_on(procfs)? {
        return Err(Error::new(
            ErrorKind::System,
            format!("selinux label {label:?}: found a kernel with SELinux off, expected it on"),
        ));
    }
    match ask(label)? {
        Answer::Unknown => Err(Error::spec(format!(
            "selinux label {label:?}: the policy of this kernel does not know it, expected user:role:type:level"
        ))),
        Answer::Known | Answer::Nobody => Ok(()),
    }
}

/// Its file system shows itself in /proc/filesystems only where it is on, and the label of a process is `kernel` until
/// a policy is loaded.
fn is_on(procfs: &Procfs) -> Result<bool> {
    let known = procfs.read_text("filesystems")?.lines().any(|line| line.ends_with("\tselinuxfs"));
    Ok(known
        && procfs
            .read_text("thread-self/attr/current")
            .is_ok_and(|label| label.trim_end_matches('\0') != "kernel"))
}

enum Answer {
    Known,
    Unknown,
    /// There is nobody to ask, or we may not: the kernel says it when the label is set.
    Nobody,
}

fn ask(label: &str) -> Result<Answer> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(MOUNTED, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM) => return Ok(Answer::Nobody),
        Err(errno) => return Err(errno).context(|| format!("open {MOUNTED}")),
    };
    let magic = rustix::fs::fstatfs(&file).context(|| format!("fstatfs {MOUNTED}"))?.f_type;
    if u64::try_from(magic) != Ok(SELINUX_MAGIC) {
        return Ok(Answer::Nobody);
    }
    match rustix::io::write(&file, label.as_bytes()) {
        Ok(_) => Ok(Answer::Known),
        Err(Errno::INVAL) => Ok(Answer::Unknown),
        Err(Errno::ACCESS | Errno::PERM) => Ok(Answer::Nobody),
        Err(errno) => Err(errno).context(|| format!("ask {MOUNTED} about {label:?}")),
    }
}
