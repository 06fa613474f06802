//! Every test: the workspace's own, the table on this machine, the table in the guest. One summary.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cache::{Cache, source_root};
use crate::guest::parts::Parts;
use crate::table::Counts;

/// Runs all parts, even after one has failed, and prints the sum as the last line.
pub(crate) fn run(cache: &Cache) -> Result<ExitCode> {
    let tools = Parts::build(cache)?.tools.bin();
    let workspace = ("workspace", workspace(&tools, &cache.log("cargo-test"))?);
    let parts = [("host", &["host"][..]), ("guest", &["guest"])];
    sum(cache, vec![workspace], &parts)
}

/// The soak on this machine, then the guest that goes down under its containers.
pub(crate) fn soak(cache: &Cache, count: &str, seed: &str) -> Result<ExitCode> {
    let parts = [("soak", &["soak-here", count, seed][..]), ("reboot", &["reboot"])];
    sum(cache, Vec::new(), &parts)
}

/// A part's name, its counts, and its seconds.
type Row<'a> = (&'a str, (Counts, u64));

/// Runs each part, whatever became of the others, and prints all sums, the last line being that of all.
fn sum<'a>(
    cache: &Cache,
    mut rows: Vec<Row<'a>>,
    parts: &[(&'a str, &[&str])],
) -> Result<ExitCode> {
    for (name, arguments) in parts {
        rows.push((name, part(name, arguments, &cache.log(&format!("part-{name}")))?));
    }
    let mut sum = Counts::default();
    println!();
    for (name, (counts, seconds)) in rows {
        println!("{name:10} {counts} ({seconds} s)");
        sum.add(counts);
    }
    println!("{sum}");
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `cargo test`, with the reference tools of the newer suite first in `PATH`: there they must be.
fn workspace(tools: &Path, log: &Path) -> Result<(Counts, u64)> {
    crate::say("cargo test --workspace");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut cargo = Command::new("sh");
    cargo
        .args(["-c", "exec cargo test --workspace --no-fail-fast -- --show-output 2>&1"])
        .current_dir(source_root())
        .env("PATH", format!("{}:{path}", tools.display()))
        .env("HALLMARK_ORACLES", tools);
    let mut tally = Tally::default();
    let (good, seconds) = watch(cargo, log, &mut |line| tally.read(line))?;
    let mut counts = tally.counts();
    if !good && counts.failed == 0 {
        println!("FAIL  cargo test ended badly: {}", log.display());
        counts.failed = 1;
    }
    Ok((counts, seconds))
}

/// This program again, for one part.
fn part(name: &str, arguments: &[&str], log: &Path) -> Result<(Counts, u64)> {
    let mut this = Command::new(std::env::current_exe()?);
    this.args(arguments);
    counted(name, this, log)
}

/// A program whose last line has the numbers.
pub(crate) fn counted(name: &str, program: Command, log: &Path) -> Result<(Counts, u64)> {
    let mut found = None;
    let (good, seconds) = watch(program, log, &mut |line| {
        found = Counts::parse(line).or(found);
        Shown::Yes
    })?;
    let mut counts = found.unwrap_or_default();
    if !good && counts.failed == 0 {
        println!("FAIL  {name} ended badly: {}", log.display());
        counts.failed = 1;
    }
    Ok((counts, seconds))
}

/// Whether a person wants to see a line now, or in the log if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Yes,
    No,
}

/// Runs to the end, with every line in `log`; whether it ended well, and after how many seconds.
fn watch(
    mut command: Command,
    log: &Path,
    each: &mut dyn FnMut(&str) -> Shown,
) -> Result<(bool, u64)> {
    let started = Instant::now();
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("no pipe")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        writeln!(file, "{line}")?;
        if each(&line) == Shown::Yes {
            println!("{line}");
        }
    }
    Ok((child.wait()?.success(), started.elapsed().as_secs()))
}

/// What cargo's test programs say, added up.
///
/// A test that lacks something returns early and says `skipped: needs X`; libtest knows no third
/// outcome and calls it passed. `--show-output` brings the words up, and they count here.
#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
    /// Whether the output being shown has been counted already.
    counted: bool,
}

impl Tally {
    fn read(&mut self, line: &str) -> Shown {
        if let Some((passed, failed)) = result(line) {
            self.passed += passed;
            self.failed += failed;
            return Shown::No;
        }
        if line.starts_with("---- ") {
            self.counted = false;
            return Shown::No;
        }
        if line.starts_with("skipped: needs ") {
            self.skipped += u32::from(!self.counted);
            self.counted = true;
            return Shown::Yes;
        }
        // a test that has just been named may write past libtest, before its own result
        self.counted &= !line.starts_with("test ");
        let shown = line.ends_with("... FAILED")
            || line.contains("panicked at")
            || line.starts_with("error");
        if shown { Shown::Yes } else { Shown::No }
    }

    fn counts(&self) -> Counts {
        Counts {
            passed: self.passed.saturating_sub(self.skipped),
            failed: self.failed,
            skipped: self.skipped,
        }
    }
}

/// `test result: ok. 9 passed; 0 failed; …`
fn result(line: &str) -> Option<(u32, u32)> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = numbers.split("; ");
    let mut number = |name: &str| {
        let (value, found) = parts.next()?.split_once(' ')?;
        value.parse().ok().filter(|_| found == name)
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_no_pass() {
        let mut tally = Tally::default();
        let lines = [
            "test a ... ok",
            "test b ... FAILED",
            "---- a stdout ----",
            "skipped: needs root",
            "skipped: needs root",
            "---- c stdout ----",
            "said something",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ];
        for line in lines {
            tally.read(line);
        }
        assert_eq!(tally.counts(), Counts { passed: 1, failed: 1, skipped: 1 });
    }

    #[test]
    fn only_a_result_is_one() {
        assert_eq!(result("test result: ok. 3 passed; 0 failed; 0 ignored"), Some((3, 0)));
        assert_eq!(result("test result: unknown"), None);
        assert_eq!(result("3 passed; 0 failed"), None);
    }
}
