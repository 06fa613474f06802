//! Standard streams: from the container's pipes or terminal to the client's FIFOs, files or logging program, and back.
//!
//! In three steps, because the client's ends must be good before a container is made and nothing may be copied unless it was:
//! [`Streams::open`] opens the client's ends, [`Streams::pipes`] makes the ends that the runtime inherits, and
//! [`Streams::copy`] or [`Streams::copy_console`] starts copying.
//!
//! An output FIFO is opened for reading too: a client that goes away must not end the container with EPIPE, and finds the
//! FIFO again when it re-attaches. The input FIFO's writing side is held here until `CloseIO`, so that input ends when both
//! the client has closed it and said so.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::console::Console;
use crate::error::{Error, Result};
use crate::logging::Logger;
use crate::reaper::Reaper;
use crate::sync::lock;
use crate::uri::{Target, parse};

const BUFFER: usize = 16 << 10;

/// The streams as containerd names them; an empty name is no stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// What a logging program is told about the process it logs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoggerContext<'a> {
    pub(crate) reaper: &'a Reaper,
    pub(crate) namespace: &'a str,
    pub(crate) id: &'a str,
}

/// Owner of the pipes, so that a container that re-opens `/dev/stdout` may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The client's ends, open.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    logger: Option<Logger>,
    /// Our ends of the container's pipes: its stdin, stdout, stderr.
    ours: (Option<pipe::Sender>, Option<pipe::Receiver>, Option<pipe::Receiver>),
}

#[derive(Debug)]
struct Input {
    fifo: pipe::Receiver,
    hold: pipe::Sender,
}

#[derive(Debug)]
enum Output {
    Copied(Sink),
    /// A logging program's pipe, which the container may have as it is.
    Direct(OwnedFd),
}

#[derive(Debug)]
enum Sink {
    Pipe(pipe::Sender),
    File(Arc<File>),
}

/// What the runtime gets for the new process: three inherited descriptors, or where to send the terminal it makes.
#[derive(Debug)]
pub(crate) enum ChildStdio {
    Pipes { stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
    Terminal { socket: PathBuf },
}

impl ChildStdio {
    pub(crate) fn give_to(self, command: &mut Command) {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
                command.stdin(stdio(stdin)).stdout(stdio(stdout)).stderr(stdio(stderr));
            }
            Self::Terminal { socket } => {
                command.arg("--console-socket").arg(socket);
            }
        }
    }
}

impl Streams {
    /// Opens the client's ends and starts the logging program if one is named.
    ///
    /// # Errors
    /// A bad address, a FIFO or file that cannot be opened, a logger that does not come up.
    pub(crate) async fn open(addresses: &Addresses, logger: LoggerContext<'_>) -> Result<Self> {
        let mut streams = Self::default();
        if !addresses.stdin.is_empty() {
            streams.stdin = Some(Input::open(&addresses.stdin)?);
        }
        match parse(&addresses.stdout)? {
            Some(Target::Binary(program)) => {
                let LoggerContext { reaper, namespace, id } = logger;
                let (child, inputs) = Logger::start(reaper, &program, namespace, id).await?;
                streams.logger = Some(child);
                streams.stdout = Some(Output::Direct(inputs.stdout));
                streams.stderr = Some(Output::Direct(inputs.stderr));
            }
            stdout => {
                let same = addresses.stdout == addresses.stderr;
                streams.stdout = stdout.map(|target| Output::open(&target)).transpose()?;
                // a terminal has one output; clients name a second FIFO all the same and do not make it
                if addresses.terminal {
                    return Ok(streams);
                }
                streams.stderr = match &streams.stdout {
                    Some(Output::Copied(Sink::File(file))) if same => {
                        Some(Output::Copied(Sink::File(file.clone())))
                    }
                    _ => {
                        parse(&addresses.stderr)?.map(|target| Output::open(&target)).transpose()?
                    }
                };
            }
        }
        Ok(streams)
    }

    /// Makes the pipes of a container without a terminal.
    ///
    /// # Errors
    /// No descriptors left, or an owner that does not exist in this user namespace.
    pub(crate) fn pipes(&mut self, owner: Owner) -> Result<ChildStdio> {
        let mut stdin = None;
        if self.stdin.is_some() {
            let (read, write) = owned_pipe(owner)?;
            stdin = Some(read);
            self.ours.0 =
                Some(pipe::Sender::from_owned_fd(write).map_err(Error::io("use", "stdin pipe"))?);
        }
        let (stdout, stderr);
        (stdout, self.ours.1) = output_pipe(&mut self.stdout, owner)?;
        (stderr, self.ours.2) = output_pipe(&mut self.stderr, owner)?;
        Ok(ChildStdio::Pipes { stdin, stdout, stderr })
    }

    /// Starts copying between the pipes and the client's ends.
    pub(crate) fn copy(self) -> ProcessIo {
        let mut io = ProcessIo { logger: self.logger, ..ProcessIo::default() };
        if let (Some(input), Some(to)) = (self.stdin, self.ours.0) {
            io.hold = Mutex::new(Some(input.hold));
            io.input = Some(tokio::spawn(copy_in(input.fifo, to)));
        }
        for (from, to) in [(self.ours.1, self.stdout), (self.ours.2, self.stderr)] {
            if let (Some(from), Some(Output::Copied(to))) = (from, to) {
                io.outputs.push(tokio::spawn(copy_out(from, to)));
            }
        }
        io
    }

    /// Starts copying between a terminal and the client's ends.
    ///
    /// # Errors
    /// The logger's pipe cannot be used.
    pub(crate) fn copy_console(self, console: Console) -> Result<ProcessIo> {
        let console = Arc::new(console);
        let mut io = ProcessIo {
            console: Some(console.clone()),
            logger: self.logger,
            ..ProcessIo::default()
        };
        if let Some(input) = self.stdin {
            io.hold = Mutex::new(Some(input.hold));
            io.input = Some(tokio::spawn(console_in(input.fifo, console.clone())));
        }
        let sink = match self.stdout {
            None => None,
            Some(Output::Copied(sink)) => Some(sink),
            Some(Output::Direct(fd)) => Some(Sink::Pipe(
                pipe::Sender::from_owned_fd(fd).map_err(Error::io("use", "logger's pipe"))?,
            )),
        };
        io.outputs.push(tokio::spawn(console_out(console, sink)));
        Ok(io)
    }
}

impl Streams {
    /// Closes everything: the process was not made.
    pub(crate) async fn abandon(mut self) {
        let logger = self.logger.take();
        drop(self);
        if let Some(logger) = logger {
            logger.stop().await;
        }
    }
}

impl Input {
    fn open(address: &str) -> Result<Self> {
        let Some(Target::Path(path)) = parse(address)? else {
            let reason = "standard input must be a FIFO".to_owned();
            return Err(Error::Invalid { what: "stream", value: address.to_owned(), reason });
        };
        let options = pipe::OpenOptions::new();
        let fifo = options.open_receiver(&path).map_err(Error::io("open", &path))?;
        let hold = options.open_sender(&path).map_err(Error::io("open", &path))?;
        Ok(Self { fifo, hold })
    }
}

impl Output {
    fn open(target: &Target) -> Result<Self> {
        let sink = match target {
            Target::Path(path) => {
                let meta = path.metadata().map_err(Error::io("look at", path))?;
                match meta.file_type().is_fifo() {
                    true => Sink::fifo(path)?,
                    false => Sink::file(path)?,
                }
            }
            Target::File(path) => {
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
                }
                Sink::file(path)?
            }
            Target::Binary(program) => {
                let value = program.path.display().to_string();
                let reason = "a logging program for stderr alone".to_owned();
                return Err(Error::Invalid { what: "stream", value, reason });
            }
        };
        Ok(Self::Copied(sink))
    }
}

impl Sink {
    fn fifo(path: &Path) -> Result<Self> {
        let mut options = pipe::OpenOptions::new();
        let sender = options.read_write(true).open_sender(path);
        Ok(Self::Pipe(sender.map_err(Error::io("open", path))?))
    }

    fn file(path: &Path) -> Result<Self> {
        let file = File::options().append(true).create(true).open(path);
        Ok(Self::File(Arc::new(file.map_err(Error::io("open", path))?)))
    }

    async fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            // a disk that stalls must not hold up the pod's other containers
            Self::File(file) => {
                let (file, bytes) = (file.clone(), bytes.to_vec());
                let write = move || (&*file).write_all(&bytes);
                tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
            }
        }
    }
}

fn owned_pipe(owner: Owner) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("make", "pipe"))?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    // both ends are one inode
    rustix::fs::fchown(&read, Some(uid), Some(gid))
        .map_err(Error::io("change owner of", "pipe"))?;
    Ok((read, write))
}

/// The container's end and ours; a logger's pipe is given away whole.
fn output_pipe(
    output: &mut Option<Output>,
    owner: Owner,
) -> Result<(Option<OwnedFd>, Option<pipe::Receiver>)> {
    match output.take() {
        None => Ok((None, None)),
        Some(Output::Direct(fd)) => {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            rustix::fs::fchown(&fd, Some(uid), Some(gid))
                .map_err(Error::io("change owner of", "logger's pipe"))?;
            Ok((Some(fd), None))
        }
        copied @ Some(Output::Copied(_)) => {
            *output = copied;
            let (read, write) = owned_pipe(owner)?;
            let ours = pipe::Receiver::from_owned_fd(read).map_err(Error::io("use", "pipe"))?;
            Ok((Some(write), Some(ours)))
        }
    }
}

async fn copy_in(mut from: pipe::Receiver, mut to: pipe::Sender) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
            return; // nobody in the container reads
        }
    }
}

async fn copy_out(mut from: pipe::Receiver, to: Sink) {
    let mut to = Some(to);
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        write_or_drop(&mut to, buffer.get(..count).unwrap_or_default()).await;
    }
}

async fn console_in(mut from: pipe::Receiver, to: Arc<Console>) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
            return;
        }
    }
}

async fn console_out(from: Arc<Console>, mut to: Option<Sink>) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        write_or_drop(&mut to, buffer.get(..count).unwrap_or_default()).await;
    }
}

/// Output that cannot be stored is lost, once with a word in the log: a full disk must not stop the container.
async fn write_or_drop(to: &mut Option<Sink>, bytes: &[u8]) {
    if let Some(sink) = to
        && let Err(error) = sink.write_all(bytes).await
    {
        log::warn!("container output is dropped from here on: {error}");
        *to = None;
    }
}

/// The streams of a process that was made.
#[derive(Debug, Default)]
pub(crate) struct ProcessIo {
    /// Keeps the input FIFO from ending while no client has it open.
    hold: Mutex<Option<pipe::Sender>>,
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    console: Option<Arc<Console>>,
    logger: Option<Logger>,
}

impl ProcessIo {
    /// Lets the input end as soon as the client closes it.
    pub(crate) fn close_stdin(&self) {
        drop(lock(&self.hold).take());
    }

    /// Resizes the terminal, if there is one.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.console.as_ref().map_or(Ok(()), |console| console.resize(width, height))
    }

    /// Takes leave of a process that has ended: waits for its last output, at most `limit`, and for its logger.
    pub(crate) async fn finish(mut self, limit: Duration) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        let outputs = std::mem::take(&mut self.outputs);
        let until = tokio::time::Instant::now() + limit;
        for mut output in outputs {
            if tokio::time::timeout_at(until, &mut output).await.is_err() {
                log::warn!("something that outlived the process holds its output");
                output.abort();
                // the logger's end of input is this task's end
                drop(output.await);
            }
        }
        if let Some(logger) = self.logger.take() {
            logger.finish().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkfifoat};
    use std::fs::OpenOptions;
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    const LIMIT: Duration = Duration::from_secs(5);
    const OWNER: Owner = Owner { uid: 0, gid: 0 };

    fn fifo(path: &Path) -> String {
        mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).unwrap();
        path.display().to_string()
    }

    /// A client's end, as containerd's client opens it: before the container is made, without waiting for the shim.
    fn client(path: &str) -> File {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        OpenOptions::new().read(true).custom_flags(nonblock).open(path).unwrap()
    }

    async fn open(addresses: &Addresses) -> Result<Streams> {
        let reaper = Reaper::default();
        Streams::open(addresses, LoggerContext { reaper: &reaper, namespace: "n", id: "c" }).await
    }

    fn ends(stdio: ChildStdio) -> (Option<File>, Option<File>, Option<File>) {
        match stdio {
            ChildStdio::Pipes { stdin, stdout, stderr } => {
                (stdin.map(File::from), stdout.map(File::from), stderr.map(File::from))
            }
            ChildStdio::Terminal { socket } => panic!("a terminal at {}", socket.display()),
        }
    }

    #[tokio::test]
    async fn output_reaches_fifos_and_ends() {
        let directory = tempfile::tempdir().unwrap();
        let stdout = fifo(&directory.path().join("out"));
        let stderr = fifo(&directory.path().join("err"));
        let (mut out, mut err) = (client(&stdout), client(&stderr));
        let mut streams =
            open(&Addresses { stdout, stderr, ..Addresses::default() }).await.unwrap();
        let (stdin, child_out, child_err) = ends(streams.pipes(OWNER).unwrap());
        assert!(stdin.is_none());
        let io = streams.copy();
        (&child_out.unwrap()).write_all(b"to out").unwrap();
        (&child_err.unwrap()).write_all(b"to err").unwrap();
        io.finish(LIMIT).await;
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        err.read_to_string(&mut text).unwrap();
        assert_eq!(text, "to outto err");
    }

    #[tokio::test]
    async fn input_ends_when_client_and_close_io_agree() {
        let directory = tempfile::tempdir().unwrap();
        let stdin = fifo(&directory.path().join("in"));
        let mut streams =
            open(&Addresses { stdin: stdin.clone(), ..Addresses::default() }).await.unwrap();
        let (child, ..) = ends(streams.pipes(OWNER).unwrap());
        let mut child = pipe::Receiver::from_owned_fd(child.unwrap().into()).unwrap();
        let io = streams.copy();
        let mut buffer = [0; 16];
        for word in ["first", "again"] {
            // a client comes, writes and leaves
            std::fs::write(&stdin, word).unwrap();
            let count = child.read(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..count], word.as_bytes());
        }
        let still_open = tokio::time::timeout(Duration::from_millis(100), child.read(&mut buffer));
        assert!(still_open.await.is_err());
        io.close_stdin();
        let end = tokio::time::timeout(LIMIT, child.read(&mut buffer)).await.unwrap();
        assert_eq!(end.unwrap(), 0);
        io.finish(LIMIT).await;
    }

    #[tokio::test]
    async fn files_are_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("logs").join("c.log");
        let address = format!("file://{}", file.display());
        for _ in 0..2 {
            let addresses = Addresses {
                stdout: address.clone(),
                stderr: address.clone(),
                ..Addresses::default()
            };
            let mut streams = open(&addresses).await.unwrap();
            let (_, out, err) = ends(streams.pipes(OWNER).unwrap());
            let io = streams.copy();
            (&out.unwrap()).write_all(b"a").unwrap();
            (&err.unwrap()).write_all(b"a").unwrap();
            io.finish(LIMIT).await;
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), "aaaa");
    }

    #[tokio::test]
    async fn what_outlives_the_process_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let stdout = fifo(&directory.path().join("out"));
        let mut streams = open(&Addresses { stdout, ..Addresses::default() }).await.unwrap();
        let (_, held, _) = ends(streams.pipes(OWNER).unwrap());
        let began = std::time::Instant::now();
        streams.copy().finish(Duration::from_millis(50)).await;
        assert!(began.elapsed() < LIMIT);
        drop(held);
    }

    #[tokio::test]
    async fn bad_addresses_are_errors() {
        let stdin = |stdin: &str| Addresses { stdin: stdin.into(), ..Addresses::default() };
        let stdout = |stdout: &str| Addresses { stdout: stdout.into(), ..Addresses::default() };
        for addresses in [
            stdin("/does/not/exist"),
            stdin("file:///dev/null"),
            stdout("/does/not/exist"),
            stdout("unknown:///x"),
            Addresses { stderr: "binary:///bin/true".into(), ..Addresses::default() },
        ] {
            assert!(open(&addresses).await.is_err(), "{addresses:?}");
        }
        assert!(open(&Addresses::default()).await.is_ok());
    }
}
