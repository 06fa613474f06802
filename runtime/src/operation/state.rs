//! `state`: what a container is doing, as JSON.

use serde_json::{Value, json};

use super::Globals;
use crate::error::Result;
use crate::spec::OCI_VERSION;
use crate::state::{Container, ContainerId};

pub(crate) fn state(globals: &Globals, id: &ContainerId) -> Result<String> {
    let container = Container::load(&globals.root, id)?;
    Ok(format!("{:#}\n", describe(&container)))
}

/// runc's fields, in its order of importance; a stopped container has pid 0.
pub(super) fn describe(container: &Container) -> Value {
    let record = &container.held().record;
    json!({
        "ociVersion": OCI_VERSION,
        "id": record.id,
        "pid": container.process().map_or(0, |process| process.pid.as_raw_nonzero().get()),
        "status": container.status().name(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": "",
    })
}
