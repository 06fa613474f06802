//! What a worker does with one container after another.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Random, STEADY, Soak};
use crate::images::ONE;
use crate::run::{Ran, Run};

/// After that long a container that does not become, or does not go, is given up.
const PATIENCE: Duration = Duration::from_secs(180);

/// A container that stays until it is removed.
pub(super) fn start_arguments(id: &str) -> Vec<&str> {
    let mut all = vec!["run", "--detach", "--snapshotter", "hallmark"];
    all.extend(["--runtime", "io.containerd.hallmark.v1", ONE, id, "sleep", "1000000"]);
    all
}

/// What the first container of a node makes stays, and is no leak.
pub(super) fn warm_up(soak: &Soak) -> Result<()> {
    soak.ctr(&start_arguments("first")).good()?;
    remove(soak, "first")
}

/// Takes containers until all are begun.
pub(super) fn work(soak: &Soak, mut random: Random) -> Result<()> {
    loop {
        let number = soak.begun.fetch_add(1, Ordering::Relaxed);
        if number >= soak.count {
            return Ok(());
        }
        match one(soak, number, &mut random) {
            Ok(()) => {}
            Err(error) => soak.complain(format!("container {number}: {error:#}"))?,
        }
        soak.done.fetch_add(1, Ordering::Relaxed);
    }
}

fn one(soak: &Soak, number: usize, random: &mut Random) -> Result<()> {
    let id = create(soak, number)?;
    let worked = use_it(soak, &id, number, random);
    // whatever came of it, nothing may stay
    remove(soak, &id)?;
    worked
}

fn use_it(soak: &Soak, id: &str, number: usize, random: &mut Random) -> Result<()> {
    for round in 0..=random.below(3) {
        let whom = if random.below(4) == 0 { STEADY } else { id };
        if !execute(soak, whom, &format!("e{number}-{round}"))? {
            break;
        }
    }
    Ok(())
}

/// A running container; a new name for each attempt, each attempt cleaned up.
fn create(soak: &Soak, number: usize) -> Result<String> {
    let began = Instant::now();
    for attempt in 0_u32.. {
        let id = format!("c{number}-{attempt}");
        let call = Instant::now();
        let ran = soak.ctr(&start_arguments(&id)).ran()?;
        if ran.status.success() {
            return Ok(id);
        }
        explained(soak, &ran, &id, call)?;
        remove(soak, &id)?;
        if began.elapsed() > PATIENCE {
            bail!("{id}: not created in {} attempts: {}", attempt + 1, ran.all());
        }
        again(soak);
    }
    bail!("no attempts left")
}

/// Executes a program; `false` if the container's shim was killed, and the container with it.
fn execute(soak: &Soak, id: &str, name: &str) -> Result<bool> {
    let began = Instant::now();
    for attempt in 0_u32.. {
        let name = format!("{name}-{attempt}");
        let call = Instant::now();
        let ran = soak.ctr(&["tasks", "exec", "--exec-id", &name, id, "cat", "/etc/top"]).ran()?;
        if ran.status.success() && ran.stdout == "one" {
            soak.executed.fetch_add(1, Ordering::Relaxed);
            return Ok(true);
        }
        if soak.was_killed(id)? {
            return Ok(false);
        }
        explained(soak, &ran, id, call)?;
        if began.elapsed() > PATIENCE {
            bail!("{id}: nothing could be executed in it: {}", ran.all());
        }
        again(soak);
    }
    bail!("no attempts left")
}

/// Removes the container, whatever there is of it.
pub(super) fn remove(soak: &Soak, id: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let call = Instant::now();
        let task = soak.ctr(&["tasks", "delete", "--force", id]).ran()?;
        let container = soak.ctr(&["containers", "delete", id]).ran()?;
        let gone = |ran: &Ran| ran.status.success() || ran.stderr.contains("not found");
        if gone(&task) && gone(&container) {
            return Ok(());
        }
        let ran = if gone(&task) { container } else { task };
        explained(soak, &ran, id, call)?;
        if began.elapsed() > PATIENCE {
            bail!("{id}: not removed: {}", ran.all());
        }
        again(soak);
    }
}

/// An error unless something was disturbed while the call ran, or the container's shim killed.
fn explained(soak: &Soak, ran: &Ran, id: &str, began: Instant) -> Result<()> {
    if soak.was_disturbed(began)? || soak.was_killed(id)? {
        return Ok(());
    }
    bail!("{}: {} with nothing disturbed: {}", ran.line, ran.status, ran.all().trim())
}

fn again(soak: &Soak) {
    soak.repeated.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(300));
}
