//! What the long-lived processes hold, at the beginning and the end of the peaceful part.

use std::fs;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};

use super::chaos::shims;
use super::{SETTLES, STEADY, Soak};
use crate::node::Node;

/// How much a process may hold more at the end.
#[derive(Clone, Copy, Debug)]
struct Bound {
    descriptors: usize,
    /// KiB of memory that no file backs.
    memory: u64,
}

const PROCESSES: [(&str, Bound); 3] = [
    ("the steady container's shim", Bound { descriptors: 0, memory: 256 }),
    ("the snapshotter", Bound { descriptors: 2, memory: 4096 }),
    // not ours; a growth of descriptors would be streams that we keep open
    ("containerd", Bound { descriptors: 16, memory: 65536 }),
];

#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    memory: u64,
}

/// The beginning.
#[derive(Debug)]
pub(super) struct Watch(Vec<Held>);

/// Beginning and end.
#[derive(Debug)]
pub(super) struct Grown(Vec<(Held, Held)>);

/// Waits until what was disturbed has settled, and looks.
pub(super) fn watch(node: &Node, soak: &Soak) -> Result<Watch> {
    std::thread::sleep(SETTLES);
    crate::say(&format!("undisturbed after {} containers", soak.done.load(Ordering::Relaxed)));
    Ok(Watch(look(node)?))
}

impl Watch {
    /// Looks again, when all containers are done.
    pub(super) fn finish(self, node: &Node) -> Result<Grown> {
        Ok(Grown(self.0.into_iter().zip(look(node)?).collect()))
    }
}

impl Grown {
    /// One outcome for each process.
    pub(super) fn checks(&self) -> Vec<(String, Result<(), String>)> {
        let mut checks = Vec::new();
        for ((name, bound), (begin, end)) in PROCESSES.iter().zip(&self.0) {
            let what = format!(
                "{name}: {} descriptors then {}, {} KiB of memory then {}",
                begin.descriptors, end.descriptors, begin.memory, end.memory
            );
            let grown = end.descriptors > begin.descriptors + bound.descriptors
                || end.memory > begin.memory + bound.memory;
            let result =
                if grown { Err(format!("expected at most {bound:?} more")) } else { Ok(()) };
            checks.push((what, result));
        }
        checks
    }
}

fn look(node: &Node) -> Result<Vec<Held>> {
    let shims = shims()?;
    let (_, shim) = shims.iter().find(|(id, _)| id == STEADY).context("no steady shim")?;
    let daemons = node.pids()?;
    let [containerd, snapshotter] = daemons[..] else { bail!("{} daemons", daemons.len()) };
    let shim = shim.as_raw_nonzero().get().unsigned_abs();
    [shim, snapshotter, containerd].into_iter().map(held).collect()
}

fn held(pid: u32) -> Result<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("process {pid} has no RssAnon"))?;
    Ok(Held { descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(), memory })
}
