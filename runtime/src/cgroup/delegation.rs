//! Handing a container's own control group to the user it runs as, so that it can make others below.
//!
//! Source: runtime-spec `config-linux.md`, Cgroup ownership; /sys/kernel/cgroup/delegate of cgroups(7).

use rustix::fs::{AtFlags, Uid};
use rustix::io::Errno;

use super::dir::Dir;
use super::{Cgroup, Error, Version};

/// What kernels without the list have.
const FILES: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

impl Cgroup {
    /// Gives the container's control group, and the files in it that the kernel lists, to `owner` of the host.
    /// cgroup v2 only: v1's cannot be given away safely.
    ///
    /// # Errors
    /// What chown(2) answers.
    pub(super) fn delegate(&self, owner: u32) -> Result<(), Error> {
        if self.version == Version::V1 {
            return Ok(());
        }
        let dir = &self.v2()?.dir;
        let files = std::fs::read_to_string("/sys/kernel/cgroup/delegate");
        let files = files.unwrap_or_else(|_| FILES.to_owned());
        for name in std::iter::once("").chain(files.lines()) {
            match give(dir, name, owner) {
                // not every kernel has every file that it lists
                Err(Errno::NOENT) => {}
                other => other.map_err(|source| Error::Call {
                    call: "chown",
                    path: format!("{}/{name}", dir.path()),
                    source,
                })?,
            }
        }
        Ok(())
    }
}

fn give(dir: &Dir, name: &str, owner: u32) -> Result<(), Errno> {
    let owner = Some(Uid::from_raw(owner));
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    rustix::fs::chownat(dir, name, owner, None, flags)
}
