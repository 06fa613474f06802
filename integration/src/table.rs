//! The table of tests: one list, run on this machine and in the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::kit::Kit;
use crate::leaks::Picture;
use crate::node::{Node, Stack};
use crate::trust::{self, Setting};

/// Which kernel the tests meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Site {
    /// This machine, whatever its kernel has.
    Host,
    /// The guest, which has everything: a test that cannot run there has failed.
    Guest,
}

/// What a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    DeviceMapper,
    Ipe,
    Selinux,
    /// A memory controller, on either version of cgroups.
    Memory,
    /// The controllers of cgroup v1, by whose files a limit is read.
    CgroupV1,
}

impl Need {
    fn is_met(self) -> bool {
        let there = |path: &str| crate::cache::is_there(Path::new(path));
        match self {
            Self::DeviceMapper => there("/sys/module/dm_verity") && there("/dev/mapper/control"),
            Self::Ipe => there("/sys/kernel/security/ipe"),
            Self::Selinux => there("/sys/fs/selinux/enforce"),
            Self::CgroupV1 => ["cpu/cpu.shares", "memory/cgroup.procs", "pids/cgroup.procs"]
                .iter()
                .all(|file| there(&format!("/sys/fs/cgroup/{file}"))),
            Self::Memory => {
                there("/sys/fs/cgroup/memory/cgroup.procs")
                    || fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                        .is_ok_and(|text| text.contains("memory"))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::DeviceMapper => "device-mapper with verity",
            Self::Ipe => "a kernel with IPE",
            Self::Selinux => "a kernel with SELinux",
            Self::Memory => "the memory controller",
            Self::CgroupV1 => "the controllers of cgroup v1",
        }
    }
}

/// One test.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Need],
    pub(crate) run: fn(&mut Bench) -> Result<()>,
}

/// What a test works on: the kit, and a node that is there when first asked for.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) site: Site,
    pub(crate) kit: Kit,
    logs: PathBuf,
    stack: Stack,
    setting: Setting,
    node: Option<Node>,
}

impl Bench {
    pub(crate) fn new(site: Site, kit: Kit, logs: &Path, stack: Stack) -> Self {
        Self { site, kit, logs: logs.to_owned(), stack, setting: Setting::Enforce, node: None }
    }

    /// The node, started if none runs.
    pub(crate) fn node(&mut self) -> Result<&mut Node> {
        if self.node.is_none() {
            trust::install(&self.kit, self.site, self.setting)?;
            trust::install_claims(&self.kit.cri_claims())?;
            self.node = Some(Node::start(&self.kit, self.site, self.stack, &self.logs)?);
        }
        self.node.as_mut().context("no node")
    }

    /// The node set as asked. Our programs read the configuration at each launch, so it goes on.
    pub(crate) fn set(&mut self, setting: Setting) -> Result<&mut Node> {
        self.setting = setting;
        trust::install(&self.kit, self.site, setting)?;
        self.node()
    }

    /// The sealed archive of an image.
    pub(crate) fn sealed(&self, image: &str) -> PathBuf {
        self.kit.sealed(image)
    }

    /// Whether processors are emulated, and programs start in seconds.
    pub(crate) fn is_slow(&self) -> bool {
        self.site == Site::Guest
    }

    /// Stops the node; the next use starts another over the same state.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.node.take().map_or(Ok(()), Node::stop)
    }
}

/// Three numbers that add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads what [`Display`](std::fmt::Display) wrote, anywhere in a text's last lines.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.lines().rev().find_map(|line| {
            let mut numbers = [0; 3];
            let mut words = line.split(", ");
            for (number, name) in numbers.iter_mut().zip(["passed", "failed", "skipped"]) {
                let (value, found) = words.next()?.split_once(' ')?;
                *number = value.parse().ok().filter(|_| found == name)?;
            }
            let [passed, failed, skipped] = numbers;
            words.next().is_none().then_some(Self { passed, failed, skipped })
        })
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs the tests whose names contain a part of `filter`, which `|` divides, prints a line each, and counts.
pub(crate) fn run(tests: &[Test], bench: &mut Bench, filter: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    let wanted = |test: &&Test| filter.split('|').any(|part| test.name.contains(part));
    for test in tests.iter().filter(wanted) {
        let site = bench.site;
        counts.add(with_needs(test.name, test.needs, site, &mut || run_one(test, bench))?);
    }
    bench.stop()?;
    Ok(counts)
}

/// What becomes of a test: skipped on this machine for want of something, failed for it in the
/// guest, or run.
pub(crate) fn with_needs(
    name: &str,
    needs: &[Need],
    site: Site,
    run: &mut dyn FnMut() -> Result<Outcome>,
) -> Result<Counts> {
    let mut counts = Counts::default();
    match (needs.iter().find(|need| !need.is_met()), site) {
        (Some(need), Site::Host) => {
            println!("skipped: needs {}: {name}", need.name());
            counts.skipped = 1;
        }
        (Some(need), Site::Guest) => {
            println!("FAIL  {name}: the guest lacks {}", need.name());
            counts.failed = 1;
        }
        (None, _) => match run()? {
            Outcome::Passed => counts.passed = 1,
            Outcome::Failed => counts.failed = 1,
        },
    }
    Ok(counts)
}

/// How a test that ran has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
}

fn run_one(test: &Test, bench: &mut Bench) -> Result<Outcome> {
    let started = Instant::now();
    let mut result = guarded(test, bench);
    if let Err(error) = &mut result {
        let words = bench.node.as_ref().map(Node::last_words).unwrap_or_default();
        println!(
            "FAIL  {} ({:.1} s)\n{error:#}\n{words}",
            test.name,
            started.elapsed().as_secs_f32()
        );
        // the next test starts on a new node; what this one left is in its own picture
        if let Some(node) = bench.node.take()
            && let Err(error) = node.empty().and_then(|()| node.stop())
        {
            println!("      and its node did not stop cleanly: {error:#}");
        }
        return Ok(Outcome::Failed);
    }
    println!("pass  {} ({:.1} s)", test.name, started.elapsed().as_secs_f32());
    Ok(Outcome::Passed)
}

/// The test, and the proof that it left nothing.
fn guarded(test: &Test, bench: &mut Bench) -> Result<()> {
    bench.set(Setting::Enforce)?;
    let before = Picture::take()?;
    (test.run)(bench)?;
    // a test may have ended with another node, or none
    bench.node()?.empty()?;
    before.expect_again().with_context(|| format!("after {}", test.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_back() {
        let counts = Counts { passed: 3, failed: 0, skipped: 12 };
        assert_eq!(Counts::parse(&format!("x\n{counts}\n")), Some(counts));
        assert_eq!(Counts::parse("3 passed, 0 failed\n"), None);
    }
}
