//! Loop and device-mapper devices, which belong to no namespace.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
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

/// The devices there are but for loop devices of files that are not to be seen from here: those of
/// another sandbox on the same machine.
pub(crate) fn of_this_node() -> Result<BTreeSet<Device>> {
    let mut all = list()?;
    let loops = backing_files()?;
    all.retain(|device| {
        let Device::Loop { name, backing } = device else { return true };
        let found = loops.iter().find(|(node, _)| node == name).map(|(_, file)| file);
        // a file that was removed under its device has no path to look at
        fs::metadata(backing)
            .map_or_else(|_gone| is_removed(name), |data| found == Some(&identity(&data)))
    });
    Ok(all)
}

/// Whether the kernel says that the device's file was removed.
fn is_removed(node: &str) -> bool {
    fs::read_to_string(format!("/sys/block/{node}/loop/backing_file"))
        .is_ok_and(|path| path.trim_end().ends_with(" (deleted)"))
}

/// `(loop0, major:minor inode)` of each loop device in use.
fn backing_files() -> Result<Vec<(String, String)>> {
    let columns = "NAME,BACK-MAJ:MIN,BACK-INO";
    let listed =
        Command::new("losetup").args(["--list", "--noheadings", "--output", columns]).good()?;
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [path, device, inode] = words.as_slice() else { return None };
        let node = path.trim_start_matches("/dev/").to_owned();
        Some((node, format!("{device} {inode}")))
    };
    Ok(listed.lines().filter_map(row).collect())
}

fn identity(data: &fs::Metadata) -> String {
    let (major, minor) = (rustix::fs::major(data.dev()), rustix::fs::minor(data.dev()));
    format!("{major}:{minor} {}", data.ino())
}

/// Frees the loop devices whose backing file lies below `dir`, and what is stacked on them.
///
/// The mounts that the files were opened through are gone, so that sysfs has no path for them:
/// they are known by device and inode.
pub(crate) fn release_below(dir: &Path) -> Result<()> {
    let all = list()?;
    if !all.iter().any(|device| matches!(device, Device::Loop { .. })) {
        return Ok(());
    }
    let mut inodes = BTreeSet::new();
    collect_inodes(dir, &mut inodes)?;
    for (node, file) in backing_files()? {
        if !inodes.contains(&file) {
            continue;
        }
        for above in &all {
            if let Device::Mapper { name, on, .. } = above
                && on.contains(&node)
            {
                Command::new("dmsetup").args(["remove", name]).good()?;
            }
        }
        Command::new("losetup").args(["--detach", &format!("/dev/{node}")]).good()?;
    }
    Ok(())
}

/// `major:minor inode` of every regular file below `dir`.
fn collect_inodes(dir: &Path, all: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect_inodes(&entry.path(), all)?;
        } else if kind.is_file() {
            all.insert(identity(&entry.metadata()?));
        }
    }
    Ok(())
}
