//! Everyday uses of nerdctl, each run with our stack and with containerd's own on the same containerd.
//!
//! A use is a shell script whose standard output (and exit code, if not 0) is its outcome, written down
//! in the table. containerd's overlayfs with runc must give it, which proves the use; ours must give
//! the same, or what the table explains. Each stack has a containerd namespace of its own, so that
//! names do not meet.

mod compose;
mod images;
mod lifecycle;
mod limits;
mod namespaces;
mod network;
mod security;
mod storage;
mod streams;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cache::remove_tree;
use crate::files;
use crate::images::{NGINX, ONE, PYTHON, SETTINGS, TWO};
use crate::leaks::Picture;
use crate::node::{Node, Stack};
use crate::run::{Run, tail, within};
use crate::table::{Bench, Counts, Need, Outcome, with_needs};

/// One use.
#[derive(Debug)]
pub(crate) struct Use {
    name: &'static str,
    needs: &'static [Need],
    /// For `sh`, with [`PRELUDE`] before it, in an empty directory.
    script: &'static str,
    /// What it prints with containerd's own stack.
    shows: &'static str,
    /// What it prints with ours, if that is something else, and why it is.
    differs: Option<Difference>,
}

/// A difference that is meant.
#[derive(Debug)]
pub(crate) struct Difference {
    shows: &'static str,
    why: &'static str,
}

/// A use that both do alike.
const fn same(name: &'static str, script: &'static str, shows: &'static str) -> Use {
    Use { name, needs: &[], script, shows, differs: None }
}

impl Use {
    const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    const fn but(self, shows: &'static str, why: &'static str) -> Self {
        Self { differs: Some(Difference { shows, why }), ..self }
    }
}

fn all() -> impl Iterator<Item = &'static Use> {
    [
        streams::USES,
        lifecycle::USES,
        network::USES,
        storage::USES,
        limits::USES,
        security::USES,
        namespaces::USES,
        images::USES,
        compose::USES,
    ]
    .into_iter()
    .flatten()
}

/// Words of the scripts. `$RUN` is for script(1), which starts a shell of its own.
const PRELUDE: &str = r#"
RUN="$KIT/bin/nerdctl run --runtime $RUNTIME --net none"
nerdctl() { timeout --foreground -k 5 60 "$KIT/bin/nerdctl" "$@"; }
run() { nerdctl run --runtime "$RUNTIME" "$@"; }
once() { run --rm --net none "$@"; }
up() { run -d --net none "$@" >/dev/null; }
typed() { script --quiet --return --command "$1" /dev/null | tr -d '\r'; }
terminal() { mkfifo silent; typed "$1" <>silent; rm silent; }
until_is() { want=$1; shift; for _ in $(seq 100); do [ "$("$@" 2>/dev/null)" = "$want" ] && return; sleep 0.2; done; echo "never $want" >&2; return 1; }
state() { nerdctl inspect --format '{{.State.Status}}' "$1"; }
"#;

const IMAGES: [(&str, &str); 5] =
    [("ONE", ONE), ("TWO", TWO), ("PYTHON", PYTHON), ("NGINX", NGINX), ("SETTINGS", SETTINGS)];

/// Runs every use whose name contains a part of `filter`, which `|` divides, and counts.
pub(crate) fn run(bench: &mut Bench, stack: Stack, filter: &str) -> Result<Counts> {
    let site = bench.site;
    prepare_host(bench, stack)?;
    let mut counts = Counts::default();
    let wanted = |one: &&Use| filter.split('|').any(|part| one.name.contains(part));
    for one in all().filter(wanted) {
        counts.add(with_needs(one.name, one.needs, site, &mut || {
            let started = Instant::now();
            let compared = compare(bench, stack, one);
            let seconds = started.elapsed().as_secs_f32();
            match (&compared, &one.differs) {
                (Err(error), _) => {
                    println!("FAIL  {} ({seconds:.1} s)\n{error:#}", one.name);
                    empty(bench, stack)?;
                }
                (Ok(()), Some(difference)) if stack == Stack::Hallmark => {
                    println!(
                        "pass  {} ({seconds:.1} s)\n      ours differs: {}",
                        one.name, difference.why
                    );
                }
                (Ok(()), _) => println!("pass  {} ({seconds:.1} s)", one.name),
            }
            Ok(if compared.is_ok() { Outcome::Passed } else { Outcome::Failed })
        })?);
    }
    empty(bench, stack)?;
    bench.stop()?;
    Ok(counts)
}

/// The stacks that are compared.
fn stacks(stack: Stack) -> &'static [Stack] {
    match stack {
        Stack::Hallmark => &[Stack::Stock, Stack::Hallmark],
        Stack::Stock => &[Stack::Stock],
    }
}

/// What a machine has and the sandbox lacks, nerdctl's settings for each stack, and the images.
fn prepare_host(bench: &mut Bench, stack: Stack) -> Result<()> {
    for file in ["/etc/subuid", "/etc/subgid"] {
        files::write(Path::new(file), "root:100000:65536\n")?;
    }
    fs::create_dir_all("/dev/mqueue").context("make /dev/mqueue")?;
    crate::sandbox::mount(&["-t", "mqueue", "mqueue", "/dev/mqueue"])?;
    // where nerdctl's hook looks for plugins: the gate hands it no variable that names its settings
    fs::create_dir_all("/opt/cni")?;
    std::os::unix::fs::symlink(bench.kit.cni(), "/opt/cni/bin").context("link /opt/cni/bin")?;
    let archives: Vec<_> = IMAGES.iter().map(|(_, image)| bench.sealed(image)).collect();
    let kit = bench.kit.clone();
    let node = bench.node()?;
    for &stack in stacks(stack) {
        files::write(Path::new(&settings_file(stack)), settings(&kit, stack))?;
        for archive in &archives {
            nerdctl(node, stack, &["load", "--quiet", "--input"]).arg(archive).good()?;
        }
        // what a namespace's first container makes stays, and is no leak
        nerdctl(node, stack, &["run", "--rm", "--runtime", runtime(stack), ONE]).good()?;
    }
    Ok(())
}

fn settings_file(stack: Stack) -> String {
    format!("/etc/nerdctl/{}.toml", stack.name())
}

fn namespace(stack: Stack) -> &'static str {
    match stack {
        Stack::Hallmark => "default",
        Stack::Stock => "stock",
    }
}

/// Our shim by the name under which nerdctl hands its own options over.
fn runtime(stack: Stack) -> &'static str {
    match stack {
        Stack::Hallmark => "io.containerd.runc.hallmark",
        Stack::Stock => "io.containerd.runc.v2",
    }
}

fn settings(kit: &crate::kit::Kit, stack: Stack) -> String {
    format!(
        "namespace = \"{}\"\nsnapshotter = \"{}\"\ncni_path = \"{}\"\n\
         cni_netconfpath = \"/etc/cni/net.d\"\ncgroup_manager = \"cgroupfs\"\n",
        namespace(stack),
        stack.snapshotter(),
        kit.cni().display(),
    )
}

fn nerdctl(node: &Node, stack: Stack, arguments: &[&str]) -> Command {
    let mut command = within(180, node.kit.bin("nerdctl"));
    command.env("PATH", node.kit.path()).env("NERDCTL_TOML", settings_file(stack)).args(arguments);
    command
}

/// How often a use may be tried: containerd's own stack proves the use, and loses or repeats an event now and then on a
/// loaded machine. Ours has the one.
fn attempts(stack: Stack) -> usize {
    match stack {
        Stack::Stock => 3,
        Stack::Hallmark => 1,
    }
}

/// Runs a use with each stack; what differs from the table is an error.
fn compare(bench: &mut Bench, stack: Stack, one: &Use) -> Result<()> {
    let node = bench.node()?;
    for &stack in stacks(stack) {
        // clients leave pipes behind that nobody else may remove
        let before = Picture::take()?.without_layers().without_pipes();
        let mut result = show(node, stack, one);
        for _ in 1..attempts(stack) {
            if result.is_err() {
                remove_containers(node, stack)?;
                result = show(node, stack, one);
            }
        }
        result?;
        remove_containers(node, stack)?;
        if stack == Stack::Hallmark {
            before.expect_again_but_for(&|now| now.without_layers().without_pipes())?;
        }
    }
    Ok(())
}

/// Runs a use once.
fn show(node: &Node, stack: Stack, one: &Use) -> Result<()> {
    let expected = match (&one.differs, stack) {
        (Some(difference), Stack::Hallmark) => difference.shows,
        _ => one.shows,
    };
    let ran = script(node, stack, one.script)?.ran()?;
    let mut shown = ran.stdout.trim_end().to_owned();
    if !ran.status.success() {
        shown.push_str(&format!("\n{}", ran.status));
    }
    ensure!(
        shown.trim() == expected.trim(),
        "with {}: {:?}, expected {:?}\n{}",
        runtime(stack),
        shown.trim(),
        expected.trim(),
        tail(&ran.stderr, 12)
    );
    Ok(())
}

fn script(node: &Node, stack: Stack, text: &str) -> Result<Command> {
    let work = Path::new("/tmp/use");
    remove_tree(work)?;
    fs::create_dir_all(work)?;
    let mut shell = within(150, "sh");
    shell
        .args(["-c", &format!("{PRELUDE}{text}")])
        .current_dir(work)
        .env("PATH", node.kit.path())
        .env("KIT", node.kit.root())
        .env("NERDCTL_TOML", settings_file(stack))
        .env("RUNTIME", runtime(stack))
        .env("CONTAINERD_NAMESPACE", namespace(stack))
        .envs(IMAGES);
    Ok(shell)
}

fn remove_containers(node: &Node, stack: Stack) -> Result<()> {
    let list = ["--namespace", namespace(stack), "containers", "list", "--quiet"];
    let ids = node.ctr(&list).good()?;
    if !ids.is_empty() {
        let ids: Vec<&str> = ids.lines().collect();
        nerdctl(node, stack, &[&["rm", "--force", "--volumes"], &ids[..]].concat()).good()?;
    }
    Ok(())
}

/// After a use that failed, and at the end: nothing of either stack but images.
fn empty(bench: &mut Bench, stack: Stack) -> Result<()> {
    let node = bench.node()?;
    for &stack in stacks(stack) {
        remove_containers(node, stack)?;
        nerdctl(node, stack, &["volume", "prune", "--all", "--force"]).good()?;
        nerdctl(node, stack, &["network", "prune", "--force"]).good()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_use_has_a_name_of_its_own_and_says_what_it_shows() {
        let names: BTreeSet<&str> = all().map(|one| one.name).collect();
        assert_eq!(names.len(), all().count());
        assert!(names.len() >= 80, "{} uses", names.len());
        for one in all() {
            assert!(!one.shows.trim().is_empty(), "{}", one.name);
        }
    }

    #[test]
    fn a_difference_is_one_and_has_a_reason() {
        for one in all() {
            if let Some(difference) = &one.differs {
                assert_ne!(difference.shows.trim(), one.shows.trim(), "{}", one.name);
                assert!(difference.why.len() > 20, "{}", one.name);
            }
        }
    }
}
