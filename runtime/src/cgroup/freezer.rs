//! Pause and resume. v1 asks again and again: its freezer can be outrun by forks; v2's cannot.

use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;

use super::dir::{Dir, Version};
use super::{Cgroup, Error};

/// How often, and how many times 10 ms, a freeze is waited for: as runc.
const ROUNDS: u32 = 1000;

/// Whether the container's processes may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerState {
    /// They run.
    Thawed,
    /// They are stopped.
    Frozen,
    /// There is no freezer.
    Undefined,
}

impl Cgroup {
    /// Stops every process of the container, and returns when they have stopped.
    ///
    /// # Errors
    /// [`Error::NoFreezer`]; [`Error::FreezeTimeout`], and then the container runs on.
    pub fn freeze(&self) -> Result<(), Error> {
        match self.version {
            Version::V1 => {
                let dir = self.freezer()?;
                freeze_v1(dir).inspect_err(|_stuck| {
                    // half frozen is worse than running
                    drop(dir.write("freezer.state", "THAWED"));
                })
            }
            Version::V2 => {
                let dir = self.freezer()?;
                dir.write("cgroup.freeze", "1")?;
                wait_frozen(dir).inspect_err(|_stuck| drop(dir.write("cgroup.freeze", "0")))
            }
        }
    }

    /// Lets the container's processes run again.
    ///
    /// # Errors
    /// [`Error::NoFreezer`]; what writing answers.
    pub fn thaw(&self) -> Result<(), Error> {
        match self.version {
            Version::V1 => self.freezer()?.write("freezer.state", "THAWED"),
            Version::V2 => self.freezer()?.write("cgroup.freeze", "0"),
        }
    }

    /// Whether the container is paused. Undefined also when the control groups are gone.
    ///
    /// # Errors
    /// What reading answers.
    pub fn freezer_state(&self) -> Result<FreezerState, Error> {
        let Ok(dir) = self.freezer() else { return Ok(FreezerState::Undefined) };
        let state = match self.version {
            Version::V1 => state_v1(dir),
            Version::V2 => state_v2(dir),
        };
        match state {
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NODEV)) => {
                Ok(FreezerState::Undefined)
            }
            other => other,
        }
    }

    fn freezer(&self) -> Result<&Dir, Error> {
        let group = match self.version {
            Version::V1 => self.groups.iter().find(|group| group.has("freezer")),
            Version::V2 => self.groups.first(),
        };
        group.map(|group| &group.dir).ok_or(Error::NoFreezer)
    }
}

/// The rhythm is runc's, found by trial on slow machines: thaw and rest at times, so that a forking container settles.
fn freeze_v1(dir: &Dir) -> Result<(), Error> {
    for round in 0..ROUNDS {
        if round % 50 == 49 {
            dir.write("freezer.state", "THAWED")?;
            sleep(Duration::from_millis(10));
        }
        dir.write("freezer.state", "FROZEN")?;
        if round % 25 == 24 {
            sleep(Duration::from_micros(10));
        }
        if dir.read("freezer.state")?.trim() == "FROZEN" {
            return Ok(());
        }
    }
    Err(Error::FreezeTimeout)
}

fn wait_frozen(dir: &Dir) -> Result<(), Error> {
    for _ in 0..ROUNDS {
        if dir.read("cgroup.events")?.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        sleep(Duration::from_millis(10));
    }
    Err(Error::FreezeTimeout)
}

/// A group frozen only through one above it counts as thawed: thawing it would change nothing.
fn state_v1(dir: &Dir) -> Result<FreezerState, Error> {
    let state = dir.read("freezer.state")?;
    match state.trim() {
        "THAWED" => Ok(FreezerState::Thawed),
        "FROZEN" | "FREEZING" => Ok(match dir.read("freezer.self_freezing")?.trim() {
            "1" => FreezerState::Frozen,
            _ => FreezerState::Thawed,
        }),
        other => Err(Error::Content {
            path: format!("{}/freezer.state", dir.path()),
            found: other.to_owned(),
            expected: "a freezer state",
        }),
    }
}

fn state_v2(dir: &Dir) -> Result<FreezerState, Error> {
    match dir.read("cgroup.freeze")?.trim() {
        "0" => Ok(FreezerState::Thawed),
        "1" => Ok(FreezerState::Frozen),
        other => Err(Error::Content {
            path: format!("{}/cgroup.freeze", dir.path()),
            found: other.to_owned(),
            expected: "0 or 1",
        }),
    }
}
