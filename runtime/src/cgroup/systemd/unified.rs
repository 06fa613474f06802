//! `linux.resources.unified` as properties, as far as systemd has them; the files are written all the same.
//!
//! Source: opencontainers/cgroups v0.1.0 `systemd/v2.go`, `unifiedResToSystemdProps`.

use std::collections::BTreeMap;

use super::cpus;
use super::properties::{PERIOD, quota_of};
use crate::cgroup::Error;
use crate::cgroup::resources::Resources;
use crate::dbus::Value;

/// The properties for the files of `resources` that systemd knows.
///
/// # Errors
/// [`Error::Value`] for a value that the property cannot hold, or a name that is no file of a controller.
pub(super) fn properties(known: u32, resources: &Resources) -> Result<Vec<Value>, Error> {
    let Some(files) = &resources.unified else { return Ok(Vec::new()) };
    let mut properties = Vec::new();
    for (file, value) in files {
        if file.contains('/') {
            return wrong(format!("unified resource {file:?} must be a file name (no slashes)"));
        }
        if file.find('.').is_none_or(|at| at == 0) {
            let form = "must be in the form CONTROLLER.PARAMETER";
            return wrong(format!("unified resource {file:?} {form}"));
        }
        properties.extend(property(known, files, file, value.trim())?);
    }
    Ok(properties)
}

fn property(
    known: u32,
    files: &BTreeMap<String, String>,
    file: &str,
    value: &str,
) -> Result<Vec<Value>, Error> {
    let name = match file {
        "cpu.max" => return time(known, value),
        "cpuset.cpus" => {
            return Ok(cpus::property(known, "AllowedCPUs", value)?.into_iter().collect());
        }
        "cpuset.mems" => {
            return Ok(cpus::property(known, "AllowedMemoryNodes", value)?.into_iter().collect());
        }
        "cpu.idle" if known >= 252 && value == "1" => {
            return Ok(vec![Value::property("CPUWeight", Value::Uint64(0))]);
        }
        // one weight is enough: an idle group has that of 0
        "cpu.weight" if known >= 252 && files.get("cpu.idle").is_some_and(|v| v.trim() == "1") => {
            return Ok(Vec::new());
        }
        "cpu.weight" => "CPUWeight",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.max" => "MemoryMax",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        _ => return Ok(Vec::new()),
    };
    let number = match value {
        "max" => u64::MAX,
        value => parse(file, value)?,
    };
    // systemd takes no TasksMax of 0
    let number = if name == "TasksMax" { number.max(1) } else { number };
    Ok(vec![Value::property(name, Value::Uint64(number))])
}

/// `quota period`, `quota` or `max period`, in microseconds.
fn time(known: u32, value: &str) -> Result<Vec<Value>, Error> {
    let (quota, period) = match value.split_whitespace().collect::<Vec<_>>()[..] {
        [quota] => (quota, PERIOD),
        [quota, period] => (quota, parse("cpu.max", period)?),
        _ => return wrong(format!("unified resource \"cpu.max\" value invalid: {value:?}")),
    };
    let mut quota = match quota {
        "max" => 0,
        quota => parse("cpu.max", quota)?,
    };
    Ok(quota_of(known, &mut quota, period))
}

/// `memory.oom.group` can only be said when the scope is made.
pub(super) fn out_of_memory(resources: &Resources, known: u32) -> Result<Option<Value>, Error> {
    let value = resources.unified.as_ref().and_then(|files| files.get("memory.oom.group"));
    let Some(value) = value.filter(|_| known >= 253) else { return Ok(None) };
    let policy = match parse::<u64>("memory.oom.group", value.trim())? {
        0 => "continue",
        1 => "kill",
        _ => return Ok(None),
    };
    Ok(Some(Value::property("OOMPolicy", Value::text(policy))))
}

fn parse<N: std::str::FromStr>(file: &str, value: &str) -> Result<N, Error> {
    value.parse().map_err(|_cause| {
        Error::Value(format!("unified resource {file:?} value conversion error: {value:?}"))
    })
}

fn wrong<T>(text: String) -> Result<T, Error> {
    Err(Error::Value(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::systemd::properties::tests::named;

    fn of(files: &str) -> Result<Vec<(String, Value)>, String> {
        let resources: Resources =
            serde_json::from_str(&format!("{{\"unified\":{files}}}")).unwrap();
        properties(257, &resources).map(named).map_err(|error| error.to_string())
    }

    #[test]
    fn files_that_systemd_knows_are_properties() {
        for (files, expected) in [
            (
                r#"{"memory.max":"max","memory.min":"5"}"#,
                &[("MemoryMax", u64::MAX), ("MemoryMin", 5)][..],
            ),
            (r#"{"cpu.weight":" 50\n"}"#, &[("CPUWeight", 50)]),
            (r#"{"cpu.idle":"1","cpu.weight":"50"}"#, &[("CPUWeight", 0)]),
            (r#"{"cpu.idle":"0","cpu.weight":"50"}"#, &[("CPUWeight", 50)]),
            (r#"{"pids.max":"0"}"#, &[("TasksMax", 1)]),
            (
                r#"{"cpu.max":"50000 100000"}"#,
                &[("CPUQuotaPeriodUSec", 100_000), ("CPUQuotaPerSecUSec", 500_000)],
            ),
            (
                r#"{"cpu.max":"max"}"#,
                &[("CPUQuotaPeriodUSec", 100_000), ("CPUQuotaPerSecUSec", u64::MAX)],
            ),
            (r#"{"hugetlb.2MB.max":"0","misc.max":"x 1"}"#, &[]),
        ] {
            let expected: Vec<(String, Value)> = expected
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Value::Uint64(*value)))
                .collect();
            assert_eq!(of(files).unwrap(), expected, "{files}");
        }
    }

    #[test]
    fn what_no_property_can_hold_is_refused() {
        for files in [
            r#"{"memory.max":"-1"}"#,
            r#"{"cpu.max":"1 2 3"}"#,
            r#"{"cpu.max":"x"}"#,
            r#"{"cpuset.cpus":"x"}"#,
            r#"{"a/b":"1"}"#,
            r#"{"nodot":"1"}"#,
        ] {
            assert!(of(files).unwrap_err().starts_with("unified resource"), "{files}");
        }
    }

    #[test]
    fn the_group_that_dies_together_says_so_at_once() {
        let of = |value: &str, known| {
            let files = BTreeMap::from([("memory.oom.group".to_owned(), value.to_owned())]);
            let resources = Resources { unified: Some(files), ..Resources::default() };
            out_of_memory(&resources, known).unwrap()
        };
        let policy = |text| Some(Value::property("OOMPolicy", Value::text(text)));
        assert_eq!(of("1", 257), policy("kill"));
        assert_eq!(of("0", 257), policy("continue"));
        assert_eq!(of("2", 257), None);
        assert_eq!(of("1", 252), None);
    }
}
