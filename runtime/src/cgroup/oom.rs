//! When the kernel ends a process of the container for want of memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFlags};
use rustix::fs::OFlags;

use super::{Cgroup, Error, Version};

/// Tells of out-of-memory kills.
#[derive(Debug)]
pub enum OomNotifier {
    /// v1: an eventfd that the kernel counts up.
    Eventfd(OwnedFd),
    /// v2: `memory.events`, and its `oom_kill` when it was last read.
    Events {
        /// Becomes ready when a counter in it changes.
        file: std::fs::File,
        /// Processes killed so far.
        seen: u64,
    },
}

impl Cgroup {
    /// Asks the kernel to tell.
    ///
    /// # Errors
    /// Without a memory controller.
    pub fn oom_notifier(&self) -> Result<OomNotifier, Error> {
        if self.version == Version::V2 {
            let file = self.v2()?.dir.open("memory.events", OFlags::RDONLY)?;
            let mut notifier = OomNotifier::Events { file: file.into(), seen: 0 };
            notifier.happened()?;
            return Ok(notifier);
        }
        let dir = self.v1("memory")?;
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|source| call("eventfd", source))?;
        let control = dir.open("memory.oom_control", OFlags::RDONLY)?;
        let pair = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        dir.write("cgroup.event_control", &pair)?;
        Ok(OomNotifier::Eventfd(event))
    }
}

impl OomNotifier {
    /// What [`AsFd`] is to be polled for.
    #[must_use]
    pub fn readiness(&self) -> PollFlags {
        match self {
            Self::Eventfd(_) => PollFlags::IN,
            Self::Events { .. } => PollFlags::PRI,
        }
    }

    /// Once it is ready: whether it was a kill, and not another event.
    ///
    /// # Errors
    /// What reading answers.
    pub fn happened(&mut self) -> Result<bool, Error> {
        match self {
            Self::Eventfd(event) => {
                let mut count = [0; 8];
                match rustix::io::read(&*event, &mut count) {
                    Ok(_) => Ok(true),
                    Err(rustix::io::Errno::AGAIN) => Ok(false),
                    Err(source) => Err(call("read(eventfd)", source)),
                }
            }
            Self::Events { file, seen } => {
                let mut text = [0; 512];
                let length = rustix::io::pread(&*file, &mut text, 0)
                    .map_err(|source| call("read", source))?;
                let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
                let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                let killed = killed.and_then(|number| number.parse().ok()).unwrap_or(0);
                let more = killed > *seen;
                *seen = killed;
                Ok(more)
            }
        }
    }
}

fn call(call: &'static str, source: rustix::io::Errno) -> Error {
    Error::Call { call, path: "memory.events".to_owned(), source }
}

impl AsFd for OomNotifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Eventfd(event) => event.as_fd(),
            Self::Events { file, .. } => file.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_more_kills_are_news() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"low 0\noom 3\noom_kill 1\n").unwrap();
        let mut notifier = OomNotifier::Events { file: file.try_clone().unwrap(), seen: 0 };
        assert!(notifier.happened().unwrap());
        assert!(!notifier.happened().unwrap());
        file.write_all(b"oom_kill_x 9\n").unwrap();
        assert!(!notifier.happened().unwrap());
    }
}
