//! `binary://` logging: a program that reads a container's output from its descriptors 3 and 4.
//!
//! Descriptor 5 is how it says that it is ready. Its environment is `CONTAINER_ID` and `CONTAINER_NAMESPACE`, nothing else.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::reaper::{Reaper, Spawned};
use crate::uri::{Program, Ready};

/// What a logger gets to become ready.
const READY: Duration = Duration::from_secs(10);
/// What a logger gets to end by itself after the end of its input, and after SIGTERM.
const END: Duration = Duration::from_secs(2);
const TERM: Duration = Duration::from_secs(10);

/// A running logging program.
#[derive(Debug)]
pub(crate) struct Logger {
    name: String,
    child: Spawned,
}

/// The ends of a logger's pipes that the container writes to.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Logger {
    /// Starts `program` for process `id` and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or is not ready within ten seconds.
    pub(crate) async fn start(
        reaper: &Reaper,
        program: &Program,
        namespace: &str,
        id: &str,
    ) -> Result<(Self, Inputs)> {
        let pipe =
            || pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("make pipe for", &program.path));
        let (stdout_read, stdout) = pipe()?;
        let (stderr_read, stderr) = pipe()?;
        let (ready_read, ready) = pipe()?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).env_clear();
        command.env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", namespace);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mappings = [(stdout_read, 3), (stderr_read, 4), (ready, 5)];
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.into()).map_err(Error::decode("logger's descriptors"))?;
        let child = reaper.spawn(&mut command).map_err(Error::io("start", &program.path))?;
        drop(command); // with our copies of the logger's ends
        let mut logger = Self { name: program.path.display().to_string(), child };
        // one that does not become ready is dropped, and so killed
        logger.ready(ready_read, program.ready).await?;
        Ok((logger, Inputs { stdout, stderr }))
    }

    async fn ready(&mut self, from: OwnedFd, ready: Ready) -> Result<()> {
        let mut pipe =
            pipe::Receiver::from_owned_fd(from).map_err(Error::io("ready pipe of", &self.name))?;
        let mut byte = [0];
        let read = timeout(READY, pipe.read(&mut byte)).await;
        let late =
            Error::Timeout { what: "start of the logging program", seconds: READY.as_secs() };
        let count = read.or(Err(late))?.map_err(Error::io("ready pipe of", &self.name))?;
        if count == 0 && ready == Ready::Byte {
            return Err(Error::Invalid {
                what: "logging program",
                value: self.name.clone(),
                reason: "it ended or closed its ready pipe without a word".to_owned(),
            });
        }
        Ok(())
    }

    /// Waits for the end of a logger whose input has ended; helps it with SIGTERM, then SIGKILL.
    pub(crate) async fn finish(mut self) {
        if timeout(END, self.child.wait()).await.is_ok() {
            return;
        }
        self.child.signal(Signal::TERM);
        if timeout(TERM, self.child.wait()).await.is_err() {
            log::warn!("logger {}: still there {TERM:?} after SIGTERM, killed", self.name);
        }
    }

    /// Ends a logger that has nothing to log, because its container was never made.
    pub(crate) async fn stop(mut self) {
        self.child.signal(Signal::TERM);
        if timeout(END, self.child.wait()).await.is_err() {
            log::warn!("logger {}: still there {END:?} after SIGTERM, killed", self.name);
        }
    }
}
