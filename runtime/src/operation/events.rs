//! `events`: what a container uses, again and again, and when it ran out of memory, until it ends.

use std::io::Write;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::Globals;
use crate::cgroup::{Cgroup, OomNotifier};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::state::{Container, ContainerId, LiveProcess};

/// How long it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// One look.
    Once,
    /// A look at every interval, until the container ends.
    End(Duration),
}

/// Writes one JSON object a line to stdout.
pub(crate) fn events(globals: &Globals, id: &ContainerId, until: Until) -> Result<()> {
    let container = Container::load(&globals.root, id)?;
    let Some(process) = container.process() else {
        return Err(Error::new(
            ErrorKind::NotRunning,
            format!("container with id {id} is not running"),
        ));
    };
    let cgroup = container.held().cgroup()?;
    match until {
        Until::Once => tell_stats(&cgroup, id),
        Until::End(interval) => follow(&cgroup, id, process, interval),
    }
}

fn follow(
    cgroup: &Cgroup,
    id: &ContainerId,
    process: &LiveProcess,
    interval: Duration,
) -> Result<()> {
    let mut oom = cgroup.oom_notifier()?;
    let mut next = Instant::now() + interval;
    loop {
        let ready = wait(process, &oom, next.saturating_duration_since(Instant::now()))?;
        match ready {
            Ready::Ended => return Ok(()),
            Ready::Memory if oom.happened()? => tell(&oom_line(id))?,
            Ready::Memory | Ready::Nothing => {}
        }
        if Instant::now() >= next {
            tell_stats(cgroup, id)?;
            next += interval;
        }
    }
}

/// What there is to tell; the end before all else.
enum Ready {
    Ended,
    Memory,
    Nothing,
}

fn wait(process: &LiveProcess, oom: &OomNotifier, patience: Duration) -> Result<Ready> {
    let mut polled =
        [PollFd::new(&process.pidfd, PollFlags::IN), PollFd::new(oom, oom.readiness())];
    // one that does not fit is for ever
    let patience = Timespec::try_from(patience).ok();
    let polling = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, patience.as_ref()));
    polling.context(|| "poll")?;
    let [ended, oom] = polled.map(|fd| !fd.revents().is_empty());
    Ok(match (ended, oom) {
        (true, _) => Ready::Ended,
        (false, true) => Ready::Memory,
        (false, false) => Ready::Nothing,
    })
}

/// runc's order of keys, which its readers look for as text; an id needs no escaping.
fn oom_line(id: &ContainerId) -> String {
    format!("{{\"type\":\"oom\",\"id\":\"{}\"}}", id.as_str())
}

fn tell_stats(cgroup: &Cgroup, id: &ContainerId) -> Result<()> {
    let data = serde_json::to_string(&cgroup.stats()?)?;
    tell(&format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{data}}}", id.as_str()))
}

fn tell(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context(|| "stdout")
}

/// A duration as Go writes it: `1m30s`, `1.5s`, `100ms`.
///
/// # Errors
/// [`ErrorKind::Usage`], also for nothing and for zero.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || Error::new(ErrorKind::Usage, format!("invalid duration {text:?}"));
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let length = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(length);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_no_number: std::num::ParseFloatError| bad())?;
        seconds += number * scale;
        rest = tail;
    }
    let duration = Duration::try_from_secs_f64(seconds);
    let duration = duration.map_err(|_too_long: std::time::TryFromFloatSecsError| bad())?;
    if duration.is_zero() {
        return Err(Error::new(ErrorKind::Usage, "duration interval must be greater than 0"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_in_runcs_order() {
        let id = ContainerId::parse("c1").unwrap();
        assert_eq!(oom_line(&id), r#"{"type":"oom","id":"c1"}"#);
    }

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in
            [("5s", 5000), ("100ms", 100), ("1m30s", 90_000), ("1.5s", 1500), ("1h", 3_600_000)]
        {
            assert_eq!(
                parse_duration(text).unwrap(),
                Duration::from_millis(milliseconds),
                "{text}"
            );
        }
        for text in ["", "0s", "5", "s", "-1s", "1d", "1.2.3s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
