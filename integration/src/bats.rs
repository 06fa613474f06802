//! A part of runc's own suite in the guest, where it meets what this machine lacks: cgroup v2 with its device
//! programs, SELinux, and systemd as the first process. Each file is run on runc first, then on ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, source_root};
use crate::guest::boot::{Guest, Init};
use crate::guest::init::{KIT, SHARE};
use crate::guest::parts::Parts;
use crate::kit::Kit;
use crate::run::Run;
use crate::table::Counts;

/// Files of the suite, and which of their tests, by a regular expression ("" is all).
struct Part {
    init: Init,
    file: &'static str,
    tests: &'static str,
}

const PARTS: &[Part] = &[
    Part { init: Init::Own, file: "cgroups", tests: "" },
    Part { init: Init::Own, file: "dev", tests: "" },
    Part { init: Init::Own, file: "pause", tests: "" },
    Part { init: Init::Own, file: "selinux", tests: "" },
    Part { init: Init::Systemd, file: "cgroup_delegation", tests: "" },
    Part { init: Init::Systemd, file: "cgroups", tests: "" },
    Part { init: Init::Systemd, file: "delete", tests: "" },
    Part { init: Init::Systemd, file: "dev", tests: "" },
    Part { init: Init::Systemd, file: "update", tests: "" },
];

/// Tests that runc passes and ours does not: file, test, why.
const DIFFERENCES: &[(&str, &str, &str)] = &[];

/// How a test of the suite has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Adds the suite, with runc beside it, to a kit.
pub(crate) fn add_to(kit: &Kit, cache: &Cache) -> Result<()> {
    let dir = cache.root().join("conformance-runc-1.5.2");
    fs::create_dir_all(&dir)?;
    let script = source_root().join("hack/conformance-runc-suite");
    Command::new("flock").arg(dir.join("lock")).arg(script).arg(&dir).good()?;
    let target = kit.root().join("bats");
    fs::create_dir_all(&target)?;
    Command::new("cp").args(["-r", "--link"]).arg(dir.join("suite/tests")).arg(&target).good()?;
    fs::copy(dir.join("suite/runc"), target.join("runc")).context("copy runc")?;
    Ok(())
}

/// Boots once for each of `inits`, and adds up what the boots count.
pub(crate) fn boot(parts: &Parts, kit: &Kit, inits: &[Init], filter: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    for init in inits {
        let dir = Path::new("/tmp").join(format!("guest-{}", init.name()));
        let guest = Guest::new(parts, kit, &dir)?.starting(*init);
        let mut last = None;
        let mut each = |line: &str| match Counts::parse(line) {
            Some(counted) => last = Some(counted),
            None => println!("{line}"),
        };
        let ended = guest.run(&["runc", init.name(), KIT, filter], &mut each)?;
        let counted = last.with_context(|| format!("the guest ended with {}", ended.code))?;
        crate::say(&format!("{}: {counted} in {} s", init.name(), ended.seconds));
        counts.add(counted);
    }
    Ok(counts)
}

/// Runs the parts for this `init` whose file holds `filter`, prints a line for each test, and counts.
pub(crate) fn run(init: Init, kit: &Kit, filter: &str) -> Result<Counts> {
    let work = Path::new("/data/bats");
    for dir in ["bin", "tmp"] {
        fs::create_dir_all(work.join(dir))?;
    }
    crate::files::set_mode(&work.join("tmp"), 0o1777)?;
    crate::files::write(Path::new("/etc/hallmark/config.toml"), AUDIT)?;
    // the suite asks Go which machine this is, and for nothing else
    crate::files::write(&work.join("bin/go"), "#!/bin/sh\necho amd64\n")?;
    crate::files::set_mode(&work.join("bin/go"), 0o755)?;
    // it answers by the name it was called by
    fs::copy(kit.bin("hallmark-runtime"), work.join("bin/runc")).context("copy our runtime")?;
    let mut counts = Counts::default();
    let wanted = |part: &&Part| part.init == init && part.file.contains(filter);
    for part in PARTS.iter().filter(wanted) {
        let theirs = suite(part, kit, &kit.root().join("bats/runc"), work)?;
        let ours = suite(part, kit, &work.join("bin/runc"), work)?;
        ensure!(!theirs.is_empty(), "{}: no test was run", part.file);
        for (test, expected) in &theirs {
            counts.add(compare(part, test, expected, ours.get(test)));
        }
    }
    Ok(counts)
}

/// A node where everything may be launched: the suite brings directories, not images.
const AUDIT: &str = "[gate]\nmode = \"audit\"\nexec_control = \"launch-only\"\n\
                     minimum_evidence = \"rehashed\"\naudit_log = \"/tmp/audit.log\"\n";

/// What bats says of each test of one file, with `runtime` as its runc, on a terminal whose input stays silent.
fn suite(part: &Part, kit: &Kit, runtime: &Path, work: &Path) -> Result<BTreeMap<String, Outcome>> {
    let file = kit.root().join("bats/tests/integration").join(format!("{}.bats", part.file));
    let filter = if part.tests.is_empty() { ".*" } else { part.tests };
    let line = format!("bats -t -f '{filter}' {}", file.display());
    let script = "mkfifo \"$0\"; exec 3<>\"$0\"; rm \"$0\"
        timeout -k 5 900 script -qec \"$1\" /dev/null <&3 >\"$2\" 2>&1";
    // in the share with the host: what was said is there whatever happens
    let said = Path::new(SHARE).join(format!("{}.tap", part.file));
    let mut bats = Command::new("sh");
    bats.args(["-c", script]).arg(work.join("silence")).arg(line).arg(&said);
    let path = format!("{}:{}", work.join("bin").display(), std::env::var("PATH")?);
    bats.env("RUNC", runtime).env("TMPDIR", work.join("tmp")).env("PATH", path);
    bats.env("BATS_TEST_TIMEOUT", "90");
    if part.init == Init::Systemd {
        bats.env("RUNC_USE_SYSTEMD", "1");
    }
    let started = std::time::Instant::now();
    bats.ran()?;
    let said = crate::files::text(&said)?.replace('\r', "");
    let found = parse(&said);
    let seconds = started.elapsed().as_secs();
    println!("{}: {} tests with {} in {seconds} s", part.file, found.len(), runtime.display());
    ensure!(!found.is_empty(), "{}: {said}", part.file);
    Ok(found)
}

/// Reads TAP: `ok 1 name`, `ok 2 name # skip why`, `not ok 3 name`, then lines of `# …` about the last.
fn parse(text: &str) -> BTreeMap<String, Outcome> {
    let mut found = BTreeMap::new();
    let mut last = None;
    for line in text.lines() {
        let (rest, failed) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => {
                if let (Some(Outcome::Failed(said)), Some(more)) =
                    (last.as_ref().and_then(|name| found.get_mut(name)), line.strip_prefix("# "))
                {
                    said.push_str(&format!("\n    {more}"));
                }
                continue;
            }
        };
        let Some((_, rest)) = rest.split_once(' ') else { continue };
        let (name, outcome) = match rest.split_once(" # skip") {
            Some((name, why)) => (name, Outcome::Skipped(why.trim().to_owned())),
            None if failed => (rest, Outcome::Failed(String::new())),
            None => (rest, Outcome::Passed),
        };
        last = Some(name.to_owned());
        found.insert(name.to_owned(), outcome);
    }
    found
}

fn compare(part: &Part, test: &str, theirs: &Outcome, ours: Option<&Outcome>) -> Counts {
    let how = if part.init == Init::Systemd { "systemd" } else { "cgroupfs" };
    let name = format!("{how} {}: {test}", part.file);
    let listed = DIFFERENCES.iter().find(|(file, other, _)| *file == part.file && *other == test);
    match (theirs, ours, listed) {
        (_, Some(Outcome::Passed), None) => {
            println!("pass  {name}");
            Counts { passed: 1, ..Counts::default() }
        }
        (Outcome::Skipped(why), Some(Outcome::Skipped(_)), _) => {
            println!("skipped: {why}: {name}");
            Counts { skipped: 1, ..Counts::default() }
        }
        (Outcome::Failed(said), Some(Outcome::Failed(_) | Outcome::Skipped(_)), _) => {
            println!("skipped: runc fails here, too: {name}{said}");
            Counts { skipped: 1, ..Counts::default() }
        }
        (_, Some(Outcome::Failed(_)), Some((_, _, why))) => {
            println!("skipped: differs: {why}: {name}");
            Counts { skipped: 1, ..Counts::default() }
        }
        (theirs, ours, _) => {
            let ours = match ours {
                Some(Outcome::Failed(said)) => format!("failed{said}"),
                other => format!("{other:?}"),
            };
            println!("FAIL  {name}: runc {theirs:?}, ours {ours}");
            Counts { failed: 1, ..Counts::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_tap_is_a_test_or_about_one() {
        let text = "1..3\nok 1 one in 3\nok 2 two # skip test requires criu\nnot ok 3 three\n\
                    # (in test file x.bats, line 7)\n#   `[ 1 = 2 ]' failed\n";
        let found = parse(text);
        assert_eq!(found["one in 3"], Outcome::Passed);
        assert_eq!(found["two"], Outcome::Skipped("test requires criu".to_owned()));
        let Outcome::Failed(said) = &found["three"] else { panic!("{found:?}") };
        assert!(said.contains("line 7") && said.contains("failed"), "{said}");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn only_what_runc_does_not_do_either_may_be_left_out() {
        let part = &PARTS[0];
        let (failed, skipped) = (Outcome::Failed(String::new()), Outcome::Skipped(String::new()));
        for (theirs, ours, expected) in [
            (Outcome::Passed, Some(Outcome::Passed), [1, 0, 0]),
            (Outcome::Passed, Some(failed.clone()), [0, 1, 0]),
            (Outcome::Passed, Some(skipped.clone()), [0, 1, 0]),
            (Outcome::Passed, None, [0, 1, 0]),
            (failed.clone(), Some(failed.clone()), [0, 0, 1]),
            (failed.clone(), Some(Outcome::Passed), [1, 0, 0]),
            (skipped.clone(), Some(skipped.clone()), [0, 0, 1]),
            (skipped.clone(), Some(failed.clone()), [0, 1, 0]),
        ] {
            let Counts { passed, failed, skipped } =
                compare(part, "no such", &theirs, ours.as_ref());
            assert_eq!([passed, failed, skipped], expected, "{theirs:?} {ours:?}");
        }
    }
}
