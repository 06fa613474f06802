//! Loop and device-mapper devices, which belong to no namespace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::run::Run;

/// A block device as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Device {
    /// A loop device that has a backing file.
    Loop { name: String, backing: PathBuf },
    /// A device-mapper device, and the devices it sits on.
    Mapper { name: String, node: String, on: Vec<String> },
}

/// Every loop device in use and every device-mapper device.
pub(crate) fn list() -> Result<BTreeSet<Device>> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir("/sys/block")? {
        let path = entry?.path();
        let node = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Ok(backing) = fs::read_to_string(path.join("loop/backing_file")) {
            let backing = backing.trim_end().trim_end_matches(" (deleted)").into();
            all.insert(Device::Loop { name: node, backing });
        } else if let Ok(name) = fs::read_to_string(path.join("dm/name")) {
            let mut on = Vec::new();
            for slave in fs::read_dir(path.join("slaves"))? {
                on.push(slave?.file_name().to_string_lossy().into_owned());
            }
            all.insert(Device::Mapper { name: name.trim_end().to_owned(), node, on });
        }
    }
    Ok(all)
}

/// Frees the loop devices whose backing file lies below `dir`, and what is stacked on them.
pub(crate) fn release_below(dir: &Path) -> Result<()> {
    let all = list()?;
    for device in &all {
        let Device::Loop { name, backing } = device else { continue };
        if !backing.starts_with(dir) {
            continue;
        }
        for above in &all {
            if let Device::Mapper { name: mapper, on, .. } = above {
                if on.contains(name) {
                    Command::new("dmsetup").args(["remove", mapper]).good()?;
                }
            }
        }
        Command::new("losetup").args(["--detach", &format!("/dev/{name}")]).good()?;
    }
    Ok(())
}
