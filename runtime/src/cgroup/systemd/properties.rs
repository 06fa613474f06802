//! Limits as properties of a unit.
//!
//! Source: opencontainers/cgroups v0.1.0 `systemd/v1.go`, `v2.go`; systemd.resource-control(5).

use super::{cpus, unified};
use crate::cgroup::limits::{swap_alone, weight_of_shares};
use crate::cgroup::resources::{Cpu, Memory, Resources};
use crate::cgroup::{Error, Version};
use crate::dbus::Value;

/// systemd's "infinity", in bytes, tasks or microseconds.
const INFINITY: u64 = u64::MAX;
/// The kernel's default period, in microseconds.
pub(super) const PERIOD: u64 = 100_000;

/// The properties that hold `resources`, for systemd of this `known` version; and `resources` as files are to hold
/// them beside these.
///
/// # Errors
/// [`Error::Value`] for a value that makes no sense.
pub(super) fn of(
    version: Version,
    known: u32,
    resources: &Resources,
) -> Result<(Vec<Value>, Resources), Error> {
    let mut written = resources.clone();
    let mut properties = Vec::new();
    if let Some(memory) = &resources.memory {
        match version {
            Version::V1 => properties.extend(bytes("MemoryLimit", memory.limit)),
            Version::V2 => memory_v2(memory, &mut properties)?,
        }
    }
    if let Some(cpu) = &mut written.cpu {
        match version {
            Version::V1 => {
                let shares = cpu.shares.filter(|shares| *shares != 0);
                properties.extend(
                    shares.map(|shares| Value::property("CPUShares", Value::Uint64(shares))),
                );
            }
            Version::V2 => properties.extend(weight(cpu, known)),
        }
        let period = cpu.period.unwrap_or(0);
        if let Some(quota) = &mut cpu.quota {
            properties.extend(quota_of(known, quota, period));
        } else {
            properties.extend(quota_of(known, &mut 0, period));
        }
        let sets = [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)];
        for (name, set) in sets {
            let Some(set) = set.as_deref().filter(|set| !set.is_empty()) else { continue };
            properties.extend(cpus::property(known, name, set)?);
        }
    }
    if version == Version::V1 {
        let weight = resources.block_io.as_ref().and_then(|io| io.weight).filter(|w| *w != 0);
        let property = |weight| Value::property("BlockIOWeight", Value::Uint64(u64::from(weight)));
        properties.extend(weight.map(property));
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        properties.push(Value::property("TasksMax", Value::Uint64(tasks(limit))));
    }
    if version == Version::V2 {
        properties.extend(unified::properties(known, resources)?);
    }
    Ok((properties, written))
}

/// -1 is infinity, 0 not set.
fn bytes(name: &str, value: Option<i64>) -> Option<Value> {
    let value = value.filter(|value| *value != 0)?;
    Some(Value::property(name, Value::Uint64(u64::try_from(value).unwrap_or(INFINITY))))
}

fn memory_v2(memory: &Memory, properties: &mut Vec<Value>) -> Result<(), Error> {
    properties.extend(bytes("MemoryMax", memory.limit));
    properties.extend(bytes("MemoryLow", memory.reservation));
    let swap = swap_alone(memory.swap.unwrap_or(0), memory.limit.unwrap_or(0))?;
    // as runc: no swap at all is left to the file, since its 0 means "not set"
    properties.extend(bytes("MemorySwapMax", swap));
    Ok(())
}

/// An idle group has the weight 0; systemd takes no other weight beside it.
fn weight(cpu: &Cpu, known: u32) -> Option<Value> {
    let weight = match cpu.idle {
        Some(1) if known >= 252 => Some(0),
        _ => cpu.shares.map(weight_of_shares).filter(|weight| *weight != 0),
    };
    weight.map(|weight| Value::property("CPUWeight", Value::Uint64(weight)))
}

/// Time as systemd has it: microseconds of a second, in steps of 10 ms. The quota is raised to the same.
pub(super) fn quota_of(known: u32, quota: &mut i64, period: u64) -> Vec<Value> {
    let mut properties = Vec::new();
    if period != 0 && known >= 242 {
        properties.push(Value::property("CPUQuotaPeriodUSec", Value::Uint64(period)));
    }
    if *quota == 0 && period == 0 {
        return properties;
    }
    let mut per_second = INFINITY;
    if let Ok(asked @ 1..) = u64::try_from(*quota) {
        let period = if period == 0 { PERIOD } else { period };
        per_second = asked.saturating_mul(1_000_000) / period;
        if !per_second.is_multiple_of(10_000) {
            per_second = (per_second / 10_000 + 1) * 10_000;
            let raised = u128::from(per_second) * u128::from(period) / 1_000_000;
            *quota = i64::try_from(raised).unwrap_or(i64::MAX);
        }
    }
    properties.push(Value::property("CPUQuotaPerSecUSec", Value::Uint64(per_second)));
    properties
}

/// systemd takes no 0, and a container that may not fork acts the same with 1.
fn tasks(limit: i64) -> u64 {
    match limit {
        0 => 1,
        limit => u64::try_from(limit).unwrap_or(INFINITY),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn pairs(version: Version, json: &str) -> Vec<(String, Value)> {
        let resources = serde_json::from_str(json).unwrap();
        named(of(version, 257, &resources).unwrap().0)
    }

    pub(in crate::cgroup::systemd) fn named(properties: Vec<Value>) -> Vec<(String, Value)> {
        let pair = |property| match property {
            Value::Struct(fields) => match &fields[..] {
                [Value::Text(name), Value::Variant(value)] => (name.clone(), (**value).clone()),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        properties.into_iter().map(pair).collect()
    }

    /// What runc 1.5.2 sends for the same limits.
    #[test]
    fn limits_are_properties_by_their_v2_names() {
        for (json, expected) in [
            (r#"{"memory":{"limit":100}}"#, &[("MemoryMax", 100)][..]),
            (
                r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
                &[("MemoryMax", 100), ("MemoryLow", 50), ("MemorySwapMax", 200)],
            ),
            (r#"{"memory":{"limit":-1}}"#, &[("MemoryMax", INFINITY), ("MemorySwapMax", INFINITY)]),
            (r#"{"memory":{"limit":100,"swap":100}}"#, &[("MemoryMax", 100)]),
            (r#"{"cpu":{"shares":1024}}"#, &[("CPUWeight", 100)]),
            (r#"{"cpu":{"shares":1024,"idle":1}}"#, &[("CPUWeight", 0)]),
            (r#"{"cpu":{"quota":50000}}"#, &[("CPUQuotaPerSecUSec", 500_000)]),
            (
                r#"{"cpu":{"quota":-1,"period":50000}}"#,
                &[("CPUQuotaPeriodUSec", 50_000), ("CPUQuotaPerSecUSec", INFINITY)],
            ),
            (r#"{"pids":{"limit":0}}"#, &[("TasksMax", 1)]),
            (r#"{"pids":{"limit":-1}}"#, &[("TasksMax", INFINITY)]),
            (r#"{"pids":{"limit":7}}"#, &[("TasksMax", 7)]),
        ] {
            let expected: Vec<(String, Value)> = expected
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Value::Uint64(*value)))
                .collect();
            assert_eq!(pairs(Version::V2, json), expected, "{json}");
        }
        let sets = pairs(Version::V2, r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#);
        assert_eq!(sets[0], ("AllowedCPUs".to_owned(), Value::bytes(&[3])));
        assert_eq!(sets[1], ("AllowedMemoryNodes".to_owned(), Value::bytes(&[1])));
    }

    #[test]
    fn v1_has_names_of_its_own() {
        let json =
            r#"{"memory":{"limit":100,"swap":300},"cpu":{"shares":2},"blockIO":{"weight":10}}"#;
        let expected = [("MemoryLimit", 100), ("CPUShares", 2), ("BlockIOWeight", 10)];
        let expected = expected.map(|(name, value)| (name.to_owned(), Value::Uint64(value)));
        assert_eq!(pairs(Version::V1, json), expected);
    }

    /// runc's own example: 4 ms of 10 ms is 400 ms of a second, 4001 us is raised to 410.
    #[test]
    fn time_is_raised_to_hundredths_of_a_processor() {
        for (quota, period, per_second, raised) in
            [(4000, 10_000, 400_000, 4000), (4001, 10_000, 410_000, 4100), (1, 0, 10_000, 1000)]
        {
            let json = format!(r#"{{"cpu":{{"quota":{quota},"period":{period}}}}}"#);
            let resources = serde_json::from_str(&json).unwrap();
            let (properties, written) = of(Version::V2, 257, &resources).unwrap();
            let last = named(properties).pop().unwrap();
            assert_eq!(last, ("CPUQuotaPerSecUSec".to_owned(), Value::Uint64(per_second)));
            assert_eq!(written.cpu.unwrap().quota, Some(raised));
        }
    }

    #[test]
    fn an_old_systemd_is_not_asked_for_what_it_does_not_know() {
        let json = r#"{"cpu":{"quota":50000,"period":100000,"cpus":"0","idle":1}}"#;
        let (properties, _) = of(Version::V2, 239, &serde_json::from_str(json).unwrap()).unwrap();
        let names: Vec<String> = named(properties).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["CPUQuotaPerSecUSec"]);
    }
}
