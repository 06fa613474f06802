//! The snapshotter's crash suite: what needs no kernel of its own on this machine, power cuts in the guest.
//!
//! The suite is a test program of the snapshotter's own, `snapshotter/tests/crash`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::cache::source_root;
use crate::everything;
use crate::guest;
use crate::guest::parts::Parts;
use crate::kit::Kit;
use crate::node::Stack;
use crate::run::Run;
use crate::sandbox;
use crate::table::Site;

/// The suite's program, as the kit calls it; the daemon that it strikes lies beside it.
const PROGRAM: &str = "crash";

/// Both parts, one sum.
pub(crate) fn run(kills: u32, failures: u32, shuffles: u32) -> Result<ExitCode> {
    let cache = crate::prepared()?;
    let mut here = Command::new("unshare");
    here.arg("--mount").arg(build()?).args([kills.to_string(), failures.to_string()]);
    let mut there = Command::new(std::env::current_exe()?);
    there.args(["cuts", "host", &shuffles.to_string()]);
    let mut sum = crate::table::Counts::default();
    for (name, program) in [("crash suite", here), ("power cuts", there)] {
        let log = cache.log(&name.replace(' ', "-"));
        let (counts, seconds) = everything::counted(name, program, &log)?;
        println!("{name:10} {counts} ({seconds} s)");
        sum.add(counts);
    }
    crate::counted(sum)
}

/// Builds the suite; where its program is.
fn build() -> Result<PathBuf> {
    let built = Command::new("cargo")
        .current_dir(source_root())
        .args(["test", "--quiet", "--package", "hallmark-snapshotter", "--test", "crash"])
        .args(["--no-run", "--message-format=json"])
        .good()?;
    let program = built.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == PROGRAM;
        message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
    });
    program.context("cargo built no crash suite")
}

/// The power cuts alone: from here the guest is booted for them.
pub(crate) fn cuts(site: Site, shuffles: &str) -> Result<ExitCode> {
    match site {
        Site::Host => in_guest(shuffles),
        Site::Guest => become_suite(shuffles),
    }
}

/// Boots the guest with the suite in its kit.
fn in_guest(shuffles: &str) -> Result<ExitCode> {
    let cache = crate::prepared()?;
    Parts::build(&cache)?;
    let kit = crate::assemble(&cache, Stack::Hallmark)?;
    std::fs::copy(build()?, kit.bin(PROGRAM)).context("copy the crash suite")?;
    sandbox::supervise(&cache, &["boot", &kit.root().to_string_lossy(), "cuts", "guest", shuffles])
}

fn become_suite(shuffles: &str) -> Result<ExitCode> {
    let program = Kit::at(Path::new(guest::init::KIT)).bin(PROGRAM);
    let status = Command::new(program).args(["power", shuffles]).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
