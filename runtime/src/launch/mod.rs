//! Making a container: what `create` and `run` share.
//!
//! Nothing is made before the configuration is parsed and the gate has answered; what is made afterwards is undone in
//! reverse if a later step fails ([`Undo`]).

mod judge;
mod own;
mod settle;
mod undo;
#[cfg(fuzzing)]
pub(crate) use judge::host_view;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hallmark_sys::mount::Attributes;
use hallmark_sys::process::{Clone, Cloned, Namespaces, Parent, clone3, exit_immediately};
use hallmark_sys::seccomp::Listener;
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};
use serde_json::Value;

use crate::cgroup::{Cgroup, Driver, NewCgroup, Place};
use crate::error::{Context, Error, Result};
use crate::handshake::{self, FromInit, RuntimeEnd, ToInit};
use crate::hooks;
use crate::init::{
    self, Binds, CgroupMounts, Common, ConsoleSocket, Go, Init, JoinedNamespace, Keyring,
    Membership, Source, Translation, View,
};
use crate::log::Log;
use crate::seccomp::Filter;
use crate::selinux;
use crate::spec::{Kind, MountKind, MountPlan, Plan};
use crate::state::{
    ContainerId, Directory, LiveProcess, Record, RootDirectory, SCHEMA_VERSION, Status, document,
    stat,
};
use crate::supervisor::{self, Supervisor};
use crate::timestamp::Timestamp;
use hallmark_sys::procfs::Procfs;

use judge::Judged;
pub(crate) use settle::Settings;
use undo::Undo;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Request {
    /// `--root`.
    pub(crate) root: PathBuf,
    pub(crate) id: ContainerId,
    pub(crate) driver: Driver,
    pub(crate) keyring: Keyring,
    pub(crate) preserved: u32,
    pub(crate) rootfs_mounts: Option<PathBuf>,
    /// A connected socket that gets the terminal's other end.
    pub(crate) console: Option<OwnedFd>,
    /// A connected socket that gets the first process' pidfd.
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) start: Start,
}

/// Who says when the program starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// `start`, later.
    Later,
    /// The caller of [`launch`], with [`Launched::go`].
    Now,
}

/// A container whose program waits for the word to start.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) directory: Directory,
    pub(crate) record: Record,
    pub(crate) process: LiveProcess,
    pub(crate) cgroup: Cgroup,
    end: RuntimeEnd,
    agent: Option<Supervisor>,
}

impl Launched {
    /// Says it, and waits until the program runs.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn go(&self) -> Result<()> {
        self.end.send(ToInit::Go)?;
        self.end.until_exec(self.agent.as_ref())
    }
}

/// Everything that can be opened and refused without a trace.
struct Prepared {
    procfs: Procfs,
    judged: Judged,
    joined: Vec<JoinedNamespace>,
    binds: Vec<Option<Source>>,
    translations: Vec<Translation>,
    filter: Option<Filter>,
}

/// Makes the container of `plan`.
///
/// # Errors
/// Refused by the gate, or whatever the kernel says; nothing is left behind then.
pub(crate) fn launch(mut request: Request, plan: &mut Plan, log: &Log) -> Result<Launched> {
    let root = RootDirectory::open_or_make(&request.root)?;
    let mut prepared = prepare(&request, plan, log)?;
    let place = place(&request, plan, &prepared.judged)?;
    let mut undo = Undo::new(root.make(&request.id)?);
    undo.directory()?.lock()?;
    undo.directory()?.write_cgroups_path(&place.path().to_string())?;
    let cgroup = make_cgroup(place, plan, &prepared.judged)?;
    let join = cgroup.join()?;
    let mut record = record(&request, plan, &prepared.judged, &cgroup);
    let shown = shown_cgroups(plan, &prepared.procfs, &cgroup)?;
    undo.cgroup(cgroup);
    let go = match request.start {
        Start::Later => Go::Connection(listen(undo.directory()?)?),
        Start::Now => Go::Message,
    };
    let (end, init_end) = handshake::pair()?;
    let console = request.console.take().map(ConsoleSocket);
    let opened = prepared.open();
    let settings = Settings { process: &plan.process, namespaces: &plan.namespaces };
    let common = Common {
        id: request.id.as_str(),
        process: &plan.process,
        hardening: &prepared.judged.hardening,
        join: &join,
        filter: prepared.filter.as_ref(),
        console,
        preserved: request.preserved,
        limits: settings.limits_by(),
        end: init_end,
        go,
    };
    let state = document(&record, Status::Creating, 0);
    let init = opened.into_init((plan, &prepared.procfs), (shown, request.keyring), state, common);
    let (process, end) = make_process(init, end, &mut undo)?;
    undo.settle_cgroup(&plan.resources)?;
    log.container_setup(process.pid);
    identify(&mut record, plan, process.pid)?;
    send_pidfd(request.pidfd.take(), &process, "standard")?;
    settings.before(process.pid, &prepared.procfs, &end)?;
    settle::translate(&prepared.translations, &process, &end)?;
    run_runtime_hooks(plan, &record, undo.directory()?, &end)?;
    let state = document(&record, Status::Creating, record.pid);
    let agent = Supervisor::of(plan.seccomp.as_ref(), &process, state)?;
    end.expect_beside(&FromInit::Ready, agent.as_ref())?;
    log.in_init(process.pid);
    settings.limits(process.pid)?;
    undo.directory()?.write_state(&record.text()?)?;
    if let Some(path) = &request.pid_file {
        write_pid_file(path, process.pid)?;
    }
    log.debug(&format!("{}: pid {}, verdict {}", request.id, record.pid, record.verdict));
    let (directory, cgroup) = undo.commit()?;
    Ok(Launched { directory, record, process, cgroup, end, agent })
}

/// Descriptors for the first process, which takes them with it.
struct Opened {
    rootfs: Option<OwnedFd>,
    joined: Vec<JoinedNamespace>,
    binds: Vec<Option<Source>>,
}

impl Prepared {
    fn open(&mut self) -> Opened {
        Opened {
            rootfs: self.judged.rootfs.take(),
            joined: std::mem::take(&mut self.joined),
            binds: std::mem::take(&mut self.binds),
        }
    }
}

impl Opened {
    fn into_init<'a>(
        self,
        (plan, procfs): (&'a Plan, &'a Procfs),
        (cgroups, keyring): (Option<CgroupMounts>, Keyring),
        state: Value,
        common: Common<'a>,
    ) -> Init<'a> {
        let membership = Membership {
            plan: &plan.namespaces,
            joined: self.joined,
            new_cgroup: plan.namespaces.makes(Kind::Cgroup),
        };
        let (rootfs, binds) = (self.rootfs, self.binds);
        Init { plan, procfs, rootfs, binds, cgroups, membership, keyring, state, common }
    }
}

fn shown_cgroups(plan: &Plan, procfs: &Procfs, cgroup: &Cgroup) -> Result<Option<CgroupMounts>> {
    let wanted = plan.mounts.iter().any(|mount| mount.kind == MountKind::Cgroup);
    let view = if plan.namespaces.contains(Kind::Cgroup) { View::Private } else { View::Host };
    wanted.then(|| CgroupMounts::read(procfs, cgroup, view)).transpose()
}

fn prepare(request: &Request, plan: &mut Plan, log: &Log) -> Result<Prepared> {
    let procfs = Procfs::open()?;
    selinux::require_of(&procfs, &plan.process)?;
    plan.mount_label.as_deref().map_or(Ok(()), |label| selinux::require(&procfs, label))?;
    let mut judged = judge::judge(request, plan, &procfs)?;
    // they are in the audit log; a program in the foreground has our stderr to itself
    for warning in &judged.warnings {
        log.note(warning);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&plan.rootfs, flags, Mode::empty())
        .context(|| format!("rootfs {}", plan.rootfs.display()))?;
    let joined = init::open_joined(&plan.namespaces.joined)?;
    own::require_own(plan, &joined, &procfs)?;
    let volumes = std::mem::take(&mut judged.volumes);
    let Binds { sources: binds, later: translations } =
        init::open_binds(plan, volumes, |maps| match init::joined_user(&joined) {
            // the container's own maps are those of the namespace it joins
            Some(namespace) if maps.is_empty() => {
                namespace.try_clone_to_owned().context(|| "dup a user namespace")
            }
            _ => settle::user_namespace(maps, &procfs),
        })?;
    let filter = plan.seccomp.as_ref().map(compile).transpose()?;
    if let Some(filter) = &filter {
        log.debug(&format!("seccomp filter flags: {}", filter.bits()));
    }
    Ok(Prepared { procfs, judged, joined, binds, translations, filter })
}

/// Compiles a profile; one that needs a supervisor must say where it is.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let filter = crate::seccomp::compile(profile)?;
    if filter.listener() == Listener::Wanted {
        supervisor::require_path(profile)?;
    }
    Ok(filter)
}

/// Where the control groups go: said in the configuration, to this driver.
fn place(request: &Request, plan: &Plan, judged: &Judged) -> Result<Place> {
    let path = (plan.cgroups_path.as_deref(), request.id.as_str());
    let annotations = (&plan.annotations, judged.annotations());
    Ok(Place::parse(request.driver, path, annotations)?)
}

fn make_cgroup(place: Place, plan: &Plan, judged: &Judged) -> Result<NewCgroup> {
    let cgroup = Cgroup::create(place, &plan.resources)?;
    // first what is denied above: v1 would silently take it out of rules that are there already
    judged.deny_on_parent(&cgroup)?;
    if let Some(owner) = cgroup_owner(plan) {
        cgroup.delegate(owner)?;
    }
    cgroup.prepare(&plan.resources)?;
    Ok(cgroup)
}

/// Who may make control groups below the container's: its first process' user, if it sees them as its own and writable.
fn cgroup_owner(plan: &Plan) -> Option<u32> {
    let writable = |mount: &MountPlan| {
        mount.kind == MountKind::Cgroup && !mount.set.contains(Attributes::READ_ONLY)
    };
    if !plan.namespaces.contains(Kind::Cgroup) || !plan.mounts.iter().any(writable) {
        return None;
    }
    let uid = plan.process.user.uid;
    if plan.namespaces.contains(Kind::User) {
        plan.namespaces.id_maps.host_uid(uid)
    } else {
        Some(uid)
    }
}

/// The socket on which the first process waits for `start`.
fn listen(directory: &Directory) -> Result<OwnedFd> {
    let what = || "start.sock";
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .context(what)?;
    let address = SocketAddrUnix::new(directory.start_address()).context(what)?;
    rustix::net::bind(&socket, &address).context(what)?;
    rustix::net::listen(&socket, 1).context(what)?;
    Ok(socket)
}

/// Makes the first process, directly or through a stage, and sees to it that it is killed if anything fails.
///
/// Our end comes back in the parent only: a child that kept its copy would not notice that we are gone, and would hold the
/// lock on the container's state for ever.
fn make_process(
    init: Init<'_>,
    end: RuntimeEnd,
    undo: &mut Undo,
) -> Result<(LiveProcess, RuntimeEnd)> {
    let stage = init.membership.needs_stage();
    let namespaces = if stage { Namespaces::empty() } else { init.membership.cloned() };
    let clone = Clone { namespaces, cgroup: init.common.join.clone_into(), parent: Parent::Caller };
    match clone3(&clone)? {
        Cloned::Child => {
            drop(end);
            if stage { become_stage(init) } else { init::become_init(init) }
        }
        Cloned::Parent { pid, pidfd } if !stage => {
            // our copy of the other end must go, or the end of the process would go unnoticed
            drop(init);
            Ok((undo.process(LiveProcess { pid, pidfd })?, end))
        }
        Cloned::Parent { pid, .. } => {
            drop(init);
            let process = after_stage(pid, &end)?;
            Ok((undo.process(process)?, end))
        }
    }
}

fn become_stage(init: Init<'_>) -> ! {
    match init::stage(&init.membership, init.common.join, &init.common.end) {
        Ok(Cloned::Child) => init::become_init(init),
        Ok(Cloned::Parent { .. }) => exit_immediately(0),
        Err(error) => init::give_up(&init.common, &error),
    }
}

/// Takes the process that a stage made, and the stage's exit status.
pub(crate) fn after_stage(stage: Pid, end: &RuntimeEnd) -> Result<LiveProcess> {
    let message = end.receive();
    let waited = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(Some(stage), rustix::process::WaitOptions::empty())
    });
    waited.context(|| "wait for the stage")?;
    match message? {
        Some(FromInit::Stage(pid)) => {
            let pid = Pid::from_raw(pid).filter(|_| pid > 0);
            let pid = pid.ok_or_else(|| Error::system("stage: not a pid"))?;
            // ours to reap, so the number cannot have been reused
            let pidfd =
                rustix::process::pidfd_open(pid, PidfdFlags::empty()).context(|| "pidfd_open")?;
            Ok(LiveProcess { pid, pidfd })
        }
        other => Err(handshake::unexpected(other, "Stage")),
    }
}

fn run_runtime_hooks(
    plan: &Plan,
    record: &Record,
    directory: &Directory,
    end: &RuntimeEnd,
) -> Result<()> {
    let list = &plan.hooks;
    if list.prestart.is_empty() && list.create_runtime.is_empty() {
        return Ok(());
    }
    end.expect(&FromInit::Mounted)?;
    // a hook may ask for the container's state
    directory.write_state(&record.text()?)?;
    let state = document(record, Status::Creating, record.pid);
    hooks::run(&list.prestart, "prestart", &state)?;
    hooks::run(&list.create_runtime, "createRuntime", &state)?;
    end.send(ToInit::HooksRan)
}

fn record(request: &Request, plan: &Plan, judged: &Judged, cgroup: &Cgroup) -> Record {
    Record {
        schema_version: SCHEMA_VERSION,
        oci_version: plan.oci_version.clone(),
        id: request.id.as_str().to_owned(),
        bundle: plan.bundle.clone(),
        rootfs: plan.rootfs.clone(),
        pid: 0,
        pid_start_time: 0,
        created: Timestamp::now().to_string(),
        cgroup_paths: cgroup.paths(),
        cgroup_driver: request.driver,
        namespace_paths: BTreeMap::new(),
        hardening: judged.hardening.clone(),
        verdict: judged.verdict.clone(),
        resources: None,
        annotations: plan.annotations.clone(),
        config: plan.config.clone(),
    }
}

/// Says in the record which process it is and where its namespaces are.
fn identify(record: &mut Record, plan: &Plan, pid: Pid) -> Result<()> {
    let stat = stat(pid)?.ok_or_else(|| Error::system("first process: gone"))?;
    record.pid = pid.as_raw_nonzero().get();
    record.pid_start_time = stat.start_time;
    record.namespace_paths = Kind::ALL
        .into_iter()
        .filter(|kind| plan.namespaces.contains(*kind))
        .map(|kind| (kind.name().to_owned(), format!("/proc/{}/ns/{}", record.pid, kind.file())))
        .collect();
    Ok(())
}

/// Gives the process itself to whoever asked for it at `--pidfd-socket`.
pub(crate) fn send_pidfd(socket: Option<OwnedFd>, process: &LiveProcess, name: &str) -> Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    handshake::send_descriptor(socket.as_fd(), process.pidfd.as_fd(), name.as_bytes())
        .context(|| "send the pidfd")
}

/// Written whole or not at all: whoever waits for the file must not read half a number.
pub(crate) fn write_pid_file(path: &Path, pid: Pid) -> Result<()> {
    let what = || format!("pid file {}", path.display());
    let name = path.file_name().ok_or_else(|| Error::spec(format!("{}: names no file", what())))?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    let new = path.with_file_name(new);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).open(&new).context(what)?;
    let written =
        write!(file, "{}", pid.as_raw_nonzero()).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        // the first failure is the one to tell
        drop(std::fs::remove_file(&new));
    }
    written.context(what)
}
