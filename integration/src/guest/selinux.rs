//! SELinux in the guest: Debian's policy and a module of ours, labels on the root, loaded by the first process.
//!
//! The node runs in a permissive type of its own; containers run in Debian's `container_t`, enforced.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::run::Run;

/// The module that is added to the policy.
pub(crate) const MODULE: &str = include_str!("node.cil");

/// What the node runs as.
pub(crate) const NODE: &str = "system_u:system_r:hallmark_node_t:s0";

/// Builds the policy with our module in the guest's root, and labels every file of it.
pub(crate) fn prepare(system: &Path) -> Result<()> {
    let module = system.join("tmp/hallmark_node.cil");
    fs::write(&module, MODULE)?;
    inside(system, &["semodule", "-n", "-s", "default", "-i", "/tmp/hallmark_node.cil"])?;
    fs::remove_file(&module)?;
    let contexts = "/etc/selinux/default/contexts/files/file_contexts";
    inside(system, &["setfiles", "-m", "-F", contexts, "/"])
}

fn inside(system: &Path, command: &[&str]) -> Result<()> {
    Command::new("chroot").arg(system).args(command).good().map(drop)
}

/// Loads the policy into the kernel; libselinux writes it in the version that this kernel reads, and mounts selinuxfs.
pub(crate) fn load() -> Result<()> {
    Command::new("load_policy").arg("-i").good().map(drop)
}
