//! What is there besides files: taken before and after a test, the difference is a leak.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{cgroups, devices};

/// Everything that a launch may leave behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture {
    mounts: BTreeSet<String>,
    devices: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    processes: BTreeSet<String>,
    files: BTreeSet<String>,
}

/// Directories of which a launch owns every entry.
const OWNED: [&str; 4] = [
    "/run/hallmark",
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/containerd/s",
    "/run/containerd/fifo",
];

impl Picture {
    /// Looks now.
    pub(crate) fn take() -> Result<Self> {
        let mut picture = Self::default();
        for line in crate::files::text(Path::new("/proc/self/mountinfo"))?.lines() {
            let place = line.split(' ').nth(4).unwrap_or_default();
            let source = line.split_once(" - ").map_or("", |(_, right)| right);
            picture.mounts.insert(format!("{place} ({source})"));
        }
        picture.devices.extend(devices::of_this_node()?.iter().map(|device| format!("{device:?}")));
        // a containerd namespace has a cgroup and directories for as long as the node lives
        picture.cgroups = cgroups::list()?;
        let of_a_namespace = |name: &str| name.ends_with("default") || name.ends_with("k8s.io");
        picture.cgroups.retain(|group| !of_a_namespace(group));
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.bytes().all(|b| b.is_ascii_digit()) {
                picture.add_process(&name);
            }
        }
        for dir in OWNED {
            list_files(Path::new(dir), &mut picture.files);
        }
        picture.files.retain(|file| !of_a_namespace(file) && file != "/run/hallmark/runtime");
        Ok(picture)
    }

    /// The command line of a process that runs a program (a kernel thread has none), numbered
    /// instead of by process number: a daemon that was started anew is no leak.
    fn add_process(&mut self, pid: &str) {
        let Ok(line) = fs::read(Path::new("/proc").join(pid).join("cmdline")) else { return };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.is_empty() {
            return;
        }
        let free = (1..).find(|count| !self.processes.contains(&format!("{count}. {line}")));
        self.processes.insert(format!("{}. {line}", free.unwrap_or(0)));
    }

    /// What is here now and was not then.
    fn since(&self, then: &Self) -> Vec<String> {
        let pairs = [
            ("mount", &self.mounts, &then.mounts),
            ("device", &self.devices, &then.devices),
            ("cgroup", &self.cgroups, &then.cgroups),
            ("process", &self.processes, &then.processes),
            ("file", &self.files, &then.files),
        ];
        let mut left = Vec::new();
        for (kind, now, then) in pairs {
            left.extend(now.difference(then).map(|what| format!("{kind} {what}")));
        }
        left
    }

    /// The same but for layers, which stay activated as long as an image has them, and their claims.
    pub(crate) fn without_layers(mut self) -> Self {
        self.mounts.retain(|what| !is_of_a_layer(what));
        self.devices.retain(|what| !is_of_a_layer(what));
        self.files.retain(|what| !is_of_a_layer(what));
        self
    }

    /// The same with layers counted instead of named: one that is activated anew gets another mount point and device.
    pub(crate) fn with_layers_counted(self) -> Self {
        let count = |all: &BTreeSet<String>| all.iter().filter(|what| is_of_a_layer(what)).count();
        let (mounts, devices) = (count(&self.mounts), count(&self.devices));
        let numbered = |count| (1..=count).map(|number| format!("{number}. of a layer"));
        let mut counted = self.without_layers();
        counted.mounts.extend(numbered(mounts));
        counted.devices.extend(numbered(devices));
        counted
    }

    /// The same but for the pipes that clients make for a container's streams.
    pub(crate) fn without_pipes(mut self) -> Self {
        self.files.retain(|what| !what.starts_with("/run/containerd/fifo/"));
        self
    }

    /// The same but for bundles that containerd was removing when it was killed: it renames them
    /// first, to a name with a dot, and does not look at those again.
    pub(crate) fn without_hidden_bundles(mut self) -> Self {
        self.files.retain(|what| !what.contains("/io.containerd.runtime.v2.task/default/."));
        self
    }

    /// Waits until nothing is left that was not there, of what `part` leaves to look at.
    pub(crate) fn expect_again_but_for(&self, part: &dyn Fn(Self) -> Self) -> Result<()> {
        self.wait_for(&|| Ok(part(Self::take()?)))
    }

    /// Waits until nothing is left that was not there, up to ninety seconds: emulated processors take their time, and a
    /// shim that was forgotten when containerd was killed ends after sixty.
    pub(crate) fn expect_again(&self) -> Result<()> {
        self.wait_for(&Self::take)
    }

    fn wait_for(&self, look: &dyn Fn() -> Result<Self>) -> Result<()> {
        let started = Instant::now();
        loop {
            let left = look()?.since(self);
            if left.is_empty() {
                return Ok(());
            }
            if started.elapsed() > Duration::from_secs(90) {
                bail!("left behind:\n  {}", left.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn is_of_a_layer(what: &str) -> bool {
    let places = ["run/hallmark/l/", "run/hallmark/devices/", "var/lib/hallmark/"];
    places.iter().any(|place| what.contains(place)) || what.contains("Mapper { name: \"hallmark-")
}

fn list_files(dir: &Path, all: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // the inside of a layer or of a root file system is no file of ours
        let inside = path.parent().is_some_and(|p| p.ends_with("hallmark/l"));
        if entry.file_type().is_ok_and(|t| t.is_dir()) && !inside && !path.ends_with("rootfs") {
            list_files(&path, all);
        }
        all.insert(path.display().to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_may_be_mounted_elsewhere_and_not_twice() {
        let of = |mounts: &[&str]| {
            let mounts = mounts.iter().map(|name| format!("/run/hallmark/l/{name} (erofs)"));
            Picture { mounts: mounts.collect(), ..Picture::default() }.with_layers_counted()
        };
        assert!(of(&["b"]).since(&of(&["a"])).is_empty());
        assert_eq!(of(&["b", "c"]).since(&of(&["a"])), ["mount 2. of a layer"]);
    }

    #[test]
    fn a_new_mount_is_named() {
        let then = Picture::default();
        let mut now = then.clone();
        now.mounts.insert("/m (tmpfs)".into());
        assert_eq!(now.since(&then), ["mount /m (tmpfs)"]);
        assert!(then.since(&now).is_empty());
    }
}
