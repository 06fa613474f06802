//! SELinux labels and AppArmor profiles. One that was asked for and cannot be applied is an error, always.
//!
//! Whether SELinux is on and knows a label was asked before the process was made: [`crate::selinux`]. They are set by
//! system call and not through /proc: a process that joins a container has the host's procfs no more.

use hallmark_sys::lsm::{Attribute, Module, set_own};

use super::Common;
use crate::error::{Context, Error, Result};

/// The label of the program that is executed next.
pub(super) fn set_selinux(common: &Common<'_>) -> Result<()> {
    let Some(label) = &common.process.selinux_label else { return Ok(()) };
    set_own(Module::Selinux, Attribute::Exec, label).context(|| "can't set process label")
}

/// Runs `make` with `label` as the label of new keys.
pub(super) fn with_key_label(common: &Common<'_>, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let Some(label) = &common.process.selinux_label else { return make() };
    let set = |value: &str| set_own(Module::Selinux, Attribute::KeyCreate, value);
    set(label).context(|| "can't set key label")?;
    make()?;
    set("\0").context(|| "can't reset key label")
}

/// The profile of the program that is executed next.
pub(super) fn set_apparmor(common: &Common<'_>) -> Result<()> {
    let Some(profile) = &common.process.apparmor_profile else { return Ok(()) };
    match set_own(Module::AppArmor, Attribute::Exec, &format!("exec {profile}")) {
        Err(error) if error.kind() == hallmark_sys::ErrorKind::Unsupported => {
            // without AppArmor every process is unconfined already
            if profile == "unconfined" {
                return Ok(());
            }
            Err(Error::system(format!(
                "apparmor profile {profile:?}: found a kernel with AppArmor off, expected it on"
            )))
        }
        other => other.context(|| "unable to apply apparmor profile"),
    }
}
