//! Thousands of containers made, executed in and removed by several workers, while containerd is
//! restarted and shims and the snapshotter are killed at moments that a seed decides.
//!
//! Every container must be accounted for: it ran what it was told, or its own shim was killed; and it
//! is gone. A call that failed while nothing was disturbed is a failure. After the last disturbance a
//! part of the containers runs in peace, and what the daemons hold must not grow over it.

mod chaos;
mod growth;
mod worker;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::images::ONE;
use crate::kit::Kit;
use crate::leaks::Picture;
use crate::run::{Run, within};
use crate::table::{Bench, Counts};

const WORKERS: u64 = 8;

/// One container that is there all the time, and executed in by everybody.
const STEADY: &str = "steady";

/// How long after a disturbance a call may still fail: containerd's connections come back within
/// three seconds.
const SETTLES: Duration = Duration::from_secs(5);

/// What the workers and the disturber share.
#[derive(Debug)]
struct Soak {
    kit: Kit,
    count: usize,
    /// Containers begun, and done with.
    begun: AtomicUsize,
    done: AtomicUsize,
    executed: AtomicUsize,
    repeated: AtomicUsize,
    /// Identifiers of which the shim was killed.
    killed: Mutex<BTreeSet<String>>,
    quiet_since: Mutex<Calm>,
    problems: Mutex<Vec<String>>,
}

/// Whether something is being disturbed, or since when no more.
#[derive(Clone, Copy, Debug)]
enum Calm {
    Disturbed,
    Since(Instant),
}

impl Soak {
    fn ctr(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = within(120, self.kit.bin("ctr"));
        command.env("PATH", self.kit.path()).args(arguments);
        command
    }

    /// Whether a call that began then could have met a disturbance.
    fn was_disturbed(&self, began: Instant) -> Result<bool> {
        Ok(match *self.quiet_since.lock().map_err(poisoned)? {
            Calm::Disturbed => true,
            Calm::Since(end) => began < end + SETTLES,
        })
    }

    fn was_killed(&self, id: &str) -> Result<bool> {
        Ok(self.killed.lock().map_err(poisoned)?.contains(id))
    }

    fn complain(&self, problem: String) -> Result<()> {
        crate::say(&problem);
        self.problems.lock().map_err(poisoned)?.push(problem);
        Ok(())
    }

    /// How many containers run in peace at the end.
    fn last_part(&self) -> usize {
        self.count / 5
    }
}

fn poisoned<T>(_: std::sync::PoisonError<T>) -> anyhow::Error {
    anyhow::anyhow!("a thread of the soak ended badly")
}

/// Numbers that look random and follow from a seed (splitmix64).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

/// Runs it all, prints figures, and counts containers and what is looked at in the end.
pub(crate) fn run(bench: &mut Bench, count: usize, seed: u64) -> Result<Counts> {
    println!("soak: {count} containers, {WORKERS} workers, seed {seed}");
    let archive = bench.sealed(ONE);
    bench.node()?.load(&archive)?;
    let soak = Soak {
        kit: bench.kit.clone(),
        count,
        begun: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        executed: AtomicUsize::new(0),
        repeated: AtomicUsize::new(0),
        killed: Mutex::default(),
        quiet_since: Mutex::new(Calm::Since(Instant::now() - SETTLES)),
        problems: Mutex::default(),
    };
    worker::warm_up(&soak)?;
    let before = Picture::take()?.with_layers_counted();
    soak.ctr(&worker::start_arguments(STEADY)).good().context("the steady container")?;
    let (soak, started) = (&soak, Instant::now());
    let (disturbed, grown) = std::thread::scope(|scope| -> Result<_> {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| Random(seed ^ (number << 32)))
            .map(|random| scope.spawn(move || worker::work(soak, random)))
            .collect();
        let node = bench.node()?;
        let disturbed = chaos::disturb(node, soak, Random(seed))?;
        let grown = growth::watch(node, soak)?;
        for worker in workers {
            worker.join().ok().context("a worker panicked")??;
        }
        Ok((disturbed, grown.finish(node)?))
    })?;
    let seconds = started.elapsed().as_secs();
    worker::remove(soak, STEADY)?;
    println!(
        "{} containers in {seconds} s, {} executions, {} attempts repeated; {disturbed}",
        soak.done.load(Ordering::Relaxed),
        soak.executed.load(Ordering::Relaxed),
        soak.repeated.load(Ordering::Relaxed),
    );
    conclude(soak, &grown, &before)
}

fn conclude(soak: &Soak, grown: &growth::Grown, before: &Picture) -> Result<Counts> {
    let problems = soak.problems.lock().map_err(poisoned)?.len();
    let done = soak.done.load(Ordering::Relaxed);
    let mut counts = Counts {
        passed: u32::try_from(done.saturating_sub(problems))?,
        failed: u32::try_from(problems)?,
        skipped: 0,
    };
    // a client that failed and a containerd that was killed do not clean up after themselves
    let left = before.expect_again_but_for(&|now| {
        now.with_layers_counted().without_pipes().without_hidden_bundles()
    });
    let left = left.map_err(|error| format!("{error:#}"));
    let listed = soak.ctr(&["containers", "list", "--quiet"]).good()?;
    let mut checks = vec![
        (
            "every container is gone".to_owned(),
            if listed.is_empty() { Ok(()) } else { Err(listed) },
        ),
        ("no process, mount, cgroup, device or file is left".to_owned(), left),
    ];
    checks.extend(grown.checks());
    for (what, result) in checks {
        match result {
            Ok(()) => {
                println!("pass  {what}");
                counts.passed += 1;
            }
            Err(found) => {
                println!("FAIL  {what}: {found}");
                counts.failed += 1;
            }
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides() {
        let draw = |seed| {
            let mut random = Random(seed);
            (0..20).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_eq!(Random(7).below(0), 0);
    }
}
