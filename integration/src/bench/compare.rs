//! Runs in turn, and what each cost.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use crate::run::tail;

/// What one run took, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// On the clock.
    pub(super) wall: f64,
    /// Of processors, user and system.
    pub(super) cpu: f64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { wall: self.wall + other.wall, cpu: self.cpu + other.cpu }
    }
}

/// One side of a comparison: a name, and one run of it.
pub(super) struct Side<'a> {
    pub(super) name: &'a str,
    pub(super) run: Box<dyn FnMut() -> Result<Cost> + 'a>,
}

impl<'a> Side<'a> {
    pub(super) fn new(name: &'a str, run: impl FnMut() -> Result<Cost> + 'a) -> Self {
        Self { name, run: Box::new(run) }
    }
}

/// Every side's runs, by side.
#[derive(Debug)]
pub(super) struct Series(Vec<Vec<Cost>>);

/// Runs all sides in turn, `rounds` times. After each run there is a pause: back to back, one side would find warm what
/// the other paid for.
pub(super) fn in_turn(rounds: usize, pause: Duration, sides: &mut [Side<'_>]) -> Result<Series> {
    let mut series = vec![Vec::with_capacity(rounds); sides.len()];
    for _ in 0..rounds {
        for (side, costs) in sides.iter_mut().zip(&mut series) {
            costs.push((side.run)().with_context(|| side.name.to_owned())?);
            std::thread::sleep(pause);
        }
    }
    Ok(Series(series))
}

impl Series {
    /// The median run of a side.
    pub(super) fn median(&self, side: usize) -> Cost {
        let of = |part: fn(&Cost) -> f64| median(self.0[side].iter().map(part).collect());
        Cost { wall: of(|cost| cost.wall), cpu: of(|cost| cost.cpu) }
    }

    /// The median of the ratios of pairs: what `side` cost for what `peer` cost in the same round.
    pub(super) fn ratio(&self, side: usize, peer: usize) -> Cost {
        let pairs = || self.0[side].iter().zip(&self.0[peer]);
        Cost {
            wall: median(pairs().map(|(a, b)| a.wall / b.wall).collect()),
            cpu: median(pairs().map(|(a, b)| a.cpu / b.cpu).collect()),
        }
    }
}

/// The middle one of these, or the mean of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => f64::NAN,
        values if values.len() % 2 == 1 => values[values.len() / 2],
        values => f64::midpoint(values[values.len() / 2 - 1], values[values.len() / 2]),
    }
}

/// Runs a command to its good end.
pub(super) fn timed(command: &mut Command) -> Result<Cost> {
    let before = children()?;
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let wall = started.elapsed().as_secs_f64();
    let output = output.with_context(|| format!("start {command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, tail(&words, 10));
    Ok(Cost { wall, cpu: children()? - before })
}

/// What a piece of work in this process, and what it waits for in the processes of `pids`, took.
pub(super) fn around(pids: &[u32], work: impl FnOnce() -> Result<Cost>) -> Result<Cost> {
    let before = of_processes(pids)?;
    let cost = work()?;
    Ok(Cost { cpu: cost.cpu + of_processes(pids)? - before, ..cost })
}

/// Processor time of the children that this process waited for.
fn children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0).as_secs_f64()
            + Duration::from_micros(time.tv_usec().unsigned_abs()).as_secs_f64()
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Processor time of processes, and of the children they waited for.
fn of_processes(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0u32;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // fields 14 to 17 of proc_pid_stat(5); the name, field 2, may hold anything
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).context("a malformed stat")?;
        for field in fields.split(' ').skip(11).take(4) {
            ticks += field.parse::<u32>()?;
        }
    }
    let second = u32::try_from(rustix::param::clock_ticks_per_second())?;
    Ok(f64::from(ticks) / f64::from(second))
}

/// A `NAME: N kB` line of a file of /proc, in KiB.
pub(super) fn kib(file: &str, name: &str) -> Result<u32> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let line = line.with_context(|| format!("{file}: no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(wall: f64) -> Cost {
        Cost { wall, cpu: wall / 2.0 }
    }

    #[test]
    fn ratios_are_of_pairs_and_outliers_do_not_count() {
        let ours = vec![cost(1.0), cost(30.0), cost(1.0)];
        let peer = vec![cost(2.0), cost(3.0), cost(4.0)];
        let series = Series(vec![ours, peer]);
        assert!((series.ratio(0, 1).wall - 0.5).abs() < 1e-9);
        assert!((series.median(1).wall - 3.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn a_failure_is_no_time() {
        assert!(timed(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).is_err());
        let cost = timed(Command::new("sh").args(["-c", "sleep 0.05"])).unwrap();
        assert!(cost.wall >= 0.05 && cost.cpu < cost.wall);
    }

    #[test]
    fn sides_take_turns() {
        let order = std::cell::RefCell::new(String::new());
        let side = |name: &'static str| {
            let order = &order;
            Side::new(name, move || {
                order.borrow_mut().push_str(name);
                Ok(cost(1.0))
            })
        };
        in_turn(2, Duration::ZERO, &mut [side("a"), side("b")]).unwrap();
        assert_eq!(*order.borrow(), "abab");
    }
}
