//! `update`: other limits for a container that is there.

use std::io::Read;
use std::path::PathBuf;

use super::Globals;
use crate::cgroup::Resources;
use crate::error::{Context, Error, Result};
use crate::spec;
use crate::state::{Container, ContainerId, not_running};

/// Where the new limits come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// `--resources FILE`.
    File(PathBuf),
    /// Single options.
    Options(Box<Resources>),
    /// `--resources -`.
    Stdin,
}

pub(crate) fn update(globals: &Globals, id: &ContainerId, source: Source) -> Result<()> {
    let container = Container::load_locked(&globals.root, id)?;
    if container.process().is_none() {
        return Err(not_running());
    }
    let change = read(source)?;
    let held = container.held();
    let mut record = held.record.clone();
    let before = match &record.resources {
        Some(resources) => resources.clone(),
        None => spec::Plan::parse(record.config.get().as_bytes(), &record.bundle)?.resources,
    };
    let after = before.updated_by(&change);
    held.cgroup()?.update(&before, &after)?;
    record.resources = Some(after);
    held.directory.write_state(&record.text()?)
}

fn read(source: Source) -> Result<Resources> {
    let (bytes, name) = match source {
        Source::Options(resources) => return Ok(*resources),
        Source::File(path) => (spec::read(&path)?, path.display().to_string()),
        Source::Stdin => {
            let mut bytes = Vec::new();
            std::io::stdin().take(1 << 20).read_to_end(&mut bytes).context(|| "read resources")?;
            (bytes, "resources".to_owned())
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| Error::spec(format!("{name}: {error}")))
}
