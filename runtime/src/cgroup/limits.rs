//! What values mean: conversions from v1's numbers to v2's, and what an update changes.

use super::Error;
use super::resources::{BlockIo, Cpu, Memory, Resources, ThrottleDevice, WeightDevice};

/// v1 shares (2 to 262144, default 1024) as v2 weight (1 to 10000, default 100); 0 stays "unset".
///
/// The quadratic curve through minimum, default and maximum that runc 1.3.2 and crun 1.23 brought, which Kubernetes
/// checks by its numbers.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1 | 2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            let weight = 10_f64.powf(exponent).ceil();
            // within 1..=10000 by the arms above
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a whole number between 1 and 10000"
            )]
            let weight = weight as u64;
            weight
        }
    }
}

/// v1 block weight (10 to 1000) as v2 `io.weight` (1 to 10000), linearly.
pub(super) fn io_weight_of_blkio(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

/// The spec counts memory and swap together, v2 swap alone. `None`: leave it.
pub(super) fn swap_alone(swap: i64, memory: i64) -> Result<Option<i64>, Error> {
    let wrong = |text: &str| Err(Error::Value(text.to_owned()));
    match (swap, memory) {
        (0, -1) | (-1, _) => Ok(Some(-1)),
        (0, _) => Ok(None),
        (swap, -1) => Ok(Some(swap)),
        (_, 0) => wrong("unable to set swap limit without memory limit"),
        (_, memory) if memory < 0 => Err(Error::Value(format!("invalid memory value: {memory}"))),
        (swap, memory) if swap < memory => wrong("memory+swap limit should be >= memory limit"),
        (swap, memory) => Ok(Some(swap - memory)),
    }
}

/// `pids.limit` as both kernels write it.
pub(super) fn pids_max(limit: i64) -> String {
    match limit {
        // systemd's TasksMax takes no 0, and a container that may not fork acts the same with 1
        0 => "1".to_owned(),
        1.. => limit.to_string(),
        i64::MIN..0 => "max".to_owned(),
    }
}

/// -1 is written as `max` on v2.
pub(super) fn or_max(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

impl Resources {
    /// These limits with an update laid over them: what `update` applies, and what the state keeps.
    ///
    /// As runc: an absent value stays as it was, but absent cpus, mems, burst, idle, `pids.limit` and `unified` are not
    /// written again, and devices stay out of it.
    #[must_use]
    pub fn updated_by(&self, update: &Self) -> Self {
        let mut next = self.clone();
        let mut change = update.clone();
        if let Some(memory) = &mut change.memory
            && memory.limit == Some(-1)
            && memory.swap.is_none()
        {
            // no limit on memory takes the one on swap with it
            memory.swap = Some(0);
        }
        if let Some(cpu) = &mut change.cpu
            && cpu.idle.is_some()
            && cpu.shares.is_none()
        {
            // an idle group takes no weight
            cpu.shares = Some(0);
        }
        merge_memory(next.memory.get_or_insert_default(), change.memory.unwrap_or_default());
        merge_cpu(next.cpu.get_or_insert_default(), change.cpu.unwrap_or_default());
        merge_block_io(next.block_io.get_or_insert_default(), change.block_io.unwrap_or_default());
        next.pids = change.pids;
        next.unified = change.unified;
        next
    }
}

fn merge_memory(had: &mut Memory, new: Memory) {
    replace(&mut had.limit, new.limit);
    replace(&mut had.reservation, new.reservation);
    replace(&mut had.swap, new.swap);
    replace(&mut had.check_before_update, new.check_before_update);
}

fn merge_cpu(had: &mut Cpu, new: Cpu) {
    let set = |value: Option<i64>| value.is_some_and(|value| value != 0);
    let period = new.period.is_some_and(|period| period != 0);
    if period == set(new.quota) {
        // both or neither
        had.period = new.period;
        had.quota = new.quota;
    } else if period {
        had.period = new.period;
    } else {
        had.quota = new.quota;
    }
    replace(&mut had.shares, new.shares);
    replace(&mut had.realtime_period, new.realtime_period);
    replace(&mut had.realtime_runtime, new.realtime_runtime);
    had.burst = new.burst;
    had.cpus = new.cpus;
    had.mems = new.mems;
    had.idle = new.idle;
}

fn merge_block_io(had: &mut BlockIo, new: BlockIo) {
    replace(&mut had.weight, new.weight);
    replace(&mut had.leaf_weight, new.leaf_weight);
    for device in new.weight_device.into_iter().flatten() {
        let list = had.weight_device.get_or_insert_default();
        match list
            .iter_mut()
            .rev()
            .find(|had| (had.major, had.minor) == (device.major, device.minor))
        {
            Some(had) => merge_weight(had, &device),
            None => list.push(device),
        }
    }
    merge_throttles(&mut had.throttle_read_bps_device, new.throttle_read_bps_device);
    merge_throttles(&mut had.throttle_write_bps_device, new.throttle_write_bps_device);
    merge_throttles(&mut had.throttle_read_iops_device, new.throttle_read_iops_device);
    merge_throttles(&mut had.throttle_write_iops_device, new.throttle_write_iops_device);
}

fn merge_weight(had: &mut WeightDevice, new: &WeightDevice) {
    replace(&mut had.weight, new.weight);
    replace(&mut had.leaf_weight, new.leaf_weight);
}

fn merge_throttles(had: &mut Option<Vec<ThrottleDevice>>, new: Option<Vec<ThrottleDevice>>) {
    for device in new.into_iter().flatten() {
        let list = had.get_or_insert_default();
        match list
            .iter_mut()
            .rev()
            .find(|had| (had.major, had.minor) == (device.major, device.minor))
        {
            Some(had) => had.rate = device.rate,
            None => list.push(device),
        }
    }
}

fn replace<T>(had: &mut Option<T>, new: Option<T>) {
    if new.is_some() {
        *had = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pairs of opencontainers/cgroups `TestConvertCPUSharesToCgroupV2Value`, and Kubernetes' 100.
    #[test]
    fn shares_have_runcs_weights() {
        for (shares, weight) in [
            (0, 0),
            (1, 1),
            (2, 1),
            (3, 2),
            (100, 17),
            (1024, 100),
            (262_143, 10_000),
            (262_144, 10_000),
            (262_145, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        for shares in 3..262_144 {
            assert!((1..=10_000).contains(&weight_of_shares(shares)), "{shares}");
        }
    }

    #[test]
    fn block_weights_reach_both_ends() {
        assert_eq!([10, 100, 500, 1000].map(io_weight_of_blkio), [1, 910, 4950, 10_000]);
    }

    /// The cases of opencontainers/cgroups `TestConvertMemorySwapToCgroupV2Value`.
    #[test]
    fn swap_is_counted_alone() {
        for (memory, swap, expected) in [
            (0, 0, Ok(None)),
            (-1, 0, Ok(Some(-1))),
            (-1, -1, Ok(Some(-1))),
            (1000, -1, Ok(Some(-1))),
            (1000, 1000, Ok(Some(0))),
            (1000, 2000, Ok(Some(1000))),
            (-1, 1000, Ok(Some(1000))),
            (0, 1000, Err("unable to set swap limit without memory limit")),
            (2000, 1000, Err("memory+swap limit should be >= memory limit")),
            (-2000, 1000, Err("invalid memory value: -2000")),
        ] {
            let found = swap_alone(swap, memory).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "memory {memory}, swap {swap}");
        }
    }

    fn parse(json: &str) -> Resources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let had = parse(
            r#"{"memory":{"limit":1000,"swap":2000,"swappiness":10},"cpu":{"shares":100,"quota":5,"period":9,"cpus":"0"},
                "pids":{"limit":20},"hugepageLimits":[{"pageSize":"2MB","limit":1}],"unified":{"a.b":"1"}}"#,
        );
        let next = had.updated_by(&parse(
            r#"{"memory":{"limit":1500},"cpu":{"quota":7},"blockIO":{"weight":20}}"#,
        ));
        assert_eq!(
            next,
            parse(
                r#"{"memory":{"limit":1500,"swap":2000,"swappiness":10},"cpu":{"shares":100,"quota":7,"period":9},
                    "blockIO":{"weight":20},"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#
            )
        );
    }

    #[test]
    fn an_update_without_memory_limit_frees_swap_and_an_idle_one_its_weight() {
        let had = parse(r#"{"memory":{"limit":1000,"swap":2000},"cpu":{"shares":100}}"#);
        let next = had.updated_by(&parse(r#"{"memory":{"limit":-1},"cpu":{"idle":1}}"#));
        assert_eq!(next.memory.unwrap().swap, Some(0));
        assert_eq!(next.cpu.unwrap().shares, Some(0));
    }

    #[test]
    fn an_update_replaces_the_throttle_of_a_known_device() {
        let had =
            parse(r#"{"blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":5}]}}"#);
        let update = r#"{"blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":6},{"major":8,"minor":16,"rate":7}]}}"#;
        let block_io = had.updated_by(&parse(update)).block_io.unwrap();
        let rates: Vec<u64> =
            block_io.throttle_read_iops_device.unwrap().iter().map(|d| d.rate).collect();
        assert_eq!(rates, [6, 7]);
    }

    /// A limit of 0 is not an absent limit (runtime-spec 1.3), nulls are absent, unknown keys are ignored.
    #[test]
    fn json_is_read_as_the_spec_says() {
        assert_eq!(
            parse(r#"{"pids":{"limit":0},"memory":null,"x":1}"#).pids.unwrap().limit,
            Some(0)
        );
        assert_eq!(parse(r#"{"pids":{}}"#).pids.unwrap().limit, None);
        assert_eq!([0, 5, -1].map(pids_max), ["1", "5", "max"]);
        assert_eq!([-1, 7].map(or_max), ["max", "7"]);
    }
}
