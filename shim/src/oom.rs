//! Watching a container for kills by the kernel's out-of-memory killer.
//!
//! What counts is the kernel's own counter, `oom_kill` of `memory.events` (v2) or of `memory.oom_control` (v1). What wakes is
//! inotify on the former and an eventfd registered for the latter. The counter decides because an eventfd also fires when
//! the cgroup is removed, and `oom` alone counts attempts that reclaim still saved. Before an exit is told, the counter is
//! read once more, so that the out-of-memory event comes first.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use tokio::net::unix::pipe;

use crate::cgroup::{self, Cgroup};
use crate::error::{Error, Result};
use crate::sync::lock;

/// The counter of one container and what wakes its reader.
#[derive(Debug)]
pub(crate) struct OomWatch {
    directory: PathBuf,
    file: &'static str,
    seen: Mutex<u64>,
    /// The eventfd or inotify descriptor, waited for as if it were a pipe.
    wake: pipe::Receiver,
}

impl OomWatch {
    /// Watches `cgroup`; `None` if it has no memory controller.
    ///
    /// # Errors
    /// The kernel refuses the watch.
    pub(crate) fn new(cgroup: &Cgroup) -> Result<Option<Self>> {
        let (directory, file) = match cgroup {
            Cgroup::V1(controllers) => match controllers.get("memory") {
                Some(directory) => (directory, "memory.oom_control"),
                None => return Ok(None),
            },
            Cgroup::V2(directory) => (directory, "memory.events"),
        };
        // a control group that was there before may have seen kills
        let Some(before) = cgroup::text(directory, file) else { return Ok(None) };
        let path = directory.join(file);
        let wake = match cgroup {
            Cgroup::V1(_) => register_eventfd(directory, &path)?,
            Cgroup::V2(_) => {
                let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
                let wake = inotify::init(flags).map_err(Error::io("make inotify for", &path))?;
                inotify::add_watch(&wake, &path, inotify::WatchFlags::MODIFY)
                    .map_err(Error::io("watch", &path))?;
                wake
            }
        };
        let wake =
            pipe::Receiver::from_owned_fd_unchecked(wake).map_err(Error::io("wait for", &path))?;
        let watch =
            Self { directory: directory.clone(), file, seen: Mutex::new(kills(&before)), wake };
        Ok(Some(watch))
    }

    /// Waits until the kernel has something to say. Many wake-ups carry no kill.
    pub(crate) async fn woken(&self) -> Result<()> {
        let failed = || Error::io("wait for", self.directory.join(self.file));
        loop {
            self.wake.readable().await.map_err(failed())?;
            let mut buffer = [0; 4096];
            let read = || Ok(rustix::io::read(&self.wake, &mut buffer)?);
            match self.wake.try_io(read) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                result => return result.map(drop).map_err(failed()),
            }
        }
    }

    /// Whether there were kills since the last time this was asked.
    pub(crate) fn killed(&self) -> bool {
        let text = cgroup::text(&self.directory, self.file).unwrap_or_default();
        let count = kills(&text);
        let mut seen = lock(&self.seen);
        let more = count > *seen;
        *seen = count.max(*seen);
        more
    }
}

fn kills(text: &str) -> u64 {
    cgroup::keyed(text, "oom_kill").unwrap_or(0)
}

fn register_eventfd(directory: &std::path::Path, path: &PathBuf) -> Result<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let wake = eventfd(0, flags).map_err(Error::io("make eventfd for", path))?;
    let control = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let request = format!("{} {}", wake.as_fd().as_raw_fd(), control.as_raw_fd());
    let register = directory.join("cgroup.event_control");
    std::fs::write(&register, request).map_err(Error::io("write", &register))?;
    Ok(wake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_of_the_counter_is_seen_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.events");
        std::fs::write(&file, "oom 5\noom_kill 5\n").unwrap();
        let watch = OomWatch::new(&Cgroup::V2(directory.path().into())).unwrap().unwrap();
        assert!(!watch.killed());
        std::fs::write(&file, "oom 6\noom_kill 5\n").unwrap();
        watch.woken().await.unwrap();
        assert!(!watch.killed());
        std::fs::write(&file, "oom 6\noom_kill 6\n").unwrap();
        watch.woken().await.unwrap();
        assert!(watch.killed());
        assert!(!watch.killed());
        drop(directory); // the cgroup goes away
        assert!(!watch.killed());
    }

    #[test]
    fn no_memory_controller_no_watch() {
        let directory = tempfile::tempdir().unwrap();
        assert!(OomWatch::new(&Cgroup::V2(directory.path().into())).unwrap().is_none());
        assert!(OomWatch::new(&Cgroup::V1(Default::default())).unwrap().is_none());
    }
}
