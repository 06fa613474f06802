//! `create`: a container whose program waits for `start`.

use std::path::PathBuf;

use super::{Globals, Presence, connect_console, require_console, require_preserved};
use crate::error::Result;
use crate::init::Keyring;
use crate::launch::{self, Launched, Request, Start};
use crate::spec::Plan;
use crate::state::ContainerId;

/// Options that `create` and `run` share.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pidfd_socket: Option<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) keyring: Keyring,
    pub(crate) preserved: u32,
    pub(crate) rootfs_mounts: Option<PathBuf>,
}

pub(crate) fn create(globals: &Globals, options: Options) -> Result<()> {
    require_preserved(options.preserved)?;
    let mut plan = load(globals, &options)?;
    require_console(plan.process.terminal, Presence::Detached, options.console_socket.as_deref())?;
    let request = request(globals, options, Start::Later)?;
    launch::launch(request, &mut plan, &globals.log).map(drop::<Launched>)
}

pub(super) fn load(globals: &Globals, options: &Options) -> Result<Plan> {
    let plan = Plan::load(&options.bundle)?;
    for warning in &plan.warnings {
        globals.log.warning(warning);
    }
    Ok(plan)
}

pub(super) fn request(globals: &Globals, options: Options, start: Start) -> Result<Request> {
    Ok(Request {
        root: globals.root.clone(),
        id: options.id,
        driver: globals.driver,
        keyring: options.keyring,
        preserved: options.preserved,
        rootfs_mounts: options.rootfs_mounts,
        console: options.console_socket.as_deref().map(connect_console).transpose()?,
        pidfd: options.pidfd_socket.as_deref().map(connect_console).transpose()?,
        pid_file: options.pid_file,
        start,
    })
}
