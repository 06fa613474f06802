//! crictl as the people who keep a node use it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::images::attacks::UNSEALED;
use crate::images::cri::BUSYBOX;
use crate::node::Node;
use crate::run::Run;
use crate::table::{Bench, Test};

pub(super) const TESTS: &[Test] = &[
    Test { name: "crictl: a pod from runp to rmp", needs: &[], run: pod },
    Test { name: "crictl: a refusal is one readable sentence", needs: &[], run: refusal },
];

const POD: &str = "/tmp/pod.json";

/// A running pod; its configuration stays in [`POD`].
fn run_pod(node: &Node, name: &str) -> Result<String> {
    let pod = json!({
        "metadata": {"name": name, "namespace": "test", "uid": "1", "attempt": 1},
        "log_directory": "/tmp/pod-logs", "linux": {},
    });
    crate::files::write(Path::new(POD), pod.to_string())?;
    node.crictl(&["runp", "--runtime", node.handler(), POD]).good()
}

/// A created container of an image that is pulled first.
fn create(node: &Node, pod: &str, image: &str, command: &[&str]) -> Result<String> {
    node.crictl(&["pull", image]).good()?;
    let name = command.first().copied().unwrap_or("its-own");
    let container = json!({
        "metadata": {"name": name}, "image": {"image": image}, "command": command,
        "log_path": format!("{name}.log"), "linux": {},
    });
    let file = "/tmp/container.json";
    crate::files::write(Path::new(file), container.to_string())?;
    node.crictl(&["create", pod, file, POD]).good()
}

fn remove(node: &Node, pod: &str) -> Result<()> {
    node.crictl(&["stopp", pod]).good()?;
    node.crictl(&["rmp", pod]).good()?;
    node.crictl(&["rmi", "--all"]).good()?;
    Ok(())
}

fn state(node: &Node, container: &str) -> Result<Value> {
    let text = node.crictl(&["inspect", "--output", "json", container]).good()?;
    Ok(serde_json::from_str::<Value>(&text)?["status"].clone())
}

fn pod(bench: &mut Bench) -> Result<()> {
    let node = bench.node()?;
    let pod = run_pod(node, "whole")?;
    let script = "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let container = create(node, &pod, BUSYBOX, &["sh", "-c", script])?;
    node.crictl(&["start", &container]).good()?;
    let said = node.crictl(&["exec", &container, "pgrep", "sh"]).good()?;
    ensure!(said.lines().count() >= 1, "exec sees no shell: {said:?}");
    let logs = node.crictl(&["logs", &container]).ran()?;
    ensure!((logs.stdout.trim(), logs.stderr.trim()) == ("out", "err"), "logs: {logs:?}");
    let stats = node.crictl(&["stats", &container]).good()?;
    ensure!(stats.contains(&container[..13]), "stats: {stats}");
    node.crictl(&["stop", "--timeout", "30", &container]).good()?;
    let ended = state(node, &container)?;
    ensure!(ended["exitCode"] == 3 && ended["state"] == "CONTAINER_EXITED", "{ended}");
    node.crictl(&["rm", &container]).good()?;
    remove(node, &pod)
}

fn refusal(bench: &mut Bench) -> Result<()> {
    let node = bench.node()?;
    let pod = run_pod(node, "refused")?;
    let container = create(node, &pod, UNSEALED, &["/bin/hello"])?;
    let said = node.crictl(&["start", &container]).bad()?;
    // the client's own line, beside what the library that it calls with writes for itself
    let is_clients = |line: &&str| line.contains("level=error") || line.contains("level=fatal");
    let mut lines = said.lines().filter(is_clients);
    let line = lines.next().with_context(|| format!("no error in: {said}"))?;
    ensure!(lines.next().is_none(), "said twice: {said}");
    let line =
        line.find("hallmark: refused: ").and_then(|at| line.get(at..)).context(said.clone())?;
    for word in [&format!("container {container}"), "image", "layer", "; to run it: "] {
        ensure!(line.contains(word), "the refusal does not say {word:?}: {line}");
    }
    let told = state(node, &container)?;
    let message = told["message"].as_str().unwrap_or("");
    ensure!(message.contains("hallmark: refused:"), "the status says {message:?}");
    // its neighbour in the same pod is not touched
    let twin = create(node, &pod, BUSYBOX, &["sleep", "600"])?;
    node.crictl(&["start", &twin]).good()?;
    ensure!(state(node, &twin)?["state"] == "CONTAINER_RUNNING", "the sealed twin does not run");
    remove(node, &pod)
}
