//! From a cloned copy of the runtime to the container's program: one file a phase, [`run`] is their order.
//!
//! Everything here happens in the container's first process, which has one thread, is not dumpable, and dies with an
//! error if any step fails: there is no step whose failure is ignored.

mod attach;
mod bind;
mod cgroups;
mod console;
mod copy_up;
mod credentials;
mod devices;
mod identity;
mod keyring;
mod label;
mod limits;
mod masks;
mod mounts;
mod namespaces;
mod program;
mod root;
mod rootfs;
mod security;
#[cfg(fuzzing)]
pub(crate) use cgroups::v1_mount;

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use serde_json::Value;

use crate::cgroup::Join;
use crate::error::Result;
use crate::handshake::{FromInit, InitEnd, ToInit};
use crate::hooks;
use crate::seccomp::Filter;
use crate::spec::{Plan, ProcessPlan, Terminal};
use crate::state::{Hardening, Status};
use hallmark_sys::procfs::Procfs;

pub(crate) use attach::{Binds, Source, Translation, open_binds};
pub(crate) use cgroups::{CgroupMounts, View};
pub(crate) use console::ConsoleSocket;
pub(crate) use namespaces::{
    JoinedNamespace, Membership, join_container, joined_user, open_joined, stage,
};
pub(crate) use program::{Go, give_up};

/// What the first process of a new container works from. All descriptors were opened in the host's namespaces.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) procfs: &'a Procfs,
    /// The judged root, detached; `None`: bind `root.path`.
    pub(crate) rootfs: Option<OwnedFd>,
    /// For each mount of the plan, what it binds.
    pub(crate) binds: Vec<Option<Source>>,
    /// What a cgroup mount shows, if there is one.
    pub(crate) cgroups: Option<CgroupMounts>,
    pub(crate) membership: Membership<'a>,
    pub(crate) keyring: Keyring,
    /// The state for createContainer and startContainer hooks.
    pub(crate) state: Value,
    pub(crate) common: Common<'a>,
}

/// What every process of a container works from, its first one and those that `exec` adds.
#[derive(Debug)]
pub(crate) struct Common<'a> {
    pub(crate) id: &'a str,
    pub(crate) process: &'a ProcessPlan,
    pub(crate) hardening: &'a Hardening,
    pub(crate) join: &'a Join,
    pub(crate) filter: Option<&'a Filter>,
    pub(crate) console: Option<ConsoleSocket>,
    pub(crate) limits: Limits,
    /// How many descriptors from 3 on the program keeps.
    pub(crate) preserved: u32,
    pub(crate) end: InitEnd,
    pub(crate) go: Go,
}

/// Who sets resource limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limits {
    /// The process itself, while it is root.
    Own,
    /// The runtime: root of a user namespace may not raise any.
    Runtime,
}

/// Whether the container gets a session keyring of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyring {
    New,
    Inherited,
}

/// Becomes the container's first process, or says why not, and never returns.
pub(crate) fn become_init(mut init: Init<'_>) -> ! {
    let failure = match run(&mut init) {
        Ok(never) => match never {},
        Err(error) => error.within("error during container init"),
    };
    program::give_up(&init.common, &failure)
}

/// The phases, in order.
fn run(init: &mut Init<'_>) -> Result<Infallible> {
    let plan = init.plan;
    namespaces::enter(init)?;
    // in the container's own PID namespace, as runc tells it to hooks that run there
    init.state["pid"] = rustix::process::getpid().as_raw_nonzero().get().into();
    keyring::join(init)?;
    namespaces::bring_up_loopback(plan)?;
    let root = rootfs::attach(init)?;
    let late = mounts::mount_all(init, &root)?;
    devices::make(plan, &root)?;
    run_runtime_hooks(init)?;
    // where runc runs them: relative paths of such hooks are the container's
    root.enter()?;
    hooks::run(&plan.hooks.create_container, "createContainer", &init.state)?;
    let console = match plan.process.terminal {
        Terminal::Yes(size) => Some(console::make(&init.common, &root, size)?),
        Terminal::No => None,
    };
    rootfs::pivot(plan, &root)?;
    if let Some(console) = console {
        console::become_terminal(console)?;
    }
    rootfs::reopen_null(plan)?;
    rootfs::make_cwd(&plan.process)?;
    rootfs::finish(plan, &root, late)?;
    identity::set(plan, init.procfs)?;
    masks::read_only(&plan.read_only_paths)?;
    masks::mask(&plan.masked_paths, plan.mount_label.as_deref())?;
    drop(root);
    limits::schedule(&plan.process)?;
    limits::personality_and_memory(plan)?;
    harden_and_exec(&mut init.common, &init.state, plan)
}

fn run_runtime_hooks(init: &Init<'_>) -> Result<()> {
    let hooks = &init.plan.hooks;
    if hooks.prestart.is_empty() && hooks.create_runtime.is_empty() {
        return Ok(());
    }
    init.common.end.send(&FromInit::Mounted)?;
    init.common.end.expect(ToInit::HooksRan)
}

/// The part that `exec` shares: labels, privileges, credentials, seccomp, program. After the word to start, failures
/// are told to whoever gave it.
fn harden_and_exec(common: &mut Common<'_>, state: &Value, plan: &Plan) -> Result<Infallible> {
    let program = secure(common)?;
    common.end.send(&FromInit::Ready)?;
    let report = program::wait_for_go(common)?;
    let mut state = state.clone();
    state["status"] = Status::Created.name().into();
    let start_hooks = hooks::with_default_env(&plan.hooks.start_container, program.env());
    // a hook that runs inside is filtered as the program is
    let prepared = security::seccomp_late(common, report.as_fd())
        .and_then(|()| hooks::run(&start_hooks, "startContainer", &state));
    match prepared {
        Ok(()) => program::exec(&program, &report),
        Err(error) => program::fail(&report, &error),
    }
}

/// Gives up what the program must not have; afterwards only seccomp (with `no_new_privs`) and exec are left.
fn secure(common: &Common<'_>) -> Result<program::Program> {
    label::set_apparmor(common)?;
    security::no_new_privileges(common.process)?;
    label::set_selinux(common)?;
    program::close_the_hosts(common)?;
    security::deny_write_execute(common.hardening)?;
    security::seccomp_early(common)?;
    limits::resources(common)?;
    credentials::drop_to(common)?;
    program::find(common.process)
}

/// Becomes a program that `exec` adds, in a process that has joined the container of `plan`, and never returns.
pub(crate) fn become_exec(mut common: Common<'_>, plan: &Plan) -> ! {
    let failure = match run_exec(&mut common, plan) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    program::give_up(&common, &failure)
}

fn run_exec(common: &mut Common<'_>, plan: &Plan) -> Result<Infallible> {
    namespaces::settle_in(plan)?;
    keyring::join_of(common, plan)?;
    if let Terminal::Yes(size) = common.process.terminal {
        let console = console::make_inside(common, size)?;
        console::become_terminal(console)?;
    }
    rootfs::umask(common.process);
    limits::schedule(common.process)?;
    limits::personality_and_memory(plan)?;
    let program = secure(common)?;
    common.end.send(&FromInit::Ready)?;
    let report = program::wait_for_go(common)?;
    match security::seccomp_late(common, report.as_fd()) {
        Ok(()) => program::exec(&program, &report),
        Err(error) => program::fail(&report, &error),
    }
}
