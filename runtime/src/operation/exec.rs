//! `exec`: one more program in a running container.

use std::path::PathBuf;

use hallmark_sys::process::{Clone, Cloned, Namespaces, Parent, clone3, exit_immediately};
use rustix::thread::CpuSet;
use serde_json::Value;

use super::run::{console_pair, receive_master};
use super::{Globals, Presence, connect_console, foreground, require_console, require_preserved};
use crate::cgroup::Join;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::handshake::{self, Agent, FromInit, RuntimeEnd, ToInit};
use crate::init::{self, Common, ConsoleSocket, Go};
use crate::launch::{self, Settings};
use crate::selinux;
use crate::spec::{self, Kind, Plan, ProcessPlan, Terminal};
use crate::state::{Container, ContainerId, Held, LiveProcess, Status, document};
use crate::supervisor::Supervisor;
use hallmark_sys::procfs::Procfs;

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) id: ContainerId,
    pub(crate) presence: Presence,
    pub(crate) process: Source,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pidfd_socket: Option<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) preserved: u32,
    /// `--cgroup`: directories below the container's.
    pub(crate) cgroups: Vec<String>,
    pub(crate) paused: Paused,
}

/// Whether a program may be added to a frozen container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paused {
    Refused,
    Wanted,
}

/// Where the process comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// `--process`.
    File(PathBuf),
    /// The container's own, with changes.
    Container(Box<Changes>),
}

/// Changes to the container's own process.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) terminal: bool,
    /// uid and, if given, gid.
    pub(crate) user: Option<(u32, Option<u32>)>,
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) label: Option<String>,
    pub(crate) apparmor: Option<String>,
    pub(crate) no_new_privileges: Option<bool>,
    pub(crate) capabilities: Vec<String>,
}

/// Returns the exit status of the program, or 0 if it goes on without us.
pub(crate) fn exec(globals: &Globals, options: Options) -> Result<u8> {
    require_preserved(options.preserved)?;
    let container = Container::load(&globals.root, &options.id)?;
    let (held, first) = joinable(container, options.paused)?;
    let plan = Plan::parse(held.record.config.get().as_bytes(), &held.record.bundle)?;
    let mut warnings = Vec::new();
    let process = process(&options.process, &plan, &mut warnings)?;
    warnings.iter().for_each(|warning| globals.log.warning(warning));
    require_console(process.terminal, options.presence, options.console_socket.as_deref())?;
    let mut console = options.console_socket.as_deref().map(connect_console).transpose()?;
    let mut ours = None;
    if options.presence == Presence::Foreground && process.terminal != Terminal::No {
        let (near, far) = console_pair()?;
        console = Some(far);
        ours = Some(near);
    }
    let job = Job { held: &held, first: &first, plan: &plan, process: &process };
    let (child, end) = add(&job, &options, console)?;
    log_setup(globals, &process, &child);
    let state = document(&held.record, Status::Running, held.record.pid);
    let agent = Supervisor::of(plan.seccomp.as_ref(), &child, state)?;
    let settled = settle(&job, &options, &child, (&end, agent.as_ref()));
    let master = settled.and_then(|()| receive_master(ours));
    let ran = master.and_then(|master| {
        globals.log.in_init(child.pid);
        globals.log.debug("setns_init: about to exec");
        end.send(ToInit::Go)?;
        end.until_exec(agent.as_ref()).map(|()| master)
    });
    match ran {
        Ok(_) if options.presence == Presence::Detached => Ok(0),
        Ok(master) => foreground::wait(&child, master),
        Err(error) => {
            // it may still wait for a word that will not come
            rustix::process::pidfd_send_signal(&child.pidfd, rustix::process::Signal::KILL).ok();
            foreground::reap(&child).ok();
            Err(error)
        }
    }
}

/// As runc's debug log: the step, and the processors that the process starts on if that was asked for.
fn log_setup(globals: &Globals, process: &ProcessPlan, child: &LiveProcess) {
    globals.log.container_setup(child.pid);
    if let Some(cpus) = &process.initial_affinity {
        let mask = (0..CpuSet::MAX_CPU.min(64))
            .filter(|cpu| cpus.is_set(*cpu))
            .fold(0_u64, |mask, cpu| mask | 1 << cpu);
        let pid = child.pid.as_raw_nonzero();
        globals.log.debug(&format!("nsexec[{pid}]: affinity: {mask:#x}"));
    }
}

fn joinable(container: Container, paused: Paused) -> Result<(Held, LiveProcess)> {
    let refused = |what: &str| Err(Error::new(ErrorKind::State, what));
    match container {
        Container::Created(state) => Ok((state.held, state.process)),
        Container::Running(state) => Ok((state.held, state.process)),
        Container::Paused(state) if paused == Paused::Wanted => Ok((state.held, state.process)),
        Container::Paused(_) => {
            refused("cannot exec in a paused container (use --ignore-paused to override)")
        }
        Container::Stopped(_) => refused("cannot exec in a stopped container"),
    }
}

fn process(source: &Source, plan: &Plan, warnings: &mut Vec<String>) -> Result<ProcessPlan> {
    match source {
        Source::File(path) => {
            let name = path.display().to_string();
            let value: Value = spec::json(&spec::read(path)?, &name)?;
            spec::parse_process(value, &plan.process, warnings)
        }
        Source::Container(changes) => changed(&plan.process, changes),
    }
}

fn changed(process: &ProcessPlan, changes: &Changes) -> Result<ProcessPlan> {
    if changes.args.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "exec args cannot be empty"));
    }
    let mut process = process.clone();
    process.args.clone_from(&changes.args);
    process.env.extend(changes.env.iter().cloned());
    if let Some(cwd) = &changes.cwd {
        process.cwd.clone_from(cwd);
    }
    process.terminal = if changes.terminal { Terminal::Yes(None) } else { Terminal::No };
    if let Some((uid, gid)) = changes.user {
        process.user.uid = uid;
        process.user.gid = gid.unwrap_or(process.user.gid);
    }
    process.user.additional_gids.extend(&changes.additional_gids);
    process.selinux_label = changes.label.clone().or(process.selinux_label);
    process.apparmor_profile = changes.apparmor.clone().or(process.apparmor_profile);
    process.no_new_privileges = changes.no_new_privileges.unwrap_or(process.no_new_privileges);
    process.capabilities.add(&changes.capabilities)?;
    process.require()?;
    Ok(process)
}

/// What is added to what.
struct Job<'a> {
    held: &'a Held,
    first: &'a LiveProcess,
    plan: &'a Plan,
    process: &'a ProcessPlan,
}

impl Job<'_> {
    fn settings(&self) -> Settings<'_> {
        Settings { process: self.process, namespaces: &self.plan.namespaces }
    }
}

fn add(
    job: &Job<'_>,
    options: &Options,
    console: Option<std::os::fd::OwnedFd>,
) -> Result<(LiveProcess, RuntimeEnd)> {
    selinux::require_of(&Procfs::open()?, job.process)?;
    let filter = job.plan.seccomp.as_ref().map(launch::compile).transpose()?;
    let cgroup = job.held.cgroup()?;
    let join = match &options.cgroups[..] {
        [] => cgroup.join()?,
        places => cgroup
            .join_places(places)
            .context(|| "error adding pid of the new process to cgroups")?,
    };
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| job.held.record.namespace_paths.contains_key(kind.name()))
        .collect();
    let (runtime_end, init_end) = handshake::pair()?;
    let mut common = Common {
        id: &job.held.record.id,
        process: job.process,
        hardening: &job.held.record.hardening,
        join: &join,
        filter: filter.as_ref(),
        console: console.map(ConsoleSocket),
        preserved: options.preserved,
        limits: job.settings().limits_by(),
        end: init_end,
        go: Go::Message,
    };
    // a container that manages control groups itself keeps no process in the one it was given: then beside its first
    let beside;
    let cloned = match clone_into(&join) {
        Err(error)
            if error.kind() == hallmark_sys::ErrorKind::Busy && options.cgroups.is_empty() =>
        {
            beside = cgroup.join_beside(job.first.pid)?;
            common.join = &beside;
            clone_into(&beside)
        }
        other => other,
    };
    match cloned? {
        Cloned::Child => become_stage(job, common, &kinds),
        Cloned::Parent { pid, .. } => {
            drop(common);
            Ok((launch::after_stage(pid, &runtime_end)?, runtime_end))
        }
    }
}

fn clone_into(join: &Join) -> hallmark_sys::Result<Cloned> {
    let namespaces = Namespaces::empty();
    clone3(&Clone { namespaces, cgroup: join.clone_into(), parent: Parent::Caller })
}

fn become_stage(job: &Job<'_>, common: Common<'_>, kinds: &[Kind]) -> ! {
    use std::os::fd::AsFd;
    if let Some(cpus) = &job.process.initial_affinity
        && let Err(errno) = rustix::thread::sched_setaffinity(None, cpus)
    {
        init::give_up(&common, &Error::from(errno).within("execCPUAffinity.initial"));
    }
    match init::join_container(job.first.pidfd.as_fd(), kinds, &common) {
        Ok(Cloned::Child) => init::become_exec(common, job.plan),
        Ok(Cloned::Parent { .. }) => exit_immediately(0),
        Err(error) => init::give_up(&common, &error),
    }
}

fn settle(
    job: &Job<'_>,
    options: &Options,
    child: &LiveProcess,
    (end, agent): (&RuntimeEnd, Agent<'_>),
) -> Result<()> {
    let pidfd = options.pidfd_socket.as_deref().map(connect_console).transpose()?;
    launch::send_pidfd(pidfd, child, "setns")?;
    let settings = job.settings();
    settings.oom_score(child.pid, &Procfs::open()?)?;
    end.expect_beside(&FromInit::Ready, agent)?;
    settings.limits(child.pid)?;
    match &options.pid_file {
        Some(path) => launch::write_pid_file(path, child.pid).context(|| "exec"),
        None => Ok(()),
    }
}
