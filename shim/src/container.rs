//! One container: the runtime's calls for it, its processes, and the order in which containerd hears of them.
//!
//! Order is kept in three places. A start's event goes out before the exit of what it started (`Process::starting`). The exits
//! of added processes go out before the first process' ([`Container::await_execs`]). A kill for want of memory goes out
//! before the exit it caused ([`Container::tell_oom`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest};
use containerd_shim_protos::events::task as event;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use rustix::process::{Signal, kill_process};
use tokio::task::AbortHandle;

use crate::bundle::{self, ExecFiles, ExitRecord, Spec};
use crate::cgroup::Cgroup;
use crate::console::ConsoleSocket;
use crate::error::{Error, Result};
use crate::events::{Events, timestamp};
use crate::io::{Addresses, ChildStdio, LoggerContext, Owner, ProcessIo, Streams};
use crate::oom::OomWatch;
use crate::options;
use crate::process::{Phase, Process};
use crate::reaper::{Child, Exit, Reaper};
use crate::runtime::{Create, Exec, Runtime, Scope, SystemdCgroup};
use crate::sync::lock;

/// How long output is awaited of a process that has ended while something still holds its streams.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a first process' exit is held back for those of added processes, and how long a killed one may take to end.
const EXITS: Duration = Duration::from_secs(10);

const SIGKILL: u32 = 9;

/// What all containers of a shim share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) namespace: String,
    pub(crate) reaper: Reaper,
    pub(crate) events: Events,
    /// The runtime's binary.
    pub(crate) runtime: PathBuf,
    /// The shim's own socket.
    pub(crate) socket: PathBuf,
}

/// A container that the runtime made.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    shared: Arc<Shared>,
    runtime: Runtime,
    owner: Owner,
    shares_pids: bool,
    pub(crate) init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Added>>>,
    paused: AtomicBool,
    /// The first process is gone, told or not: nothing can be added any more.
    init_gone: AtomicBool,
    cgroup: Option<Cgroup>,
    oom: Option<Arc<OomWatch>>,
    oom_task: Mutex<Option<AbortHandle>>,
}

/// A process added by `Exec`.
#[derive(Debug)]
struct Added {
    process: Arc<Process>,
    files: ExecFiles,
    description: serde_json::Value,
}

/// What the runtime is asked to make.
enum Make<'a> {
    Container(Create<'a>),
    Process(Exec<'a>),
}

impl Container {
    /// Makes the container, up to the point where its first process waits for `Start`.
    ///
    /// # Errors
    /// Bad options or streams, or what the runtime says, the gate's refusal included. Nothing is left behind then.
    pub(crate) async fn create(
        shared: &Arc<Shared>,
        request: &CreateTaskRequest,
    ) -> Result<Arc<Self>> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported { what: "restore from a checkpoint" });
        }
        let options = options::parse(request.options.as_ref(), &shared.runtime)?.options;
        let bundle = Path::new(&request.bundle);
        let spec = Spec::read(bundle)?;
        bundle::write_kept(bundle, options.systemd_cgroup)?;
        let rootfs_mounts = bundle::write_rootfs_mounts(bundle, &request.rootfs)?;
        let runtime =
            Runtime::new(shared.runtime.clone(), &shared.namespace, bundle, options.systemd_cgroup);
        let addresses = Addresses {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let owner = Owner { uid: options.io_uid, gid: options.io_gid };
        let expectation = shared.reaper.expect();
        let pid_file = bundle.join(bundle::INIT_PID);
        let make = Make::Container(Create {
            pid_file: &pid_file,
            rootfs_mounts: rootfs_mounts.as_deref(),
            flags: options.create_flags,
        });
        let maker = Maker { shared, runtime: &runtime, id: &request.id, owner };
        let io = maker.make(&addresses, &request.id, make).await?;
        let pid = match bundle::read_pid(&pid_file) {
            Ok(pid) => pid,
            Err(error) => {
                maker.undo().await;
                return Err(error);
            }
        };
        let child = expectation.adopt(pid);
        let init = Arc::new(Process::new(String::new(), addresses));
        init.made(pid, io);
        let cgroup = Cgroup::of(pid)
            .inspect_err(|error| log::warn!("{}: {}", request.id, error.chain()))
            .ok();
        let container = Arc::new(Self {
            id: request.id.clone(),
            shared: shared.clone(),
            runtime,
            owner,
            shares_pids: spec.shares_pids(),
            init,
            execs: Mutex::default(),
            paused: AtomicBool::new(false),
            init_gone: AtomicBool::new(false),
            oom: cgroup.as_ref().and_then(|cgroup| watch_oom(&request.id, cgroup)),
            oom_task: Mutex::default(),
            cgroup,
        });
        container.created(request);
        tokio::spawn(container.clone().watch_init(child));
        Ok(container)
    }

    /// Removes what [`Self::create`] had done when it was ended: its runtime is killed by then. Returns why it failed.
    pub(crate) async fn unmake(shared: &Arc<Shared>, request: &CreateTaskRequest) -> Error {
        let bundle = Path::new(&request.bundle);
        let systemd_cgroup = bundle::read_kept(bundle).unwrap_or(SystemdCgroup::Off);
        let runtime =
            Runtime::new(shared.runtime.clone(), &shared.namespace, bundle, systemd_cgroup);
        let owner = Owner { uid: 0, gid: 0 };
        Maker { shared, runtime: &runtime, id: &request.id, owner }.undo().await;
        Error::Cancelled { container: request.id.clone() }
    }

    fn created(self: &Arc<Self>, request: &CreateTaskRequest) {
        let io = event::TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..event::TaskIO::default()
        };
        let created = event::TaskCreate {
            container_id: self.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(io),
            pid: self.init.pid(),
            ..event::TaskCreate::default()
        };
        self.shared.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &created);
        if let Some(oom) = self.oom.clone() {
            let task = tokio::spawn(watch_kills(oom, Arc::downgrade(self)));
            *lock(&self.oom_task) = Some(task.abort_handle());
        }
    }

    /// Starts the first process. Returns its pid.
    pub(crate) async fn start(&self) -> Result<u32> {
        let _verbs = self.init.verbs.lock().await;
        self.require("start", &[Phase::Created])?;
        let _starting = self.init.starting.lock().await;
        self.runtime.start(&self.shared.reaper, &self.id).await?;
        self.init.advance(Phase::Running);
        let pid = self.init.pid();
        let started =
            event::TaskStart { container_id: self.id.clone(), pid, ..event::TaskStart::default() };
        self.shared.events.publish(topics::TASK_START_EVENT_TOPIC, &started);
        Ok(pid)
    }

    /// Notes a process that `Start` will make.
    ///
    /// # Errors
    /// The id is taken or unusable, or the description is no JSON object.
    pub(crate) fn add(&self, request: &ExecProcessRequest) -> Result<()> {
        self.require("exec", &[Phase::Created, Phase::Running])?;
        let files = ExecFiles::new(self.runtime.bundle(), &request.exec_id)?;
        let mut description: serde_json::Value = serde_json::from_slice(&request.spec.value)
            .map_err(Error::decode("process description"))?;
        match description.as_object_mut() {
            Some(object) => drop(object.insert("terminal".to_owned(), request.terminal.into())),
            None => {
                let value = description.to_string();
                let reason = "no JSON object".to_owned();
                return Err(Error::Invalid { what: "process description", value, reason });
            }
        }
        let addresses = Addresses {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let process = Arc::new(Process::new(request.exec_id.clone(), addresses));
        let mut execs = lock(&self.execs);
        if execs.contains_key(&request.exec_id) {
            return Err(Error::Exists { what: "process", name: request.exec_id.clone() });
        }
        execs.insert(request.exec_id.clone(), Arc::new(Added { process, files, description }));
        drop(execs);
        let added = event::TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: request.exec_id.clone(),
            ..event::TaskExecAdded::default()
        };
        self.shared.events.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &added);
        Ok(())
    }

    /// Makes an added process. Returns its pid.
    pub(crate) async fn start_exec(&self, exec_id: &str) -> Result<u32> {
        let added = self.added(exec_id)?;
        let process = &added.process;
        let _verbs = process.verbs.lock().await;
        if process.phase() != Phase::Created {
            let subject = format!("container {}: process {exec_id}", self.id);
            return Err(Error::State { subject, verb: "start", state: process.phase().word() });
        }
        let _starting = process.starting.lock().await;
        if self.init_gone.load(Ordering::Acquire) {
            let subject = format!("container {}: process {exec_id}", self.id);
            return Err(Error::State { subject, verb: "start", state: "its container is stopped" });
        }
        let child = match self.make_exec(&added).await {
            Ok(child) => child,
            Err(error) => {
                // whoever waits for it need not wait longer
                process.exited(Exit { status: 255, at: std::time::SystemTime::now() });
                return Err(error);
            }
        };
        process.advance(Phase::Running);
        let pid = process.pid();
        let started = event::TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            pid,
            ..event::TaskExecStarted::default()
        };
        self.shared.events.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &started);
        tokio::spawn(watch_exec(self.id.clone(), self.shared.clone(), process.clone(), child));
        Ok(pid)
    }

    async fn make_exec(&self, added: &Added) -> Result<Child> {
        let files = &added.files;
        files.write_process(&added.description)?;
        let expectation = self.shared.reaper.expect();
        let make =
            Make::Process(Exec { process: &files.process, pid_file: &files.pid, log: &files.log });
        let owner = self.owner;
        let maker = Maker { shared: &self.shared, runtime: &self.runtime, id: &self.id, owner };
        let made = maker.make(&added.process.addresses, &added.process.exec_id, make).await;
        let made = made.and_then(|io| Ok((io, bundle::read_pid(&files.pid)?)));
        files.remove();
        let (io, pid) = made?;
        let child = expectation.adopt(pid);
        added.process.made(pid, io);
        Ok(child)
    }

    /// Signals the first process or everything in the container.
    pub(crate) async fn kill(&self, signal: u32, scope: Scope) -> Result<()> {
        if scope == Scope::Init && self.init.phase() == Phase::Stopped {
            return Err(Error::Finished);
        }
        self.runtime.kill(&self.shared.reaper, &self.id, signal, scope).await
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        let _verbs = self.init.verbs.lock().await;
        self.require("pause", &[Phase::Running])?;
        self.runtime.pause(&self.shared.reaper, &self.id).await?;
        self.paused.store(true, Ordering::Release);
        let paused =
            event::TaskPaused { container_id: self.id.clone(), ..event::TaskPaused::default() };
        self.shared.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &paused);
        Ok(())
    }

    pub(crate) async fn resume(&self) -> Result<()> {
        let _verbs = self.init.verbs.lock().await;
        self.require("resume", &[Phase::Running])?;
        self.runtime.resume(&self.shared.reaper, &self.id).await?;
        self.paused.store(false, Ordering::Release);
        let resumed =
            event::TaskResumed { container_id: self.id.clone(), ..event::TaskResumed::default() };
        self.shared.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &resumed);
        Ok(())
    }

    pub(crate) async fn update(&self, resources: Vec<u8>) -> Result<()> {
        let _verbs = self.init.verbs.lock().await;
        self.require("update", &[Phase::Created, Phase::Running])?;
        self.runtime.update(&self.shared.reaper, &self.id, resources).await
    }

    /// Deletes the container. Returns its first process' exit.
    ///
    /// # Errors
    /// It runs, or what the runtime says; the container stays then and can be deleted again.
    pub(crate) async fn delete(&self) -> Result<Exit> {
        let _verbs = self.init.verbs.lock().await;
        self.require("delete", &[Phase::Created, Phase::Stopped])?;
        let never_started = self.init.phase() == Phase::Created;
        if never_started {
            self.runtime.delete_by_force(&self.shared.reaper, &self.id).await?;
        }
        let exit = tokio::time::timeout(EXITS, self.init.wait()).await;
        if let Some(io) = self.init.take_io() {
            io.finish(DRAIN).await;
        }
        if !never_started {
            self.runtime.delete(&self.shared.reaper, &self.id).await?;
        }
        self.init.advance(Phase::Deleted);
        let lost = Exit { status: 128 + SIGKILL, at: std::time::SystemTime::now() };
        let exit = exit.ok().flatten().unwrap_or(lost);
        let deleted = event::TaskDelete {
            container_id: self.id.clone(),
            pid: self.init.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..event::TaskDelete::default()
        };
        self.shared.events.publish(topics::TASK_DELETE_EVENT_TOPIC, &deleted);
        Ok(exit)
    }

    /// Forgets an added process. Returns it.
    ///
    /// # Errors
    /// It runs, or there is none.
    pub(crate) async fn delete_exec(&self, exec_id: &str) -> Result<Arc<Process>> {
        let added = self.added(exec_id)?;
        let _verbs = added.process.verbs.lock().await;
        if added.process.phase() == Phase::Running {
            let subject = format!("container {}: process {exec_id}", self.id);
            return Err(Error::State { subject, verb: "delete", state: "running" });
        }
        if let Some(io) = added.process.take_io() {
            io.finish(DRAIN).await;
        }
        added.process.advance(Phase::Deleted);
        lock(&self.execs).remove(exec_id);
        Ok(added.process.clone())
    }

    /// A process by its exec id, the first one by the empty id.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        match exec_id {
            "" => Ok(self.init.clone()),
            exec_id => Ok(self.added(exec_id)?.process.clone()),
        }
    }

    /// Every pid in the container, with the exec id of those that were added.
    pub(crate) fn pids(&self) -> Result<Vec<(u32, Option<String>)>> {
        let cgroup = self.cgroup()?;
        let execs = lock(&self.execs);
        let ids: HashMap<u32, &String> =
            execs.iter().map(|(id, added)| (added.process.pid(), id)).collect();
        let pids = cgroup.pids().into_iter();
        Ok(pids.map(|pid| (pid, ids.get(&pid).map(|id| (*id).clone()))).collect())
    }

    pub(crate) fn cgroup(&self) -> Result<&Cgroup> {
        self.cgroup.as_ref().ok_or_else(|| Error::NoCgroup { container: self.id.clone() })
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(crate) fn bundle(&self) -> &Path {
        self.runtime.bundle()
    }

    fn added(&self, exec_id: &str) -> Result<Arc<Added>> {
        let added = lock(&self.execs).get(exec_id).cloned();
        added.ok_or_else(|| Error::NoProcess {
            container: self.id.clone(),
            exec: exec_id.to_owned(),
        })
    }

    fn require(&self, verb: &'static str, phases: &[Phase]) -> Result<()> {
        let phase = self.init.phase();
        match phases.contains(&phase) {
            true => Ok(()),
            false => Err(Error::State {
                subject: format!("container {}", self.id),
                verb,
                state: phase.word(),
            }),
        }
    }

    async fn watch_init(self: Arc<Self>, mut child: Child) {
        let exit = child.wait().await;
        self.init_gone.store(true, Ordering::Release);
        drop(self.init.starting.lock().await);
        if self.shares_pids {
            let killed =
                self.runtime.kill(&self.shared.reaper, &self.id, SIGKILL, Scope::All).await;
            if let Err(error) = killed
                && !matches!(error, Error::Finished)
            {
                log::error!("container {}: kill what is left of it: {}", self.id, error.chain());
            }
        }
        self.await_execs().await;
        if let Some(task) = lock(&self.oom_task).take() {
            task.abort();
        }
        self.tell_oom();
        if let Err(error) = ExitRecord::new(self.init.pid(), exit).write(self.bundle()) {
            log::error!("container {}: {}", self.id, error.chain());
        }
        self.init.exited(exit);
        tell_exit(&self.shared, &self.id, &self.init, exit);
    }

    /// Waits until every added process' exit has been told.
    async fn await_execs(&self) {
        let execs: Vec<_> = lock(&self.execs).values().cloned().collect();
        let all = async {
            for added in execs {
                drop(added.process.starting.lock().await);
                if added.process.phase() == Phase::Running {
                    added.process.wait().await;
                }
            }
        };
        if tokio::time::timeout(EXITS, all).await.is_err() {
            log::error!("container {}: an added process outlives the first one", self.id);
        }
    }

    fn tell_oom(&self) {
        if self.oom.as_ref().is_some_and(|oom| oom.killed()) {
            let oom = event::TaskOOM { container_id: self.id.clone(), ..event::TaskOOM::default() };
            self.shared.events.publish(topics::TASK_OOM_EVENT_TOPIC, &oom);
        }
    }
}

fn watch_oom(id: &str, cgroup: &Cgroup) -> Option<Arc<OomWatch>> {
    match OomWatch::new(cgroup) {
        Ok(watch) => watch.map(Arc::new),
        Err(error) => {
            log::error!("container {id}: {}", error.chain());
            None
        }
    }
}

async fn watch_kills(oom: Arc<OomWatch>, container: Weak<Container>) {
    while oom.woken().await.is_ok()
        && let Some(container) = container.upgrade()
    {
        container.tell_oom();
    }
}

async fn watch_exec(id: String, shared: Arc<Shared>, process: Arc<Process>, mut child: Child) {
    let exit = child.wait().await;
    process.exited(exit);
    tell_exit(&shared, &id, &process, exit);
}

/// The first process goes by its container's id in events.
fn tell_exit(shared: &Shared, container: &str, process: &Process, exit: Exit) {
    let id = if process.exec_id.is_empty() { container } else { &process.exec_id };
    let told = event::TaskExit {
        container_id: container.to_owned(),
        id: id.to_owned(),
        pid: process.pid(),
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at)),
        ..event::TaskExit::default()
    };
    shared.events.publish(topics::TASK_EXIT_EVENT_TOPIC, &told);
}

/// One call that makes something with standard streams.
struct Maker<'a> {
    shared: &'a Shared,
    runtime: &'a Runtime,
    id: &'a str,
    owner: Owner,
}

impl Maker<'_> {
    /// Opens the streams, lets the runtime make the process `name`, starts copying.
    async fn make(&self, addresses: &Addresses, name: &str, make: Make<'_>) -> Result<ProcessIo> {
        let context = LoggerContext {
            reaper: &self.shared.reaper,
            namespace: &self.shared.namespace,
            id: name,
        };
        let mut streams = Streams::open(addresses, context).await?;
        if !addresses.terminal {
            let made = match streams.pipes(self.owner) {
                Ok(stdio) => self.call(&make, stdio).await,
                Err(error) => Err(error),
            };
            return match made {
                Ok(()) => Ok(streams.copy()),
                Err(error) => {
                    streams.abandon().await;
                    Err(error)
                }
            };
        }
        match self.make_with_terminal(&make).await {
            Ok(console) => match streams.copy_console(console) {
                Ok(io) => Ok(io),
                Err(error) => {
                    self.unmake(&make).await;
                    Err(error)
                }
            },
            Err(error) => {
                streams.abandon().await;
                Err(error)
            }
        }
    }

    async fn make_with_terminal(&self, make: &Make<'_>) -> Result<crate::console::Console> {
        let socket = ConsoleSocket::bind(&self.shared.socket)?;
        self.call(make, ChildStdio::Terminal { socket: socket.path().to_owned() }).await?;
        let console = socket.receive().await;
        if console.is_err() {
            self.unmake(make).await;
        }
        console
    }

    async fn call(&self, make: &Make<'_>, stdio: ChildStdio) -> Result<()> {
        let reaper = &self.shared.reaper;
        match make {
            Make::Container(create) => self.runtime.create(reaper, self.id, create, stdio).await,
            Make::Process(exec) => self.runtime.exec(reaper, self.id, exec, stdio).await,
        }
    }

    /// Ends what was made and cannot be used.
    async fn unmake(&self, make: &Make<'_>) {
        let exec = match make {
            Make::Container(_) => return self.undo().await,
            Make::Process(exec) => exec,
        };
        let killed = bundle::read_pid(exec.pid_file).map(|pid| {
            // the number is nobody else's before its exit is kept, and nothing is collected while this runs
            if self.shared.reaper.is_gone(pid) { Ok(()) } else { kill_process(pid, Signal::KILL) }
        });
        if !matches!(killed, Ok(Ok(()))) {
            log::error!("container {}: undo exec: {killed:?}", self.id);
        }
    }

    /// Removes a container that was made and cannot be used.
    async fn undo(&self) {
        if let Err(error) = self.runtime.delete_by_force(&self.shared.reaper, self.id).await {
            log::error!("container {}: undo create: {}", self.id, error.chain());
        }
    }
}
