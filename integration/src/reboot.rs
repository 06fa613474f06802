//! A guest that goes down under its containers, stopped and running ones, and comes up again over the same disk.
//!
//! Nothing is told to end first: the machine is switched off. What is left is what was written to the disk.

use anyhow::{Result, ensure};

use crate::images::ONE;
use crate::node::Node;
use crate::run::Run;
use crate::table::{Bench, Test};

/// What becomes of each container's task before the machine goes down.
const CONTAINERS: [(&str, Last); 3] =
    [("running", Last::Running), ("ended", Last::Ended), ("deleted", Last::Deleted)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Running,
    Ended,
    Deleted,
}

/// After the reboot.
pub(crate) const AFTER: Test = Test {
    name: "containers of before a reboot start again with what they had written, and go",
    needs: &[],
    run: after,
};

/// Makes the containers. Each has written its name.
pub(crate) fn before(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    for (id, last) in CONTAINERS {
        let snapshotter = ["run", "--detach", "--snapshotter", node.snapshotter_name()];
        let runtime = ["--runtime", node.runtime_name(), ONE, id, "sleep", "1000000"];
        node.ctr(&[&snapshotter[..], &runtime].concat()).good()?;
        execute(node, id, &format!("echo {id} >/name"))?;
        if last != Last::Running {
            node.ctr(&["tasks", "kill", "--signal", "SIGKILL", id]).good()?;
        }
        if last == Last::Deleted {
            node.ctr(&["tasks", "delete", "--force", id]).good()?;
        }
    }
    Ok(())
}

fn after(bench: &mut Bench) -> Result<()> {
    let node = bench.node()?;
    let tasks = node.ctr(&["tasks", "list", "--quiet"]).good()?;
    ensure!(tasks.is_empty(), "tasks of a machine that went down: {tasks}");
    for (id, _) in CONTAINERS {
        node.ctr(&["tasks", "start", "--detach", id]).good()?;
        let name = execute(node, id, "cat /name")?;
        ensure!(name == id, "{id}: found the name {name:?}");
    }
    for (id, _) in CONTAINERS {
        node.ctr(&["tasks", "delete", "--force", id]).good()?;
        node.ctr(&["containers", "delete", id]).good()?;
    }
    Ok(())
}

fn execute(node: &Node, id: &str, script: &str) -> Result<String> {
    let exec = ["tasks", "exec", "--exec-id", "e", id, "sh", "-c", script];
    Ok(node.ctr(&exec).good()?.trim().to_owned())
}
