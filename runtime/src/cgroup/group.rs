//! The container's directory in one hierarchy: made, opened again, handed to the child.

use std::os::fd::OwnedFd;

use super::Error;
use super::dir::{Dir, Made, Version};
use super::path::CgroupPath;
use super::processes::{self, Patience};

/// The container's directory in one hierarchy, with the one above it.
#[derive(Debug)]
pub(super) struct Group {
    /// v1 controllers, or `name=systemd`; empty in cgroup2.
    pub(super) controllers: Vec<String>,
    pub(super) version: Version,
    pub(super) dir: Dir,
    pub(super) parent: Dir,
    /// Names from the hierarchy's root to `parent`.
    above: Vec<String>,
    name: String,
}

/// Directories made by us: removed when this is dropped, innermost first, unless [`keep`](Self::keep) was called.
#[derive(Debug)]
pub(super) struct Traces(Vec<Trace>);

#[derive(Debug)]
struct Trace {
    parent: Dir,
    name: String,
    level: Level,
}

impl Traces {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    fn note(&mut self, made: Made, parent: &Dir, name: &str, level: Level) -> Result<(), Error> {
        if made == Made::Now {
            self.0.push(Trace { parent: parent.again()?, name: name.to_owned(), level });
        }
        Ok(())
    }

    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        let patience = Patience::short();
        while let Some(Trace { parent, name, level }) = self.0.pop() {
            // nobody can be told; what stays is empty, and taken again by the next start
            drop(match level {
                Level::Own => processes::remove_tree(&parent, &name, patience),
                // by now another container's directory may be in it: then it is busy and stays
                Level::Above => parent.remove_child(&name),
            });
        }
    }
}

impl Group {
    /// Makes the directories of `path` that are not there, noting each in `traces`. `prepare` sees every directory on
    /// the way with the one above it, outermost first, the container's own last.
    pub(super) fn make(
        root: &Dir,
        (controllers, version): (Vec<String>, Version),
        path: &CgroupPath,
        traces: &mut Traces,
        prepare: &mut dyn FnMut(&Dir, &Dir, Level) -> Result<(), Error>,
    ) -> Result<(Self, Made), Error> {
        let mut parent = root.again()?;
        for name in path.parents() {
            let (dir, made) = parent.make_child(name)?;
            traces.note(made, &parent, name, Level::Above)?;
            prepare(&parent, &dir, Level::Above)?;
            parent = dir;
        }
        let name = path.name().to_owned();
        let (dir, made) = parent.make_child(&name)?;
        traces.note(made, &parent, &name, Level::Own)?;
        prepare(&parent, &dir, Level::Own)?;
        let above = path.parents().to_vec();
        Ok((Self { controllers, version, dir, parent, above, name }, made))
    }

    /// Opens what [`Self::make`] made; `None` if it is gone.
    pub(super) fn open(
        root: &Dir,
        (controllers, version): (Vec<String>, Version),
        path: &CgroupPath,
    ) -> Result<Option<Self>, Error> {
        let mut parent = root.again()?;
        for name in path.parents() {
            match parent.child(name)? {
                Some(dir) => parent = dir,
                None => return Ok(None),
            }
        }
        let name = path.name().to_owned();
        let above = path.parents().to_vec();
        Ok(parent.child(&name)?.map(|dir| Self { controllers, version, dir, parent, above, name }))
    }

    /// Whether limits of the v1 `controller` are set here.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// The container's path as `/proc/PID/cgroup` writes it.
    pub(super) fn own_path(&self) -> String {
        match self.parent_path().as_str() {
            "/" => format!("/{}", self.name),
            parent => format!("{parent}/{}", self.name),
        }
    }

    /// Where process `pid` (or `self`) is in this hierarchy.
    pub(super) fn path_of(&self, pid: &str) -> Result<Option<String>, Error> {
        let path = format!("/proc/{pid}/cgroup");
        let text = std::fs::read_to_string(&path).map_err(|error| Error::Call {
            call: "read",
            path,
            source: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
        })?;
        let controller = self.controllers.first().map_or("", String::as_str);
        Ok(path_in(&text, controller).map(str::to_owned))
    }

    /// The control group `names` below this one.
    pub(super) fn below(&self, names: &[&str]) -> Result<Dir, Error> {
        let mut dir = self.dir.again()?;
        for name in names {
            dir = dir.child(name)?.ok_or_else(|| Error::Call {
                call: "openat2",
                path: format!("{}/{name}", dir.path()),
                source: rustix::io::Errno::NOENT,
            })?;
        }
        Ok(dir)
    }

    /// Removes the directory and every control group below it.
    pub(super) fn remove(&self, patience: Patience) -> Result<(), Error> {
        processes::remove_tree(&self.parent, &self.name, patience)
    }

    /// Whether `parent` is the hierarchy's own root.
    pub(super) fn is_at_root(&self) -> bool {
        self.above.is_empty()
    }

    /// The path of `parent` as `/proc/self/cgroup` writes it.
    pub(super) fn parent_path(&self) -> String {
        format!("/{}", self.above.join("/"))
    }
}

/// The path of the hierarchy with `controller` in a text like `/proc/self/cgroup`.
pub(super) fn path_in<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_id, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// Where on the way to the container's directory a directory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Above,
    Own,
}

/// What moves a new process into a container's control groups.
///
/// Opened by the parent before clone3, because the child soon stands in another mount namespace.
#[derive(Debug)]
pub struct Join {
    pub(super) tasks: Vec<OwnedFd>,
    pub(super) into: Option<OwnedFd>,
}

impl Join {
    /// The cgroup2 directory for CLONE_INTO_CGROUP; `None` where there is no cgroup2.
    #[must_use]
    pub fn clone_into(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        use std::os::fd::AsFd as _;
        self.into.as_ref().map(OwnedFd::as_fd)
    }

    /// Moves the calling process into every v1 group: the first thing the child does, while it has one thread.
    /// Allocates nothing. Nothing to do in pure v2.
    ///
    /// # Errors
    /// What write(2) answers: ENOSPC for a cpuset without cpus, EAGAIN for a group at its pids limit.
    pub fn enter(&self) -> Result<(), rustix::io::Errno> {
        for tasks in &self.tasks {
            rustix::io::write(tasks, b"0")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_by_controller() {
        let text = "12:cpu,cpuacct:/a\n5:devices:/user.slice/b:c\n1:name=systemd:/x\n0::/unified\n";
        assert_eq!(path_in(text, "devices"), Some("/user.slice/b:c"));
        assert_eq!(path_in(text, "cpuacct"), Some("/a"));
        assert_eq!(path_in(text, ""), Some("/unified"));
        assert_eq!(path_in(text, "memory"), None);
        assert_eq!(path_in("garbage\n1:\n", "devices"), None);
    }
}
