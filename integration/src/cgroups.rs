//! A cgroup of a run's own in every hierarchy of the machine, v1, v2 or both.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::is_there;
use crate::run::Run;

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    place: PathBuf,
    /// Mount options that name it; empty for v2.
    options: Option<String>,
}

fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut all = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(place) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let options = match (right.next(), right.nth(1)) {
            (Some("cgroup2"), _) => None,
            (Some("cgroup"), Some(options)) => Some(
                options
                    .split(',')
                    .filter(|o| *o != "rw" && *o != "ro")
                    .collect::<Vec<_>>()
                    .join(","),
            ),
            _ => continue,
        };
        let found = Hierarchy { place: place.into(), options };
        if !all.contains(&found) {
            all.push(found);
        }
    }
    all
}

fn mounted() -> Result<Vec<Hierarchy>> {
    Ok(hierarchies(&crate::files::text(Path::new("/proc/self/mountinfo"))?))
}

/// Makes `group` in each hierarchy and moves this process there.
pub(crate) fn join(group: &str) -> Result<()> {
    for hierarchy in mounted()? {
        let dir = hierarchy.place.join(group);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // a new v1 cpuset is empty, and takes no process so
            if hierarchy.options.is_some() && is_there(&dir.join(file)) {
                fs::write(dir.join(file), fs::read(hierarchy.place.join(file))?)?;
            }
        }
        fs::write(dir.join("cgroup.procs"), std::process::id().to_string())
            .with_context(|| format!("join {}", dir.display()))?;
    }
    Ok(())
}

/// In a new cgroup namespace: shows each hierarchy from its own root, controllers delegated.
pub(crate) fn mount_own() -> Result<()> {
    let all = mounted()?;
    // what is only covered is still listed, and found first by those who look for a hierarchy
    Command::new("umount").args(["--recursive", "/sys/fs/cgroup"]).good()?;
    if all.iter().any(|h| h.place == Path::new("/sys/fs/cgroup")) {
        Command::new("mount").args(["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"]).good()?;
        return delegate(Path::new("/sys/fs/cgroup"));
    }
    Command::new("mount")
        .args(["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/sys/fs/cgroup"])
        .good()?;
    for hierarchy in all {
        fs::create_dir_all(&hierarchy.place)?;
        let mut mount = Command::new("mount");
        match &hierarchy.options {
            Some(options) => mount.args(["-t", "cgroup", "-o", options, "cgroup"]),
            None => mount.args(["-t", "cgroup2", "cgroup2"]),
        };
        mount.arg(&hierarchy.place).good()?;
    }
    Ok(())
}

/// Hands the controllers to child cgroups. Only the machine's own root may do so and have processes
/// itself; elsewhere they are moved below first.
fn delegate(root: &Path) -> Result<()> {
    if is_there(&root.join("cgroup.type")) {
        let below = root.join("init");
        fs::create_dir_all(&below)?;
        for pid in crate::files::text(&root.join("cgroup.procs"))?.lines() {
            fs::write(below.join("cgroup.procs"), pid)
                .with_context(|| format!("move {pid} to {}", below.display()))?;
        }
    }
    let controllers = crate::files::text(&root.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("delegate {controller}"))?;
    }
    Ok(())
}

/// Every cgroup there is in the namespace's view, as `hierarchy:path`.
pub(crate) fn list() -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for hierarchy in mounted()? {
        let name = hierarchy.options.as_deref().unwrap_or("v2");
        for dir in below(&hierarchy.place)? {
            let path = dir.strip_prefix(&hierarchy.place).unwrap_or(&dir);
            all.insert(format!("{name}:{}", path.display()));
        }
    }
    Ok(all)
}

/// Directories under `root`, deepest first, without it.
fn below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root) else { return Ok(found) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(below(&entry.path())?);
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Kills what is left in `group` and removes it from each hierarchy.
pub(crate) fn kill_and_remove(group: &str) -> Result<()> {
    for hierarchy in mounted()? {
        let root = hierarchy.place.join(group);
        if !is_there(&root) {
            continue;
        }
        let mut dirs = below(&root)?;
        dirs.push(root);
        for dir in dirs {
            remove(&dir)?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    for attempt in 0_u32.. {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if attempt >= 100 => {
                return Err(error).with_context(|| format!("remove cgroup {}", dir.display()));
            }
            Err(_) => kill_members(dir)?,
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn kill_members(dir: &Path) -> Result<()> {
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        Command::new("kill").args(["-KILL", pid]).ran()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_seen() {
        let text = "30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    32 24 0:28 / /sys rw - sysfs sysfs rw\n\
                    33 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let all = hierarchies(text);
        let options: Vec<_> = all.iter().map(|h| h.options.as_deref()).collect();
        assert_eq!(options, [Some("cpu"), None, Some("name=systemd")]);
    }
}
