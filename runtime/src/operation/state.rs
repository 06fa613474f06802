//! `state`: what a container is doing, as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::Globals;
use crate::error::Result;
use crate::spec::OCI_VERSION;
use crate::state::{Container, ContainerId};

/// runc's fields in runc's order, which people and scripts read as text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    pub(super) oci_version: &'static str,
    pub(super) id: String,
    /// 0 once it is stopped.
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
    /// Filled in by `list`.
    pub(super) owner: String,
}

pub(crate) fn state(globals: &Globals, id: &ContainerId) -> Result<String> {
    let container = Container::load(&globals.root, id)?;
    Ok(format!("{}\n", serde_json::to_string_pretty(&describe(&container))?))
}

pub(super) fn describe(container: &Container) -> Description {
    let record = container.held().record.clone();
    Description {
        oci_version: OCI_VERSION,
        id: record.id,
        pid: container.process().map_or(0, |process| process.pid.as_raw_nonzero().get()),
        status: container.status().name(),
        bundle: record.bundle,
        rootfs: record.rootfs,
        created: record.created,
        annotations: record.annotations,
        owner: String::new(),
    }
}
