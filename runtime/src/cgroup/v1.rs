//! cgroup v1: a directory in every hierarchy, limits by the files of each controller.
//!
//! Order and values as runc 1.5 (opencontainers/cgroups `fs/`). Source: Documentation/admin-guide/cgroup-v1/.

use rustix::io::Errno;

use super::devices::{Policy, Verdict};
use super::dir::{Dir, Made, Version};
use super::group::{Group, Level, Traces};
use super::layout::Mounted;
use super::limits::pids_max;
use super::path::CgroupPath;
use super::resources::{BlockIo, Cpu, HugepageLimit, Memory, Network, Resources, ThrottleDevice};
use super::{Cgroup, Error};

/// Makes the container's directory in every hierarchy. [`Made::Before`] if any of them was there.
pub(super) fn make(
    hierarchies: Vec<Mounted>,
    path: &CgroupPath,
    traces: &mut Traces,
) -> Result<(Cgroup, Made), Error> {
    let mut groups = Vec::with_capacity(hierarchies.len());
    let mut all = Made::Now;
    for Mounted { controllers, root } in hierarchies {
        let cpuset = controllers.iter().any(|name| name == "cpuset");
        // these hold no limits; the machine may keep them to itself
        let dispensable = controllers.is_empty() || controllers == ["name=systemd"];
        let version = if controllers.is_empty() { Version::V2 } else { Version::V1 };
        let mut prepare = |parent: &Dir, dir: &Dir, _level: Level| match cpuset {
            true => inherit_cpuset(parent, dir),
            false => Ok(()),
        };
        match Group::make(&root, (controllers, version), path, traces, &mut prepare) {
            Ok((group, made)) => {
                groups.push(group);
                if made == Made::Before {
                    all = Made::Before;
                }
            }
            Err(error) if dispensable && closed(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((Cgroup { groups, version: Version::V1, unit: None }, all))
}

fn closed(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::ROFS | Errno::ACCESS | Errno::PERM))
}

/// A new cpuset has neither cpus nor mems, and takes no task until it has both.
pub(super) fn inherit_cpuset(parent: &Dir, dir: &Dir) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if dir.read(file)?.trim().is_empty() {
            dir.write(file, parent.read(file)?.trim())?;
        }
    }
    Ok(())
}

/// Writes every limit of `resources` that is set.
pub(super) fn set_limits(cgroup: &Cgroup, resources: &Resources) -> Result<(), Error> {
    if resources.unified.as_ref().is_some_and(|unified| !unified.is_empty()) {
        return Err(Error::Value(
            "invalid configuration: cannot use unified on cgroup v1".to_owned(),
        ));
    }
    if let Some(cpu) = &resources.cpu {
        set_cpuset(cgroup, cpu)?;
    }
    if let Some(memory) = &resources.memory {
        set_memory(cgroup, memory)?;
    }
    if let Some(cpu) = &resources.cpu {
        set_cpu(cgroup, cpu)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        cgroup.v1("pids")?.write("pids.max", &pids_max(limit))?;
    }
    if let Some(block_io) = &resources.block_io {
        set_block_io(cgroup, block_io)?;
    }
    for limit in resources.hugepage_limits.iter().flatten() {
        set_hugepages(cgroup.v1("hugetlb")?, limit)?;
    }
    if let Some(network) = &resources.network {
        set_network(cgroup, network)?;
    }
    for (device, limits) in resources.rdma.iter().flatten() {
        cgroup.v1("rdma")?.write("rdma.max", &limits.line(device))?;
    }
    Ok(())
}

/// Brings the group's device rules to `wanted`; below a group that denies a device, to the same rules turned around.
pub(super) fn set_devices(cgroup: &Cgroup, wanted: &Policy) -> Result<(), Error> {
    match (write_devices(cgroup, wanted), wanted.as_allowing()) {
        (Err(refused), Some(turned)) if refused.errno() == Some(Errno::PERM) => {
            write_devices(cgroup, &turned)
        }
        (result, _) => result,
    }
}

/// Writes the rules, and reads back that it worked.
fn write_devices(cgroup: &Cgroup, wanted: &Policy) -> Result<(), Error> {
    let dir = cgroup.v1("devices")?;
    let current = Policy::parse_list(&dir.read("devices.list")?)?;
    for (file, rule) in current.transition(wanted) {
        dir.write(file, &rule)?;
    }
    let after = Policy::parse_list(&dir.read("devices.list")?)?;
    if after.default != wanted.default {
        return Err(Error::Value("resulting devices cgroup doesn't match target mode".to_owned()));
    }
    if wanted.default == Verdict::Deny && after != *wanted {
        return Err(Error::Value(
            "resulting devices cgroup doesn't precisely match target".to_owned(),
        ));
    }
    Ok(())
}

fn set_cpuset(cgroup: &Cgroup, cpu: &Cpu) -> Result<(), Error> {
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            cgroup.v1("cpuset")?.write(file, value)?;
        }
    }
    Ok(())
}

const MEMORY: &str = "memory.limit_in_bytes";
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";

fn set_memory(cgroup: &Cgroup, memory: &Memory) -> Result<(), Error> {
    let (limit, swap) = (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0));
    if limit != 0 || swap != 0 {
        set_memory_and_swap(cgroup.v1("memory")?, limit, swap)?;
    }
    if let Some(reservation) = memory.reservation.filter(|bytes| *bytes != 0) {
        cgroup.v1("memory")?.write("memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if memory.disable_oom_killer == Some(true) {
        cgroup.v1("memory")?.write("memory.oom_control", "1")?;
    }
    match memory.swappiness {
        None | Some(u64::MAX) => Ok(()),
        Some(value @ 0..=100) => {
            cgroup.v1("memory")?.write("memory.swappiness", &value.to_string())
        }
        Some(value) => Err(Error::Value(format!(
            "invalid memory swappiness value: {value} (valid range is 0-100)"
        ))),
    }
}

/// The kernel wants memory ≤ memory and swap after each of the two writes.
fn set_memory_and_swap(dir: &Dir, limit: i64, swap: i64) -> Result<(), Error> {
    // unlimited memory with a limit on both together would still be limited
    let swap = if limit == -1 && swap == 0 && dir.has(MEMORY_AND_SWAP) { -1 } else { swap };
    let swap_first = limit != 0
        && swap != 0
        && (swap == -1
            || u64::try_from(swap)
                .is_ok_and(|swap| dir.read_number(MEMORY).is_ok_and(|now| now < swap)));
    if swap_first {
        write_unless_zero(dir, MEMORY_AND_SWAP, swap)?;
        return write_memory(dir, limit);
    }
    write_memory(dir, limit)?;
    write_unless_zero(dir, MEMORY_AND_SWAP, swap)
}

fn write_memory(dir: &Dir, limit: i64) -> Result<(), Error> {
    match write_unless_zero(dir, MEMORY, limit) {
        Err(error) if error.errno() == Some(Errno::BUSY) => {
            let usage = dir.read_number("memory.usage_in_bytes")?;
            let peak = dir.read_number("memory.max_usage_in_bytes")?;
            Err(Error::Value(format!(
                "unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})"
            )))
        }
        other => other,
    }
}

fn write_unless_zero(dir: &Dir, file: &str, value: i64) -> Result<(), Error> {
    if value == 0 { Ok(()) } else { dir.write(file, &value.to_string()) }
}

fn set_cpu(cgroup: &Cgroup, cpu: &Cpu) -> Result<(), Error> {
    let limits_time = cpu.shares.is_some_and(|shares| shares != 0)
        || cpu.period.is_some_and(|period| period != 0)
        || cpu.quota.is_some_and(|quota| quota != 0)
        || cpu.realtime_period.is_some_and(|period| period != 0)
        || cpu.realtime_runtime.is_some_and(|runtime| runtime != 0)
        || cpu.burst.is_some()
        || cpu.idle.is_some();
    if !limits_time {
        return Ok(());
    }
    let dir = cgroup.v1("cpu")?;
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        dir.write("cpu.shares", &shares.to_string())?;
        // the kernel clamps in silence
        match dir.read_number("cpu.shares")? {
            max if shares > max => {
                return Err(Error::Value(format!("the maximum allowed cpu-shares is {max}")));
            }
            min if shares < min => {
                return Err(Error::Value(format!("the minimum allowed cpu-shares is {min}")));
            }
            _ => {}
        }
    }
    set_bandwidth(dir, cpu)?;
    if let Some(idle) = cpu.idle {
        dir.write("cpu.idle", &idle.to_string())?;
    }
    set_realtime(dir, cpu)
}

/// A period or burst that contradicts the quota still in force is tried again after the new quota.
fn set_bandwidth(dir: &Dir, cpu: &Cpu) -> Result<(), Error> {
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let mut again = Vec::new();
    if let Some(period) = cpu.period.filter(|period| *period != 0) {
        again.extend(write_or_postpone(dir, "cpu.cfs_period_us", period, quota)?);
    }
    if let Some(burst) = cpu.burst {
        match write_or_postpone(dir, "cpu.cfs_burst_us", burst, quota) {
            // kernels before 5.14 have no burst
            Err(error) if error.errno() == Some(Errno::NOENT) => {}
            other => again.extend(other?),
        }
    }
    if let Some(quota) = quota {
        dir.write("cpu.cfs_quota_us", &quota.to_string())?;
    }
    again.into_iter().try_for_each(|(file, value)| dir.write(file, &value.to_string()))
}

fn set_realtime(dir: &Dir, cpu: &Cpu) -> Result<(), Error> {
    let runtime = cpu.realtime_runtime.filter(|runtime| *runtime != 0);
    let mut again = None;
    if let Some(period) = cpu.realtime_period.filter(|period| *period != 0) {
        again = write_or_postpone(dir, "cpu.rt_period_us", period, runtime)?;
    }
    if let Some(runtime) = runtime {
        dir.write("cpu.rt_runtime_us", &runtime.to_string())?;
    }
    again.into_iter().try_for_each(|(file, value)| dir.write(file, &value.to_string()))
}

/// Returns the write for later if the kernel calls it invalid and `decides` is about to change.
fn write_or_postpone(
    dir: &Dir,
    file: &'static str,
    value: u64,
    decides: Option<i64>,
) -> Result<Option<(&'static str, u64)>, Error> {
    match dir.write(file, &value.to_string()) {
        Ok(()) => Ok(None),
        Err(error) if error.errno() == Some(Errno::INVAL) && decides.is_some() => {
            Ok(Some((file, value)))
        }
        Err(error) => Err(error),
    }
}

fn set_block_io(cgroup: &Cgroup, block_io: &BlockIo) -> Result<(), Error> {
    if *block_io == BlockIo::default() {
        return Ok(());
    }
    let dir = cgroup.v1("blkio")?;
    // CFQ's names where they are, BFQ's otherwise
    let (weight, weight_device) = match dir.has("blkio.weight") {
        true => ("blkio.weight", "blkio.weight_device"),
        false => ("blkio.bfq.weight", "blkio.bfq.weight_device"),
    };
    for (file, value) in [(weight, block_io.weight), ("blkio.leaf_weight", block_io.leaf_weight)] {
        if let Some(value) = value.filter(|value| *value != 0) {
            dir.write(file, &value.to_string())?;
        }
    }
    for device in block_io.weight_device.iter().flatten() {
        let at = format!("{}:{}", device.major, device.minor);
        for (file, value) in
            [(weight_device, device.weight), ("blkio.leaf_weight_device", device.leaf_weight)]
        {
            if let Some(value) = value.filter(|value| *value != 0) {
                dir.write(file, &format!("{at} {value}"))?;
            }
        }
    }
    set_throttle(
        dir,
        "blkio.throttle.read_bps_device",
        block_io.throttle_read_bps_device.as_ref(),
    )?;
    set_throttle(
        dir,
        "blkio.throttle.write_bps_device",
        block_io.throttle_write_bps_device.as_ref(),
    )?;
    set_throttle(
        dir,
        "blkio.throttle.read_iops_device",
        block_io.throttle_read_iops_device.as_ref(),
    )?;
    set_throttle(
        dir,
        "blkio.throttle.write_iops_device",
        block_io.throttle_write_iops_device.as_ref(),
    )
}

fn set_throttle(dir: &Dir, file: &str, devices: Option<&Vec<ThrottleDevice>>) -> Result<(), Error> {
    for device in devices.into_iter().flatten() {
        dir.write(file, &format!("{}:{} {}", device.major, device.minor, device.rate))?;
    }
    Ok(())
}

fn set_hugepages(dir: &Dir, limit: &HugepageLimit) -> Result<(), Error> {
    let prefix = format!("hugetlb.{}", limit.page_size);
    let value = limit.limit.to_string();
    dir.write(&format!("{prefix}.limit_in_bytes"), &value)?;
    match dir.write(&format!("{prefix}.rsvd.limit_in_bytes"), &value) {
        // reservations are counted since 5.7
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn set_network(cgroup: &Cgroup, network: &Network) -> Result<(), Error> {
    if let Some(class) = network.class_id.filter(|class| *class != 0) {
        cgroup.v1("net_cls")?.write("net_cls.classid", &class.to_string())?;
    }
    for interface in network.priorities.iter().flatten() {
        let line = format!("{} {}", interface.name, interface.priority);
        cgroup.v1("net_prio")?.write("net_prio.ifpriomap", &line)?;
    }
    Ok(())
}
