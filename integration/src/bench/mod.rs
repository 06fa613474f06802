//! `bench`: ours beside the programs that do the same work today, as ratios.
//!
//! Machines differ and are shared, so no time is held to anything. Each row runs both sides in turn, on the same work, and
//! shows the median of the ratios of those pairs: of the time on the clock, which decides, and of processor time, which
//! a busy machine disturbs less. Goals are ratios too; where one is not met the row says so.

mod compare;
mod material;
mod packing;
mod report;
mod runtime;
mod shim;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::guest::parts::Tools;
use crate::kit::Kit;
use crate::node::{Node, Stack};
use crate::run::Run;
use crate::table::{Counts, Site};
use crate::trust::{self, Setting};
pub(crate) use material::{inflate, stage};
use report::Row;

/// What the rows of one subject are measured with.
#[derive(Debug)]
struct Lab {
    kit: Kit,
    /// Images, peers and tools that only this needs.
    material: PathBuf,
    /// Runs of each side.
    rounds: usize,
    setting: Setting,
    node: Option<Node>,
}

impl Lab {
    /// A node of containerd with every snapshotter and runtime, started if none runs.
    fn node(&mut self) -> Result<&mut Node> {
        if self.node.is_none() {
            trust::install(&self.kit, Site::Host, self.setting)?;
            let logs = Path::new("/var/log/node");
            self.node = Some(Node::start(&self.kit, Site::Host, Stack::Hallmark, logs)?);
        }
        self.node.as_mut().context("no node")
    }

    /// What the gate does at the launches that follow.
    fn set(&mut self, setting: Setting) -> Result<()> {
        self.setting = setting;
        trust::install(&self.kit, Site::Host, setting)
    }

    /// The programs of a newer Debian that are measured against.
    fn peer(&self, name: &str) -> PathBuf {
        self.material.join("peers/bin").join(name)
    }
}

/// The rows of one subject.
type Measure = fn(&mut Lab) -> Result<Vec<Row>>;

/// Every subject, in the order in which they are measured.
fn subjects() -> impl Iterator<Item = &'static (&'static str, Measure)> {
    packing::SUBJECTS.iter().chain(runtime::SUBJECTS).chain(shim::SUBJECTS)
}

/// Makes what is measured on and with; afterwards nothing more is built or fetched.
pub(crate) fn prepare(cache: &Cache) -> Result<PathBuf> {
    material::build(cache, &Tools::build(cache)?)
}

/// Measures the subjects whose names contain a part of `filter`, which `|` divides.
pub(crate) fn run(kit: Kit, material: &Path, filter: &str, rounds: usize) -> Result<Counts> {
    packing::offer_erofs(&kit, material)?;
    // crun refuses a hybrid of both versions of control groups
    let unified = Path::new("/sys/fs/cgroup/unified");
    if crate::cache::is_there(unified) {
        Command::new("umount").arg(unified).good()?;
    }
    let material = material.to_owned();
    let mut lab = Lab { kit, material, rounds, setting: Setting::Enforce, node: None };
    let mut counts = Counts::default();
    for (name, measure) in subjects() {
        if !filter.split('|').any(|part| name.contains(part)) {
            continue;
        }
        report::title(name, rounds);
        match measure(&mut lab) {
            Ok(rows) => rows.iter().for_each(|row| counts.add(report::show(row))),
            Err(error) => {
                report::broken(&error, lab.node.as_ref());
                counts.failed += 1;
            }
        }
        lab.node.take().map_or(Ok(()), Node::stop)?;
        lab.set(Setting::Enforce)?;
    }
    Ok(counts)
}
