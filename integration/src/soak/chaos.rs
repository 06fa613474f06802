//! Who restarts and kills while the workers work.

use std::fmt;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use super::{Calm, Random, STEADY, Soak, poisoned};
use crate::node::{End, Node};

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Disturbed {
    containerd_stopped: u32,
    containerd_killed: u32,
    snapshotter_killed: u32,
    shims_killed: u32,
}

impl fmt::Display for Disturbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "containerd stopped {} and killed {} times, the snapshotter killed {} times, {} shims killed",
            self.containerd_stopped,
            self.containerd_killed,
            self.snapshotter_killed,
            self.shims_killed
        )
    }
}

/// Disturbs until the last part of the containers begins.
pub(super) fn disturb(node: &mut Node, soak: &Soak, mut random: Random) -> Result<Disturbed> {
    let mut disturbed = Disturbed::default();
    let until = soak.count - soak.last_part();
    // at least eight disturbances, however few containers
    let most = u64::try_from(until / 8)?.clamp(1, 60);
    let mut next = 0;
    while next < until {
        next += usize::try_from(1 + random.below(most))?;
        while soak.done.load(Ordering::Relaxed) < next.min(until) {
            std::thread::sleep(Duration::from_millis(20));
        }
        match random.below(6) {
            0 => containerd(node, soak, End::Asked, &mut disturbed.containerd_stopped)?,
            1 => containerd(node, soak, End::Killed, &mut disturbed.containerd_killed)?,
            2 => {
                during(soak, || {
                    node.kill_snapshotter()?;
                    std::thread::sleep(Duration::from_millis(random.below(2000)));
                    node.start_snapshotter()
                })?;
                disturbed.snapshotter_killed += 1;
            }
            _ => disturbed.shims_killed += u32::from(kill_a_shim(soak, &mut random)?),
        }
    }
    Ok(disturbed)
}

fn containerd(node: &mut Node, soak: &Soak, how: End, times: &mut u32) -> Result<()> {
    during(soak, || node.restart_containerd(how))?;
    *times += 1;
    Ok(())
}

/// Nothing that fails now counts against anybody.
fn during(soak: &Soak, work: impl FnOnce() -> Result<()>) -> Result<()> {
    *soak.quiet_since.lock().map_err(poisoned)? = Calm::Disturbed;
    let result = work();
    *soak.quiet_since.lock().map_err(poisoned)? = Calm::Since(Instant::now());
    result
}

/// Kills some container's shim, if there is one.
fn kill_a_shim(soak: &Soak, random: &mut Random) -> Result<bool> {
    let shims = shims()?;
    let shims: Vec<_> = shims.iter().filter(|(id, _)| id != STEADY).collect();
    let chosen = usize::try_from(random.below(u64::try_from(shims.len())?))?;
    let Some((id, pid)) = shims.get(chosen) else { return Ok(false) };
    // written down first: what its container does from here on is explained
    soak.killed.lock().map_err(poisoned)?.insert(id.clone());
    Ok(kill_process(*pid, Signal::KILL).is_ok())
}

/// The shims that serve now, by the container each was started for.
pub(super) fn shims() -> Result<Vec<(String, Pid)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.parse().ok().and_then(Pid::from_raw) else { continue };
        let line = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split('\0');
        if !words.next().is_some_and(|program| program.ends_with("containerd-shim-hallmark-v1")) {
            continue;
        }
        if let Some(id) = words.skip_while(|word| *word != "-id").nth(1) {
            found.push((id.to_owned(), pid));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}
