//! SELinux labels and AppArmor profiles. One that was asked for and cannot be applied is an error, always.
//!
//! Whether SELinux is on and knows a label was asked before the process was made: [`crate::selinux`].

use rustix::fs::OFlags;

use super::Common;
use crate::error::{Context, Error, Result};
use crate::procfs::Procfs;

/// The label of the program that is executed next.
pub(super) fn set_selinux(common: &Common<'_>) -> Result<()> {
    let Some(label) = &common.process.selinux_label else { return Ok(()) };
    write(common.procfs, "thread-self/attr/exec", label).context(|| "can't set process label")
}

/// Runs `make` with `label` as the label of new keys.
pub(super) fn with_key_label(common: &Common<'_>, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let Some(label) = &common.process.selinux_label else { return make() };
    // the kernel takes this one for the thread group's leader only, which a process of one thread is
    write(common.procfs, "self/attr/keycreate", label).context(|| "can't set key label")?;
    make()?;
    write(common.procfs, "self/attr/keycreate", "\0").context(|| "can't reset key label")
}

/// The profile of the program that is executed next.
pub(super) fn set_apparmor(common: &Common<'_>) -> Result<()> {
    let Some(profile) = &common.process.apparmor_profile else { return Ok(()) };
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|text| text.starts_with(b"Y")) {
        // without AppArmor every process is unconfined already
        if profile == "unconfined" {
            return Ok(());
        }
        return Err(Error::system(format!(
            "apparmor profile {profile:?}: found a kernel with AppArmor off, expected it on"
        )));
    }
    let value = format!("exec {profile}");
    let own = "thread-self/attr/apparmor/exec";
    let file = match common.procfs.open_file(own, OFlags::WRONLY) {
        Ok(_) => own,
        // kernels before 5.1 have one file for all
        Err(_) => "thread-self/attr/exec",
    };
    write(common.procfs, file, &value).context(|| "unable to apply apparmor profile")
}

fn write(procfs: &Procfs, file: &str, value: &str) -> Result<()> {
    procfs.write(file, value)
}
