//! The CRI's own suite, critest, against a private node, spec by spec beside what runc scores.
//!
//! `specs.tsv` has every spec and, for those that runc skips too, the reason. A spec that is not
//! listed (SELinux's exist only where SELinux does) must pass. One spec `races`: it removes a
//! container that it has just started and expects it to have ended.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::images::cri::BY_DIGEST;
use crate::leaks::Picture;
use crate::node::Node;
use crate::registry::Registry;
use crate::run::{Run, tail, within};
use crate::table::{Bench, Counts};

const SPECS: &str = include_str!("specs.tsv");

/// What the gate decides otherwise than runc, which has none, where the kernel controls execution: spec, what it fails
/// with, and why.
const DECIDED: &Decided =
    &[(UNCONFINED, "Seccomp:\t2", FILTER), (NO_PROFILE, "Seccomp:\t2", FILTER)];
const UNCONFINED: &str = "[k8s.io] Security Context SeccompProfilePath should support seccomp unconfined on the container";
const NO_PROFILE: &str =
    "[k8s.io] Security Context SeccompProfilePath should support nil profile, which is unconfined";
const FILTER: &str =
    "enforce under IPE keeps its own filter, against ptrace(2) writing to code, on every container";

/// How a spec ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// How often a spec that races with itself may run until it passes.
const ATTEMPTS: usize = 5;

/// Serves the images, runs the suite (only specs that match `focus`, if that is not empty), prints
/// every difference, and counts.
pub(crate) fn run(bench: &mut Bench, focus: &str) -> Result<Counts> {
    let registry = Registry::of(&bench.kit.cri_images()?)?;
    let digest = registry.digest(BY_DIGEST)?.to_owned();
    registry.serve()?;
    let node = bench.node()?;
    let before = Picture::take()?.without_layers();
    let mut found = suite(node, &digest, focus)?;
    for name in races(&found) {
        let again = (1..ATTEMPTS).find_map(|_| match suite(node, &digest, &literal(&name)) {
            Ok(mut alone) => alone.remove(&name).filter(|o| *o == Outcome::Passed).map(Ok),
            Err(error) => Some(Err(error)),
        });
        if let Some(outcome) = again.transpose()? {
            found.insert(name, outcome);
        }
    }
    let decided = if node.is_slow() { DECIDED } else { &[] };
    let mut counts = compare(&found, &listed(), focus, decided);
    counts.add(emptied(node, &before));
    if counts.failed > 0 {
        println!("{}", node.last_words());
    }
    Ok(counts)
}

/// One run of the suite.
fn suite(node: &Node, digest: &str, focus: &str) -> Result<BTreeMap<String, Outcome>> {
    let report = Path::new("/var/log/node/critest.json");
    let seconds = if node.is_slow() { 1500 } else { 1200 };
    let mut suite = within(seconds, node.kit.bin("critest"));
    suite
        .env("PATH", node.kit.path())
        .env("CRITEST_DIGEST", digest)
        .args(["-runtime-handler", node.handler()])
        .args(["-nri-socket", "/var/run/nri/nri.sock", "-ginkgo.no-color"])
        .args(["-ginkgo.focus", focus])
        .arg(format!("-ginkgo.json-report={}", report.display()));
    let ran = suite.ran()?;
    let text = fs::read(report).with_context(|| format!("critest:\n{}", tail(&ran.all(), 40)))?;
    fs::remove_file(report)?;
    read(&serde_json::from_slice(&text)?)
}

/// The specs that failed, and may have by a race of their own.
fn races(found: &BTreeMap<String, Outcome>) -> Vec<String> {
    let listed = listed();
    let is_race = |name: &str| matches!(listed.get(name), Some(Listed::Races));
    let failed = found.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
    failed.map(|(name, _)| name.clone()).filter(|name| is_race(name)).collect()
}

/// A regular expression that matches one text.
fn literal(text: &str) -> String {
    let special = |c: char| "\\.+*?()|[]{}^$".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// A propagation spec that fails leaves the mounts that it made on the host itself.
fn unmount_the_suites_own() -> Result<()> {
    let mounts = crate::files::text(Path::new("/proc/self/mountinfo"))?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    for place in places.filter(|place| place.starts_with("/tmp/test")) {
        Command::new("umount").arg(place).good()?;
    }
    Ok(())
}

/// Pods and images removed, nothing but layers is left: counted as a test.
fn emptied(node: &Node, before: &Picture) -> Counts {
    let empty = || {
        unmount_the_suites_own()?;
        node.crictl(&["rmp", "--all", "--force"]).good()?;
        node.crictl(&["rmi", "--all"]).good()?;
        before.expect_again_but_for(&|now| now.without_layers())
    };
    match empty() {
        Ok(()) => Counts { passed: 1, ..Counts::default() },
        Err(error) => {
            println!("FAIL  critest leaves nothing behind\n{error:#}");
            Counts { failed: 1, ..Counts::default() }
        }
    }
}

/// What the list says of a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    /// Passes with runc.
    Passes,
    /// Passes with runc, unless it loses a race that is its own: it may be run again.
    Races,
    /// Is skipped with runc for want of this; passing is no fault.
    Lacks(&'static str),
}

fn listed() -> BTreeMap<&'static str, Listed> {
    let one = |line: &'static str| match line.split_once('\t') {
        None => (line, Listed::Passes),
        Some((name, "races")) => (name, Listed::Races),
        Some((name, lacks)) => (name, Listed::Lacks(lacks)),
    };
    SPECS.lines().map(one).collect()
}

/// Every spec of a report, by its whole text.
fn read(report: &Value) -> Result<BTreeMap<String, Outcome>> {
    let mut all = BTreeMap::new();
    let specs = report[0]["SpecReports"].as_array().context("a report without specs")?;
    for spec in specs.iter().filter(|spec| spec["LeafNodeType"] == "It") {
        let above = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let words: Vec<&str> =
            above.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str).collect();
        let said = spec["Failure"]["Message"].as_str().unwrap_or("").to_owned();
        let outcome = match spec["State"].as_str().unwrap_or("") {
            "passed" => Outcome::Passed,
            "skipped" | "pending" => Outcome::Skipped(said),
            state => Outcome::Failed(format!("{state}: {said}")),
        };
        all.insert(words.join(" "), outcome);
    }
    Ok(all)
}

type Decided = [(&'static str, &'static str, &'static str)];

/// Why a failure is ours by decision, if it is.
fn decision(decided: &Decided, name: &str, said: &str) -> Option<&'static str> {
    let row = decided.iter().find(|(spec, words, _)| *spec == name && said.contains(words));
    row.map(|(_, _, why)| *why)
}

/// Prints what did not pass and why, and what is missing.
fn compare(
    found: &BTreeMap<String, Outcome>,
    listed: &BTreeMap<&str, Listed>,
    focus: &str,
    decided: &Decided,
) -> Counts {
    let mut counts = Counts::default();
    for (name, outcome) in found {
        match (outcome, listed.get(name.as_str())) {
            (Outcome::Passed, _) => counts.passed += 1,
            (Outcome::Skipped(_), Some(Listed::Lacks(what))) => {
                println!("skipped: needs {what}: {name}");
                counts.skipped += 1;
            }
            // outside of the focus
            (Outcome::Skipped(said), _) if said.is_empty() && !focus.is_empty() => {}
            (Outcome::Skipped(said), _) => {
                println!("FAIL  {name}\n      skipped, though runc runs it: {said}");
                counts.failed += 1;
            }
            (Outcome::Failed(said), _) if decision(decided, name, said).is_some() => {
                println!("differs: {}: {name}", decision(decided, name, said).unwrap_or_default());
                counts.skipped += 1;
            }
            (Outcome::Failed(said), _) => {
                println!("FAIL  {name}\n      {}", tail(said, 12).replace('\n', "\n      "));
                counts.failed += 1;
            }
        }
    }
    for name in listed.keys().filter(|name| !found.contains_key(**name)) {
        println!("FAIL  {name}\n      not in the suite's report");
        counts.failed += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(name: &str, state: &str, said: &str) -> Value {
        json!({"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeText": name,
               "LeafNodeType": "It", "State": state, "Failure": {"Message": said}})
    }

    #[test]
    fn only_a_listed_skip_is_one() {
        let report = json!([{"SpecReports": [
            spec("passes", "passed", ""), spec("skips", "skipped", "no AppArmor"),
            spec("dodges", "skipped", "no features"), spec("breaks", "panicked", "nil"),
            {"LeafNodeType": "BeforeSuite", "State": "passed"},
        ]}]);
        let found = read(&report).unwrap();
        let listed = BTreeMap::from([
            ("[k8s.io] A passes", Listed::Passes),
            ("[k8s.io] A skips", Listed::Lacks("AppArmor")),
            ("[k8s.io] A vanished", Listed::Passes),
        ]);
        let counts = compare(&found, &listed, "", &[]);
        assert_eq!(counts, Counts { passed: 1, failed: 3, skipped: 1 });
    }

    #[test]
    fn a_decision_is_known_by_its_words() {
        let (spec, words, _) = DECIDED[0];
        let why = |spec, said| decision(DECIDED, spec, said);
        let status = format!("status: {words}");
        assert!(why(spec, &status).is_some());
        assert!(why(spec, "no such file").is_none() && why("other", words).is_none());
    }

    #[test]
    fn a_focus_matches_the_one_text() {
        assert_eq!(literal("[a] b.c"), "\\[a\\] b\\.c");
    }

    #[test]
    fn the_list_has_every_spec_of_the_suite() {
        let all = listed();
        assert_eq!(all.len(), 142);
        assert_eq!(all.values().filter(|l| matches!(l, Listed::Lacks(_))).count(), 17);
    }
}
