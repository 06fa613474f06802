//! The processes of a container: listed, killed, and the end of its control groups.

use std::ffi::{OsStr, OsString};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::dir::{Dir, Version};
use super::{Cgroup, Error, systemd};

/// Until when [`remove_tree`] waits for processes that are on their way out: one wait for all hierarchies together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    since: Instant,
    limit: Duration,
}

impl Patience {
    /// Undoing a failed start: 100 ms.
    pub(super) fn short() -> Self {
        Self { since: Instant::now(), limit: Duration::from_millis(100) }
    }

    /// Deleting: 2 s, as long as runc.
    pub(super) fn long() -> Self {
        Self { since: Instant::now(), limit: Duration::from_secs(2) }
    }
}

impl Cgroup {
    /// The container's processes, those of control groups below its own included. Empty once the directories are gone.
    ///
    /// # Errors
    /// What reading answers.
    pub fn pids(&self) -> Result<Vec<Pid>, Error> {
        // one hierarchy is enough: every process of the container is in all of them
        let group = match self.version {
            Version::V1 => self.groups.iter().find(|group| group.has("devices")),
            Version::V2 => None,
        };
        let group = group.or_else(|| self.groups.first());
        group.map_or(Ok(Vec::new()), |group| pids_below(&group.dir))
    }

    /// Sends `signal` to every process of the container.
    ///
    /// SIGKILL goes through `cgroup.kill` where there is one (v2 and hybrid since Linux 5.14), which no fork escapes;
    /// otherwise the group is frozen while it is signalled, and thawed after.
    ///
    /// # Errors
    /// What reading the processes or `cgroup.kill` answers; a process that is gone is no error.
    pub fn kill_all(&self, signal: Signal) -> Result<(), Error> {
        if signal == Signal::KILL
            && let Ok(group) = self.v2()
            && group.dir.has("cgroup.kill")
        {
            group.dir.write("cgroup.kill", "1")?;
            // a process that joined cgroup2 elsewhere, or none at all, is reached below
            if self.version == Version::V2 {
                return Ok(());
            }
        }
        // without a freezer a fork can outrun us: the next round of the caller's kill gets it
        let frozen = self.freeze();
        let sent =
            self.pids().and_then(|pids| pids.into_iter().try_for_each(|pid| send(pid, signal)));
        if frozen.is_ok() {
            self.thaw()?;
        }
        sent
    }

    /// Removes the container's control groups with all below them. Gone already is no error.
    ///
    /// # Errors
    /// [`Error::Busy`] if processes are still there after two seconds, [`Error::Unit`] if systemd does not stop the
    /// scope; the other hierarchies are removed all the same.
    pub fn delete(&self) -> Result<(), Error> {
        let patience = Patience::long();
        // systemd leaves directories that it did not make
        let mut first = self.unit.as_deref().map_or(Ok(()), systemd::stop);
        for group in &self.groups {
            let removed = group.remove(patience);
            if first.is_ok() {
                first = removed;
            }
        }
        first
    }
}

fn send(pid: Pid, signal: Signal) -> Result<(), Error> {
    match kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(source) => {
            Err(Error::Call { call: "kill", path: pid.as_raw_nonzero().to_string(), source })
        }
    }
}

/// All processes of `dir` and below; control groups that vanish meanwhile had none left.
///
/// One descriptor at a time, and no recursion: a container may nest its own as deep and as wide as it likes.
fn pids_below(dir: &Dir) -> Result<Vec<Pid>, Error> {
    let mut pids = Vec::new();
    let mut here = dir.again()?;
    let mut siblings: Vec<Vec<OsString>> = Vec::new();
    loop {
        siblings.push(match pids_of(&here).and_then(|found| Ok((found, here.children()?))) {
            Ok((found, children)) => {
                pids.extend(found);
                children
            }
            Err(error) if gone(&error) => Vec::new(),
            Err(error) => return Err(error),
        });
        loop {
            let Some(names) = siblings.last_mut() else { return Ok(pids) };
            match names.pop() {
                Some(name) => {
                    if let Some(child) = here.child(&name)? {
                        here = child;
                        break;
                    }
                }
                None => {
                    siblings.pop();
                    if siblings.is_empty() {
                        return Ok(pids);
                    }
                    here = here.above()?;
                }
            }
        }
    }
}

fn pids_of(dir: &Dir) -> Result<Vec<Pid>, Error> {
    let text = match dir.read("cgroup.procs") {
        // a threaded control group lists threads only
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => dir.read("cgroup.threads")?,
        other => other?,
    };
    let parse = |line: &str| line.parse().ok().and_then(Pid::from_raw);
    text.lines()
        .map(|line| {
            // 0: a process of a pid namespace that is not below ours
            parse(line).ok_or_else(|| Error::Content {
                path: format!("{}/cgroup.procs", dir.path()),
                found: line.to_owned(),
                expected: "a process of this pid namespace",
            })
        })
        .collect()
}

fn gone(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::NOENT | Errno::NODEV))
}

/// Removes the control group `name` of `parent` with all below it, waiting within `patience` while processes die.
pub(super) fn remove_tree(parent: &Dir, name: &str, patience: Patience) -> Result<(), Error> {
    let mut pause = Duration::from_millis(1);
    loop {
        let error = match try_remove(parent, name.as_ref()) {
            Ok(()) => return Ok(()),
            Err(error) if error.errno() == Some(Errno::BUSY) => error,
            Err(error) => return Err(error),
        };
        if patience.since.elapsed() >= patience.limit {
            return Err(match parent.child(name)? {
                None => return Ok(()),
                Some(dir) => match pids_below(&dir)?.len() {
                    0 => error,
                    left => Error::Busy {
                        path: dir.path().to_owned(),
                        left,
                        waited_ms: u64::try_from(patience.since.elapsed().as_millis())
                            .unwrap_or(u64::MAX),
                    },
                },
            });
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// One attempt, innermost first; usually a single rmdir. As [`pids_below`], with one descriptor and no recursion.
fn try_remove(parent: &Dir, name: &OsStr) -> Result<(), Error> {
    let mut here = parent.again()?;
    let mut path = vec![name.to_owned()];
    while let Some(name) = path.last() {
        let busy = match here.remove_child(name) {
            Ok(()) => {
                path.pop();
                if !path.is_empty() {
                    here = here.above()?;
                }
                continue;
            }
            Err(error) if error.errno() == Some(Errno::BUSY) => error,
            Err(error) => return Err(error),
        };
        let Some(dir) = here.child(name)? else { continue };
        let children = dir.children()?;
        if children.is_empty() {
            return Err(busy);
        }
        let mut full = None;
        for child in children {
            match dir.remove_child(&child) {
                Err(error) if error.errno() == Some(Errno::BUSY) => full = Some(child),
                other => other?,
            }
        }
        if let Some(child) = full {
            path.push(child);
            here = dir;
        }
    }
    Ok(())
}
