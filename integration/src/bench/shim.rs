//! The shims, on one containerd: what clients wait for, and what an idle pod costs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Lab;
use super::compare::{Cost, Side, around, in_turn, kib, median, timed};
use super::report::Row;
use crate::images::ONE;
use crate::node::Node;
use crate::run::Run;

pub(super) const SUBJECTS: &[(&str, super::Measure)] = &[
    ("shim: ctr run", ctr_run),
    ("shim: ctr exec", ctr_exec),
    ("shim: nerdctl run", nerdctl_run),
    ("shim: memory of a pod", memory),
];

const PAUSE: Duration = Duration::from_millis(100);

/// A container is tens of milliseconds.
const TIMES: usize = 4;

/// How containers are started on each side: ours, with the gate on, first.
#[derive(Clone, Debug)]
struct Stack {
    name: &'static str,
    /// The shim's program.
    shim: &'static str,
    snapshotter: &'static str,
    runtime: Vec<String>,
}

fn stacks(lab: &Lab) -> [Stack; 3] {
    let go = |name, binary: &Path| Stack {
        name,
        shim: "containerd-shim-runc-v2",
        snapshotter: "overlayfs",
        runtime: ["--runtime", "io.containerd.runc.v2", "--runc-binary", &binary.to_string_lossy()]
            .map(str::to_owned)
            .to_vec(),
    };
    [
        Stack {
            name: "ours",
            shim: "containerd-shim-hallmark-v1",
            snapshotter: "hallmark",
            runtime: ["--runtime", "io.containerd.hallmark.v1"].map(str::to_owned).to_vec(),
        },
        go("Go shim and runc", &lab.kit.bin("runc")),
        go("Go shim and crun", &lab.peer("crun")),
    ]
}

impl Stack {
    fn ctr(&self, node: &Node, how: &[&str], id: &str, program: &[&str]) -> Command {
        let mut ctr = node.ctr(&["run", "--snapshotter", self.snapshotter]);
        ctr.args(&self.runtime).args(how).args([ONE, id]).args(program);
        ctr
    }
}

/// The image, unpacked for both snapshotters.
fn load(lab: &mut Lab) -> Result<&Node> {
    let archive = lab.kit.sealed(ONE);
    let node = lab.node()?;
    for snapshotter in ["hallmark", "overlayfs"] {
        node.ctr(&["images", "import", "--snapshotter", snapshotter]).arg(&archive).good()?;
    }
    Ok(node)
}

/// Runs each stack's sides in turn; each run has a number for a name of its own.
fn compare(
    lab: &mut Lab,
    once: impl Fn(&Node, &Stack, u32) -> Result<Cost>,
) -> Result<super::compare::Series> {
    let (rounds, stacks) = (lab.rounds * TIMES, stacks(lab));
    let node = lab.node()?;
    let pids = node.pids()?;
    let mut sides: Vec<Side<'_>> = Vec::new();
    for stack in &stacks {
        let (node, once, pids) = (&*node, &once, &pids);
        let mut number = 0;
        sides.push(Side::new(stack.name, move || {
            number += 1;
            around(pids, || once(node, stack, number))
        }));
    }
    in_turn(rounds, PAUSE, &mut sides)
}

fn ctr_run(lab: &mut Lab) -> Result<Vec<Row>> {
    load(lab)?;
    let series = compare(lab, |node, stack, number| {
        let id = format!("{}-{number}", stack.shim);
        timed(&mut stack.ctr(node, &["--rm", "--null-io"], &id, &["/bin/true"]))
    })?;
    lab.node()?.empty()?;
    Ok(vec![
        Row::times(
            "ctr run --rm --null-io: to the Go shim with runc 1.5.2",
            &series,
            (0, 1),
            Some(0.42),
        ),
        Row::times("ctr run --rm --null-io: to the Go shim with crun", &series, (0, 2), None),
    ])
}

fn ctr_exec(lab: &mut Lab) -> Result<Vec<Row>> {
    load(lab)?;
    let all = stacks(lab);
    let node: &Node = lab.node()?;
    for (number, stack) in all.iter().enumerate() {
        let id = format!("pod{number}");
        stack.ctr(node, &["--detach", "--null-io"], &id, &["/bin/sleep", "3600"]).good()?;
    }
    let series = compare(lab, |node, stack, number| {
        let pod = all.iter().position(|other| other.name == stack.name).context("no such stack")?;
        let (id, exec) = (format!("pod{pod}"), format!("e{number}"));
        timed(&mut node.ctr(&["tasks", "exec", "--exec-id", &exec, &id, "/bin/true"]))
    });
    lab.node()?.empty()?;
    let series = series?;
    Ok(vec![
        Row::times(
            "ctr tasks exec, client included: to the Go shim with runc 1.5.2",
            &series,
            (0, 1),
            Some(0.5),
        ),
        Row::times(
            "ctr tasks exec, client included: to the Go shim with crun",
            &series,
            (0, 2),
            None,
        ),
    ])
}

fn nerdctl_run(lab: &mut Lab) -> Result<Vec<Row>> {
    load(lab)?;
    let (rounds, all) = (lab.rounds * TIMES, stacks(lab));
    let node: &Node = lab.node()?;
    let pids = node.pids()?;
    let mut sides: Vec<Side<'_>> = Vec::new();
    for stack in &all[..2] {
        let pids = &pids;
        sides.push(Side::new(stack.name, move || {
            let mut run = node.nerdctl(&["--snapshotter", stack.snapshotter, "run", "--rm"]);
            run.args(["--net", "none", "--runtime", &stack.runtime[1], ONE, "/bin/true"]);
            around(pids, || timed(&mut run))
        }));
    }
    let series = in_turn(rounds, PAUSE, &mut sides)?;
    drop(sides);
    node.empty()?;
    let what = "nerdctl run --rm --net none: to the Go shim with runc 1.5.2";
    Ok(vec![Row::times(what, &series, (0, 1), Some(0.65))])
}

/// Three idle pods a stack; the goals are 3.0 and 0.5 MiB where the Go shim has 15.8 and 3.8.
fn memory(lab: &mut Lab) -> Result<Vec<Row>> {
    load(lab)?;
    let all = stacks(lab);
    let node: &Node = lab.node()?;
    let mut sizes = Vec::new();
    for stack in &all[..2] {
        for number in 0..3 {
            let id = format!("{}-{number}", stack.shim);
            stack.ctr(node, &["--detach", "--null-io"], &id, &["/bin/sleep", "3600"]).good()?;
        }
        sizes.push(sizes_of(stack.shim)?);
    }
    node.empty()?;
    let [ours, peer] = [sizes[0], sizes[1]];
    Ok(vec![
        Row::sizes("resident memory of an idle shim", ours.0, peer.0, Some(0.19)),
        Row::sizes("its memory that no other process shares", ours.1, peer.1, Some(0.13)),
    ])
}

/// Resident and unshared KiB of a program's processes, medians.
fn sizes_of(program: &str) -> Result<(f64, f64)> {
    let (mut resident, mut unshared) = (Vec::new(), Vec::new());
    for entry in fs::read_dir("/proc")? {
        let dir = entry?.path();
        let Ok(exe) = fs::read_link(dir.join("exe")) else { continue };
        if exe.file_name().is_some_and(|name| name == program) {
            let file = dir.join("smaps_rollup").to_string_lossy().into_owned();
            resident.push(f64::from(kib(&file, "Rss")?));
            let private = kib(&file, "Private_Clean")? + kib(&file, "Private_Dirty")?;
            unshared.push(f64::from(private));
        }
    }
    ensure!(!resident.is_empty(), "no process runs {program}");
    Ok((median(resident), median(unshared)))
}
