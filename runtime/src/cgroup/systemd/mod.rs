//! systemd's driver: the container's control group is a scope that systemd makes, limits and takes away.
//!
//! ```text
//! Scope::parse ─► NewScope::start: StartTransientUnit(PIDs = [idle], Delegate) ─► JobRemoved "done"
//!                 the directories are there: opened as the other driver's are
//!                 clone3 into them, then NewScope::settle: the idle process goes
//! limits: SetUnitProperties, then the files        end: StopUnit, then what is left of directories
//! ```
//!
//! A scope needs a process to begin with, and ends with its last. runc hands over the container's first process, which
//! then has run outside of its group; ours is born in it, so an idle process keeps the scope until then.
//!
//! The bus is connected only here. Root asks the system's; users' own instances are not asked.
//!
//! Source: opencontainers/cgroups v0.1.0 `systemd/`; org.freedesktop.systemd1(5); systemd.resource-control(5).

mod annotation;
mod cpus;
mod devices;
mod properties;
mod unified;
mod unit;

use std::path::Path;

use hallmark_sys::process::Namespaces;

use super::resources::Resources;
use super::{Error, Version};
use crate::dbus::{self, Connection, Method, Value};
use crate::idle::Idle;

pub use annotation::Trust;
pub(super) use annotation::from_annotations;
pub(crate) use unit::Scope;

const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// systemd's own socket, which is there without a bus and takes root only.
const PRIVATE: &str = "/run/systemd/private";

const fn manager(member: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member,
    }
}

const fn bus(member: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member,
    }
}

/// The signal that tells the end of a job; systemd sends it to whoever asked for the job.
const JOBS: &str = "type='signal',sender='org.freedesktop.systemd1',\
                    interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// The first process of the system, asked over its bus.
#[derive(Debug)]
struct Systemd {
    connection: Connection,
}

/// A scope with an idle process in it. Dropped before [`settle`](Self::settle) and the container's end: it is stopped.
#[derive(Debug)]
pub(super) struct NewScope {
    unit: String,
    idle: Option<Idle>,
    kept: bool,
}

impl Systemd {
    /// # Errors
    /// [`Error::NoSystemd`], [`Error::NotRoot`], or what the bus answers.
    fn connect() -> Result<Self, Error> {
        let booted = std::fs::symlink_metadata("/run/systemd/system");
        if !booted.is_ok_and(|found| found.is_dir()) {
            return Err(Error::NoSystemd);
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let mut connection = match Connection::open(Path::new(SYSTEM_BUS)) {
            Ok(connection) => connection,
            Err(dbus::Error::Socket { .. }) => {
                let connection = Connection::open(Path::new(PRIVATE))?;
                return Ok(Self { connection });
            }
            Err(error) => return Err(error.into()),
        };
        connection.call(bus("Hello"), &[])?;
        connection.call(bus("AddMatch"), &[Value::text(JOBS)])?;
        Ok(Self { connection })
    }

    /// systemd's version: 257 of `257.8-1~deb13u1`.
    fn version(&mut self) -> Result<u32, Error> {
        let get = Method { interface: "org.freedesktop.DBus.Properties", ..manager("Get") };
        let arguments = [Value::text("org.freedesktop.systemd1.Manager"), Value::text("Version")];
        let text = self.connection.call(get, &arguments)?.text()?;
        parse_version(&text).ok_or(Error::Content {
            path: "systemd".to_owned(),
            found: text,
            expected: "a version",
        })
    }

    /// Starts a scope; one that failed before under the same name is forgotten first.
    fn start(&mut self, unit: &str, properties: Vec<Value>) -> Result<(), Error> {
        let arguments = [
            Value::text(unit),
            Value::text("replace"),
            Value::Array("(sv)".to_owned(), properties),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        let start = manager("StartTransientUnit");
        let answer = match self.connection.call(start, &arguments) {
            Err(error) if error.is("org.freedesktop.systemd1.UnitExists") => {
                self.forget_failure(unit);
                self.connection.call(start, &arguments)
            }
            other => other,
        };
        let failed = |source| Error::Unit { call: "start", unit: unit.to_owned(), source };
        let job = answer.and_then(|answer| answer.text()).map_err(failed)?;
        match self.connection.job_result(&job).map_err(failed)?.as_str() {
            "done" => Ok(()),
            result => {
                self.forget_failure(unit);
                Err(Error::Job { unit: unit.to_owned(), result: result.to_owned() })
            }
        }
    }

    fn set(&mut self, unit: &str, properties: Vec<Value>) -> Result<(), Error> {
        let properties = Value::Array("(sv)".to_owned(), properties);
        // true: until the next boot
        let arguments = [Value::text(unit), Value::Bool(true), properties];
        let set = self.connection.call(manager("SetUnitProperties"), &arguments);
        set.map(drop).map_err(|source| Error::Unit {
            call: "set properties of",
            unit: unit.to_owned(),
            source,
        })
    }

    /// Stops a scope and waits for it; one that is gone is fine.
    fn stop(&mut self, unit: &str) -> Result<(), Error> {
        let arguments = [Value::text(unit), Value::text("replace")];
        let stopped = match self.connection.call(manager("StopUnit"), &arguments) {
            Ok(answer) => answer.text().and_then(|job| self.connection.job_result(&job)).map(drop),
            Err(error) if error.is("org.freedesktop.systemd1.NoSuchUnit") => Ok(()),
            Err(error) => Err(error),
        };
        self.forget_failure(unit);
        stopped.map_err(|source| Error::Unit { call: "stop", unit: unit.to_owned(), source })
    }

    /// A unit that failed stays until somebody says so; most have not failed, which is an error to systemd.
    fn forget_failure(&mut self, unit: &str) {
        self.connection.call(manager("ResetFailedUnit"), &[Value::text(unit)]).ok();
    }
}

fn parse_version(text: &str) -> Option<u32> {
    let text = text.trim_start_matches(['"', 'v']);
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

impl NewScope {
    /// Has systemd make the scope, with the caller's `properties` behind ours.
    ///
    /// # Errors
    /// [`Error::NoSystemd`], [`Error::NotRoot`], [`Error::Unit`], [`Error::Job`], or what the bus answers.
    pub(super) fn start(
        scope: &Scope,
        version: Version,
        resources: &Resources,
        properties: Vec<Value>,
    ) -> Result<Self, Error> {
        let mut systemd = Systemd::connect()?;
        let idle = Idle::start(Namespaces::empty())
            .map_err(|error| Error::Value(format!("a process to begin the scope with: {error}")))?;
        let pid = idle.pid().as_raw_nonzero().get().unsigned_abs();
        let mut all = scope.properties(version, pid);
        if version == Version::V2 {
            all.extend(unified::out_of_memory(resources, systemd.version()?)?);
        }
        all.extend(properties);
        systemd.start(scope.unit(), all)?;
        Ok(Self { unit: scope.unit().to_owned(), idle: Some(idle), kept: false })
    }

    /// The container's first process is in the scope: the idle one goes.
    pub(super) fn settle(&mut self) {
        self.idle = None;
    }

    /// The scope stays when this is dropped.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NewScope {
    fn drop(&mut self) {
        if !self.kept {
            // without processes it goes by itself; stopping it takes those along that are in it
            stop(&self.unit).ok();
        }
    }
}

/// Has systemd hold the limits, and returns them as the files are to hold them: systemd counts time in hundredths of a
/// processor, and what is written beside it must be equal.
///
/// # Errors
/// [`Error::Unit`] with systemd's refusal; [`Error::Value`] for a value that makes no sense.
pub(super) fn set_limits(
    unit: &str,
    version: Version,
    resources: &Resources,
    devices: Devices,
) -> Result<Resources, Error> {
    let mut systemd = Systemd::connect()?;
    let known = systemd.version()?;
    let mut properties = match devices {
        Devices::Set => devices::properties(resources.devices.as_deref().unwrap_or_default())?,
        Devices::Leave => Vec::new(),
    };
    let (limits, written) = properties::of(version, known, resources)?;
    properties.extend(limits);
    if !properties.is_empty() {
        systemd.set(unit, properties)?;
    }
    Ok(written)
}

/// Whether device rules are among the limits that are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Devices {
    /// When the container is made.
    Set,
    /// Later: an update has none.
    Leave,
}

/// Stops a scope, and forgets that it failed.
///
/// # Errors
/// [`Error::NoSystemd`], [`Error::Unit`], or what the bus answers. A scope that is gone is no error.
pub(super) fn stop(unit: &str) -> Result<(), Error> {
    Systemd::connect()?.stop(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_begin_with_their_number() {
        for (text, expected) in [
            ("257.8-1~deb13u1", Some(257)),
            ("v245.4-1.fc32", Some(245)),
            ("\"v239\"", Some(239)),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }
}
