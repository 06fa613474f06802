//! Annotations `org.systemd.property.NAME` as properties of the scope.
//!
//! Source: runc 1.5.2 `libcontainer/specconv/spec_linux.go`, `initSystemdProps`.

use std::collections::BTreeMap;

use crate::cgroup::Error;
use crate::dbus::{Value, parse_text};

const PREFIX: &str = "org.systemd.property.";

/// What a workload may say about its scope where the gate enforces: how it ends, not what else happens then (an
/// `OnFailure` starts units, a `SuccessAction` ends the machine, `PIDs` takes the host's processes along).
const HARMLESS: &[&str] = &[
    "CollectMode",
    "DefaultDependencies",
    "RuntimeMaxSec",
    "RuntimeMaxUSec",
    "TimeoutStopSec",
    "TimeoutStopUSec",
];

/// Which annotations are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// All, as runc does.
    All,
    /// Those that cannot reach beyond the scope.
    Harmless,
}

/// The properties that `annotations` ask for.
///
/// # Errors
/// [`Error::Value`] for a name or value that is none, and for one that is not taken.
pub(in crate::cgroup) fn from_annotations(
    annotations: &BTreeMap<String, String>,
    trust: Trust,
) -> Result<Vec<Value>, Error> {
    let mut properties = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        if name.len() < 3 || !name.chars().all(|c| c.is_ascii_alphabetic()) {
            return Err(Error::Value(format!("annotation {key} name incorrect")));
        }
        if trust == Trust::Harmless && !HARMLESS.contains(&name) {
            return Err(Error::Value(format!(
                "annotation {key}: under enforce only {} may be set",
                HARMLESS.join(", ")
            )));
        }
        let wrong = || Error::Value(format!("annotation {key}={text} value parse error"));
        let value = parse_text(text).ok_or_else(wrong)?;
        // systemd's files say seconds, its bus microseconds
        let seconds =
            name.strip_suffix("Sec").filter(|before| before.ends_with(char::is_lowercase));
        properties.push(match seconds {
            Some(before) => {
                let value = microseconds(&value).ok_or_else(wrong)?;
                Value::property(&format!("{before}USec"), Value::Uint64(value))
            }
            None => Value::property(name, value),
        });
    }
    Ok(properties)
}

fn microseconds(seconds: &Value) -> Option<u64> {
    let whole = match seconds {
        Value::Byte(value) => u64::from(*value),
        Value::Int16(value) => u64::try_from(*value).ok()?,
        Value::Uint16(value) => u64::from(*value),
        Value::Int32(value) => u64::try_from(*value).ok()?,
        Value::Uint32(value) => u64::from(*value),
        Value::Int64(value) => u64::try_from(*value).ok()?,
        Value::Uint64(value) => *value,
        Value::Double(value) => {
            let duration = std::time::Duration::try_from_secs_f64(*value).ok()?;
            return u64::try_from(duration.as_micros()).ok();
        }
        _ => return None,
    };
    whole.checked_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str, trust: Trust) -> Result<Vec<Value>, String> {
        let annotations = BTreeMap::from([
            (format!("{PREFIX}{name}"), value.to_owned()),
            ("other".to_owned(), "x".to_owned()),
        ]);
        from_annotations(&annotations, trust).map_err(|error| error.to_string())
    }

    #[test]
    fn seconds_are_microseconds_on_the_bus() {
        for (name, text, expected) in [
            (
                "TimeoutStopSec",
                "123",
                Value::property("TimeoutStopUSec", Value::Uint64(123_000_000)),
            ),
            ("TimeoutStopSec", "1.5", Value::property("TimeoutStopUSec", Value::Uint64(1_500_000))),
            ("TimeoutStopUSec", "uint64 5", Value::property("TimeoutStopUSec", Value::Uint64(5))),
            ("CollectMode", "'inactive'", Value::property("CollectMode", Value::text("inactive"))),
            ("FOOSec", "3", Value::property("FOOSec", Value::Int32(3))),
        ] {
            assert_eq!(of(name, text, Trust::All).unwrap(), [expected], "{name}");
        }
    }

    #[test]
    fn names_and_values_that_are_none_are_refused() {
        for (name, value) in [
            ("ab", "1"),
            ("Te$t", "1"),
            ("", "1"),
            ("CollectMode", "inactive"),
            ("TimeoutStopSec", "'x'"),
            ("TimeoutStopSec", "-1"),
        ] {
            assert!(of(name, value, Trust::All).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn under_enforce_a_scope_reaches_no_further_than_itself() {
        for (name, value) in [
            ("OnFailure", "['x.service']"),
            ("PIDs", "[uint32 1]"),
            ("SuccessAction", "'poweroff'"),
        ] {
            assert!(of(name, value, Trust::All).is_ok());
            assert!(of(name, value, Trust::Harmless).unwrap_err().contains("under enforce"));
        }
        assert!(of("RuntimeMaxSec", "2", Trust::Harmless).is_ok());
    }
}
