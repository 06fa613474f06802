//! The demonstration: the main job as scenes, each with what was seen, here and in the guest.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::guest::boot::Guest;
use crate::guest::init::KIT;
use crate::guest::parts::Parts;
use crate::images::attacks::{REORDERED, STACKED, UNSEALED};
use crate::images::{ONE, TWO};
use crate::kit::Kit;
use crate::node::Stack;
use crate::run::Run;
use crate::table::{Bench, Site};
use crate::tests::attacks::stored_byte;
use crate::tests::kernel::denial;
use crate::trust::Setting;
use crate::{cache::Cache, files};

/// One scene: its title says what must happen; showing it returns what was seen.
struct Scene {
    title: &'static str,
    show: fn(&mut Bench) -> Result<String>,
}

/// Whether every scene went as its title says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    Well,
    Wrong,
}

impl From<Went> for ExitCode {
    fn from(went: Went) -> Self {
        match went {
            Went::Well => Self::SUCCESS,
            Went::Wrong => Self::FAILURE,
        }
    }
}

const SCENES: &[Scene] = &[
    Scene { title: "a sealed image runs", show: sealed },
    Scene { title: "an unsealed image is refused", show: |bench| refused(bench, UNSEALED) },
    Scene {
        title: "layers of two sealed images, stacked: refused",
        show: |bench| refused(bench, STACKED),
    },
    Scene {
        title: "the same layers in another order: refused",
        show: |bench| refused(bench, REORDERED),
    },
    Scene { title: "audit mode lets pass, and says what enforce would refuse", show: audit },
    Scene { title: "one byte of a stored layer changed: refused or EIO", show: flipped },
];

const KERNEL_SCENES: &[Scene] = &[
    Scene { title: "a program dropped into the container: the kernel refuses", show: dropped },
    Scene { title: "a program of the image copied: the kernel refuses", show: copied },
];

/// Shows the scenes of this machine while the guest boots and shows its own.
pub(crate) fn both(kit: &Path) -> Result<Went> {
    let kit_of_guest = Kit::at(kit);
    let (sender, lines) = mpsc::channel::<String>();
    let guest = std::thread::spawn(move || -> Result<u8> {
        let parts = Parts::build(&Cache::open()?)?;
        let guest = Guest::new(&parts, &kit_of_guest, Path::new("/tmp/guest"))?;
        let mut each = |line: &str| {
            if sender.send(line.to_owned()).is_err() {
                crate::say(line);
            }
        };
        Ok(guest.run(&["scenes", "guest", KIT], &mut each)?.code)
    });
    println!("{}", crate::kit::sizes(&Kit::at(kit))?);
    let here = scenes(Site::Host, Kit::at(kit))?;
    println!();
    for line in lines {
        println!("{line}");
    }
    let there = guest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(if here == Went::Well && there == 0 { Went::Well } else { Went::Wrong })
}

/// Shows the scenes of one site.
pub(crate) fn scenes(site: Site, kit: Kit) -> Result<Went> {
    let mut bench = Bench::new(site, kit, Path::new("/var/log/node"), Stack::Hallmark);
    println!("{}", heading(site)?);
    let archive = bench.kit.demo();
    bench.node()?.load(&archive)?;
    let more = if site == Site::Guest { KERNEL_SCENES } else { &[] };
    let mut went = Went::Well;
    for scene in SCENES.iter().chain(more) {
        let started = Instant::now();
        let shown = (scene.show)(&mut bench);
        let seconds = started.elapsed().as_secs_f32();
        match shown {
            Ok(seen) => {
                println!("  ok    {} ({seconds:.1} s)\n        {}", scene.title, brief(&seen))
            }
            Err(error) => {
                went = Went::Wrong;
                let words = bench.node()?.last_words();
                println!("  FAIL  {} ({seconds:.1} s)\n{error:#}\n{words}", scene.title);
            }
        }
    }
    bench.node()?.empty()?;
    bench.stop()?;
    Ok(went)
}

fn heading(site: Site) -> Result<String> {
    let kernel = files::text(Path::new("/proc/sys/kernel/osrelease"))?;
    let place = match site {
        Site::Host => "this machine",
        Site::Guest => "the guest",
    };
    Ok(format!("{place}, Linux {}", kernel.trim()))
}

/// Digests cut to what a person compares.
fn brief(text: &str) -> String {
    let mut brief = String::new();
    let mut digits = 0;
    for letter in text.chars() {
        digits = if letter.is_ascii_hexdigit() { digits + 1 } else { 0 };
        if digits <= 12 {
            brief.push(letter);
        }
    }
    brief
}

fn sealed(bench: &mut Bench) -> Result<String> {
    let node = bench.node()?;
    node.run(&["-d", "--name", "shop", TWO, "sleep", "600"]).good()?;
    let said = node.run(&["--rm", ONE]).good()?;
    ensure!(said == "hello from one", "it says {said:?}");
    Ok(format!("nerdctl run {ONE}: {said}; {}", verdict()?))
}

/// What the gate found for the container that goes on running.
pub(crate) fn verdict() -> Result<String> {
    let mut entries = fs::read_dir("/run/hallmark/runtime/default")?;
    let entry = entries.next().context("no container has a state file")??;
    let state = files::text(&entry.path().join("state.json"))?;
    let state: serde_json::Value = serde_json::from_str(&state)?;
    let of = |key: &str| state["verdict"][key].as_str().unwrap_or("?").to_owned();
    let (evidence, control) = (of("evidence"), of("execControl"));
    Ok(format!("{}: evidence {evidence}, exec control {control}", of("outcome")))
}

fn refused(bench: &mut Bench, image: &str) -> Result<String> {
    let said = bench.node()?.once(&[image]).bad()?;
    refusal(&said)
}

fn refusal(said: &str) -> Result<String> {
    let at = said.find("hallmark: refused:");
    let at = at.with_context(|| format!("failed, but not by a refusal: {said}"))?;
    let line = said.get(at..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    // what the node has is in the first scene, what to do is for who wants it run
    Ok(line.split("; evidence ").next().unwrap_or(line).to_owned())
}

fn audit(bench: &mut Bench) -> Result<String> {
    let site = bench.site;
    let ran = bench.set(Setting::Audit)?.once(&[UNSEALED]).ran();
    bench.set(Setting::Enforce)?;
    let ran = ran?;
    let log = files::text(Path::new("/var/log/hallmark/audit.log"))?;
    let record = log.lines().last().context("the audit log is empty")?;
    let seen = match site {
        Site::Host => {
            ensure!(ran.stdout.trim() == "hello from unsealed", "it did not run: {}", ran.all());
            "it ran"
        }
        Site::Guest => {
            let denied = ran.all().to_lowercase().contains("permission denied");
            ensure!(denied, "the kernel let it run: {}", ran.all());
            "the gate let it pass, the kernel did not"
        }
    };
    Ok(format!("{seen}; audit.log: {record}"))
}

fn flipped(bench: &mut Bench) -> Result<String> {
    let archive = bench.sealed(ONE);
    let (file, offset) = stored_byte(&archive, "echo hello from one")?;
    files::flip_byte(&file, offset)?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let said = bench.node()?.once(&[ONE]).bad()?;
    match refusal(&said) {
        Ok(line) => Ok(line),
        Err(_) if said.to_lowercase().contains("input/output error") => {
            let line = said.lines().last().unwrap_or_default();
            let again = refusal(&bench.node()?.once(&[ONE]).bad()?)?;
            Ok(format!("{line}\n        and again: {again}"))
        }
        Err(error) => Err(error),
    }
}

fn dropped(bench: &mut Bench) -> Result<String> {
    let script =
        "printf '#!/bin/sh\\necho dropped\\n' > /tmp/dropped; chmod +x /tmp/dropped; /tmp/dropped";
    denied_by_the_kernel(bench, script, "/tmp/dropped")
}

fn copied(bench: &mut Bench) -> Result<String> {
    denied_by_the_kernel(bench, "cp /bin/busybox /tmp/true; /tmp/true", "/tmp/true")
}

/// The program fails with EACCES, and the kernel's audit record names it.
fn denied_by_the_kernel(bench: &mut Bench, script: &str, path: &str) -> Result<String> {
    let said = bench.node()?.nerdctl(&["exec", "shop", "sh", "-c", script]).bad()?;
    ensure!(said.contains("Permission denied"), "it says {said:?}");
    Ok(format!("Permission denied; {}", denial(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_cut_and_words_are_not() {
        let digest = "7f".repeat(32);
        assert_eq!(brief(&format!("hash {digest}, decades")), "hash 7f7f7f7f7f7f, decades");
    }
}
