//! cgroup v2: one directory, controllers switched on along the way, limits by its files.
//!
//! Values as runc 1.5 (opencontainers/cgroups `fs2/`). Source: Documentation/admin-guide/cgroup-v2.rst.

use std::os::fd::AsFd as _;

use hallmark_sys::bpf::{DeviceProgram, attached_device_programs};
use rustix::io::Errno;

use super::devices::Policy;
use super::dir::{Dir, Made, Version};
use super::filter;
use super::group::{Group, Level, Traces};
use super::limits::{io_weight_of_blkio, or_max, pids_max, swap_alone, weight_of_shares};
use super::path::CgroupPath;
use super::resources::{BlockIo, Cpu, HugepageLimit, Memory, Resources, ThrottleDevice};
use super::{Cgroup, Error};

const PROGRAM_NAME: &str = "hallmark_dev";

/// Makes the container's directory, with every controller of the root switched on above it.
pub(super) fn make(
    root: &Dir,
    path: &CgroupPath,
    resources: &Resources,
    traces: &mut Traces,
) -> Result<(Cgroup, Made), Error> {
    let available = root.read("cgroup.controllers")?;
    let wanted: Vec<&str> = available.split_whitespace().collect();
    enable(root, &wanted)?;
    let needs = needs_of(resources);
    let mut prepare = |_parent: &Dir, dir: &Dir, level| {
        settle_type(dir, needs)?;
        match level {
            Level::Above => enable(dir, &wanted),
            Level::Own => Ok(()),
        }
    };
    let (group, made) = Group::make(root, (Vec::new(), Version::V2), path, traces, &mut prepare)?;
    Ok((Cgroup { groups: vec![group], version: Version::V2, unit: None }, made))
}

/// Switches `controllers` on for the children of `dir`. One that cannot be had is noticed when its limit is set.
fn enable(dir: &Dir, controllers: &[&str]) -> Result<(), Error> {
    let on = dir.read("cgroup.subtree_control")?;
    let missing: Vec<String> = controllers
        .iter()
        .filter(|name| !on.split_whitespace().any(|other| other == **name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() || dir.write("cgroup.subtree_control", &missing.join(" ")).is_ok() {
        return Ok(());
    }
    for one in missing {
        drop(dir.write("cgroup.subtree_control", &one));
    }
    Ok(())
}

/// What a control group must be for the limits asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Domain,
    Anything,
}

/// Memory, io and hugetlb do not work on threads; cpu is counted among them as runc does.
fn needs_of(resources: &Resources) -> Needs {
    let domain = resources.memory.as_ref().is_some_and(|memory| {
        [memory.limit, memory.reservation, memory.swap].iter().flatten().any(|value| *value != 0)
    }) || resources
        .block_io
        .as_ref()
        .is_some_and(|block_io| *block_io != BlockIo::default())
        || resources.cpu.as_ref().is_some_and(limits_time)
        || resources.hugepage_limits.as_ref().is_some_and(|limits| !limits.is_empty());
    if domain { Needs::Domain } else { Needs::Anything }
}

/// A control group below one that holds processes is "domain invalid" and takes no process until it is threaded.
fn settle_type(dir: &Dir, needs: Needs) -> Result<(), Error> {
    let state = dir.read("cgroup.type")?;
    match (state.trim(), needs) {
        ("domain invalid", Needs::Anything) => {
            // as runc: without domain controllers a threaded group is better than none
            drop(dir.write("cgroup.type", "threaded"));
            Ok(())
        }
        ("domain invalid", Needs::Domain) => Err(Error::Threaded {
            path: dir.path().to_owned(),
            state: "an invalid state".to_owned(),
        }),
        (state @ ("domain threaded" | "threaded"), Needs::Domain) => {
            Err(Error::Threaded { path: dir.path().to_owned(), state: format!("{state} mode") })
        }
        _ => Ok(()),
    }
}

/// Writes every limit of `resources` that is set.
pub(super) fn set_limits(dir: &Dir, resources: &Resources) -> Result<(), Error> {
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        write(dir, "pids", "pids.max", &pids_max(limit))?;
    }
    if let Some(memory) = &resources.memory {
        refuse_below_usage(dir, resources)?;
        set_memory(dir, memory)?;
    }
    if let Some(block_io) = &resources.block_io {
        set_block_io(dir, block_io)?;
    }
    if let Some(cpu) = &resources.cpu {
        set_cpu(dir, cpu)?;
        for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                write(dir, "cpuset", file, value)?;
            }
        }
    }
    for limit in resources.hugepage_limits.iter().flatten() {
        set_hugepages(dir, limit)?;
    }
    for (device, limits) in resources.rdma.iter().flatten() {
        write(dir, "rdma", "rdma.max", &limits.line(device))?;
    }
    for (file, value) in resources.unified.iter().flatten() {
        set_unified(dir, file, value)?;
    }
    Ok(())
}

/// Loads `policy` as a program and leaves it as the only one on the group.
pub(super) fn set_devices(dir: &Dir, policy: &Policy) -> Result<(), Error> {
    let fail = |call| move |source| Error::Bpf { call, path: dir.path().to_owned(), source };
    let before = attached_device_programs(dir.as_fd()).map_err(fail("list device programs"))?;
    let program = DeviceProgram::load(PROGRAM_NAME, &filter::assemble(policy))
        .map_err(fail("load device program"))?;
    program.attach(dir.as_fd()).map_err(fail("attach device program"))?;
    for old in before {
        old.detach(dir.as_fd()).map_err(fail("detach an older device program"))?;
    }
    Ok(())
}

fn set_memory(dir: &Dir, memory: &Memory) -> Result<(), Error> {
    let (limit, swap) = (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0));
    if let Some(alone) = swap_alone(swap, limit)? {
        match dir.write("memory.swap.max", &or_max(alone)) {
            // without swap there is nothing to forbid or to free
            Err(error) if error.errno() == Some(Errno::NOENT) && alone <= 0 => {}
            other => with_controller("memory", other)?,
        }
    }
    if limit != 0 {
        write(dir, "memory", "memory.max", &or_max(limit))?;
    }
    match memory.reservation {
        None | Some(0) => Ok(()),
        Some(reservation) => write(dir, "memory", "memory.low", &or_max(reservation)),
    }
}

/// v2 kills where v1 refused: the check stands in for v1's EBUSY.
pub(super) fn refuse_below_usage(dir: &Dir, resources: &Resources) -> Result<(), Error> {
    let asked = resources.memory.as_ref().filter(|m| m.check_before_update == Some(true));
    let Some(memory) = asked else { return Ok(()) };
    let (limit, swap) = (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0));
    let Ok(usage) = dir.read_number("memory.current") else { return Ok(()) };
    for (what, value) in [("memory+swap", swap), ("memory", limit)] {
        if value > 0 && u64::try_from(value).is_ok_and(|value| value <= usage) {
            return Err(Error::Value(format!("rejecting {what} limit {value} <= usage {usage}")));
        }
    }
    Ok(())
}

fn limits_time(cpu: &Cpu) -> bool {
    cpu.shares.is_some_and(|shares| shares != 0)
        || cpu.quota.is_some_and(|quota| quota != 0)
        || cpu.period.is_some_and(|period| period != 0)
        || cpu.idle.is_some()
        || cpu.burst.is_some()
}

fn set_cpu(dir: &Dir, cpu: &Cpu) -> Result<(), Error> {
    if let Some(idle) = cpu.idle {
        write(dir, "cpu", "cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        write(dir, "cpu", "cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let period = cpu.period.filter(|period| *period != 0);
    let mut again = None;
    if let Some(burst) = cpu.burst {
        match dir.write("cpu.max.burst", &burst.to_string()) {
            // it may fit the quota that is set next
            Err(error) if error.errno() == Some(Errno::INVAL) && quota.is_some() => {
                again = Some(burst);
            }
            other => with_controller("cpu", other)?,
        }
    }
    if quota.is_some() || period.is_some() {
        let quota = quota.filter(|quota| *quota > 0);
        let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        // the kernel's default period
        let period = period.unwrap_or(100_000);
        write(dir, "cpu", "cpu.max", &format!("{quota} {period}"))?;
    }
    match again {
        Some(burst) => write(dir, "cpu", "cpu.max.burst", &burst.to_string()),
        None => Ok(()),
    }
}

fn set_block_io(dir: &Dir, block_io: &BlockIo) -> Result<(), Error> {
    let bfq = dir.has("io.bfq.weight");
    if let Some(weight) = block_io.weight.filter(|weight| *weight != 0) {
        match bfq {
            true => write(dir, "io", "io.bfq.weight", &weight.to_string())?,
            false => write(dir, "io", "io.weight", &io_weight_of_blkio(weight).to_string())?,
        }
    }
    // before 5.4 the file holds one number and takes no device; without BFQ there are no such weights
    let per_device = bfq && dir.read("io.bfq.weight")?.trim().parse::<u64>().is_err();
    for device in block_io.weight_device.iter().flatten().filter(|_| per_device) {
        if let Some(weight) = device.weight {
            let line = format!("{}:{} {weight}\n", device.major, device.minor);
            write(dir, "io", "io.bfq.weight", &line)?;
        }
    }
    set_throttle(dir, "rbps", block_io.throttle_read_bps_device.as_ref())?;
    set_throttle(dir, "wbps", block_io.throttle_write_bps_device.as_ref())?;
    set_throttle(dir, "riops", block_io.throttle_read_iops_device.as_ref())?;
    set_throttle(dir, "wiops", block_io.throttle_write_iops_device.as_ref())
}

fn set_throttle(dir: &Dir, key: &str, devices: Option<&Vec<ThrottleDevice>>) -> Result<(), Error> {
    for device in devices.into_iter().flatten() {
        let rate = match device.rate {
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        write(dir, "io", "io.max", &format!("{}:{} {key}={rate}", device.major, device.minor))?;
    }
    Ok(())
}

fn set_hugepages(dir: &Dir, limit: &HugepageLimit) -> Result<(), Error> {
    let prefix = format!("hugetlb.{}", limit.page_size);
    let value = limit.limit.to_string();
    write(dir, "hugetlb", &format!("{prefix}.max"), &value)?;
    match dir.write(&format!("{prefix}.rsvd.max"), &value) {
        // reservations are counted since 5.7
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// `linux.resources.unified`: a file of the group, its value written a line at a time.
fn set_unified(dir: &Dir, file: &str, value: &str) -> Result<(), Error> {
    if file.contains('/') {
        return Err(Error::Value(format!(
            "unified resource {file:?} must be a file name (no slashes)"
        )));
    }
    for line in value.split_inclusive('\n') {
        match dir.write(file, line) {
            Err(error)
                if matches!(error.errno(), Some(Errno::NOENT | Errno::PERM | Errno::ACCESS)) =>
            {
                return Err(unified_refusal(dir, file, error));
            }
            other => other?,
        }
    }
    Ok(())
}

fn unified_refusal(dir: &Dir, file: &str, error: Error) -> Error {
    let Some((controller, _)) = file.split_once('.') else {
        return Error::Value(format!(
            "unified resource {file:?} must be in the form CONTROLLER.PARAMETER"
        ));
    };
    let here = dir.read("cgroup.controllers").unwrap_or_default();
    if controller != "cgroup" && !here.split_whitespace().any(|name| name == controller) {
        return Error::Value(format!(
            "unified resource {file:?} can't be set: controller {controller:?} not available"
        ));
    }
    error
}

fn write(dir: &Dir, controller: &'static str, file: &str, value: &str) -> Result<(), Error> {
    with_controller(controller, dir.write(file, value))
}

/// A file that is not there means that its controller is not switched on.
fn with_controller(controller: &'static str, written: Result<(), Error>) -> Result<(), Error> {
    written.map_err(|error| match error.errno() {
        Some(Errno::NOENT) => Error::NoController { controller, source: Some(Box::new(error)) },
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 17] = [
        "pids.max",
        "memory.max",
        "memory.low",
        "memory.swap.max",
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "cpu.idle",
        "cpuset.cpus",
        "cpuset.mems",
        "io.weight",
        "io.max",
        "hugetlb.2MB.max",
        "hugetlb.2MB.rsvd.max",
        "rdma.max",
        "memory.high",
        "cgroup.max.depth",
    ];

    /// A folder with the files of a control group, all empty.
    fn group() -> (tempfile::TempDir, Dir) {
        let folder = tempfile::tempdir().unwrap();
        for file in FILES {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        std::fs::write(folder.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let dir = Dir::pretend(folder.path());
        (folder, dir)
    }

    fn set(dir: &Dir, json: &str) -> Result<(), Error> {
        set_limits(dir, &serde_json::from_str(json).unwrap())
    }

    /// The values that runc 1.5.2 writes for the same limits.
    #[test]
    fn limits_are_written_as_v2_wants_them() {
        for (json, expected) in [
            (r#"{"pids":{"limit":0}}"#, &[("pids.max", "1")][..]),
            (r#"{"memory":{"limit":-1}}"#, &[("memory.max", "max"), ("memory.swap.max", "max")]),
            (
                r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
                &[("memory.max", "100"), ("memory.swap.max", "200"), ("memory.low", "50")],
            ),
            (
                r#"{"memory":{"limit":100,"swap":100}}"#,
                &[("memory.max", "100"), ("memory.swap.max", "0")],
            ),
            (
                r#"{"memory":{"limit":100,"swap":-1}}"#,
                &[("memory.max", "100"), ("memory.swap.max", "max")],
            ),
            (r#"{"memory":{"limit":100}}"#, &[("memory.max", "100")]),
            (r#"{"cpu":{"shares":1024}}"#, &[("cpu.weight", "100")]),
            (r#"{"cpu":{"quota":5000}}"#, &[("cpu.max", "5000 100000")]),
            (r#"{"cpu":{"quota":-1,"period":50000}}"#, &[("cpu.max", "max 50000")]),
            (r#"{"cpu":{"period":50000}}"#, &[("cpu.max", "max 50000")]),
            (
                r#"{"cpu":{"idle":1,"shares":0,"burst":7,"cpus":"0-1","mems":"0"}}"#,
                &[
                    ("cpu.idle", "1"),
                    ("cpu.max.burst", "7"),
                    ("cpuset.cpus", "0-1"),
                    ("cpuset.mems", "0"),
                ],
            ),
            (r#"{"blockIO":{"weight":500}}"#, &[("io.weight", "4950")]),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":0}]}}"#,
                &[("io.max", "8:0 rbps=max")],
            ),
            (
                r#"{"blockIO":{"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":9}]}}"#,
                &[("io.max", "8:16 wiops=9")],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                &[("hugetlb.2MB.max", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")],
            ),
            (r#"{"rdma":{"mlx5_1":{"hcaHandles":2}}}"#, &[("rdma.max", "mlx5_1 hca_handle=2")]),
            (
                r#"{"unified":{"memory.high":"max","cgroup.max.depth":"3"}}"#,
                &[("memory.high", "max"), ("cgroup.max.depth", "3")],
            ),
        ] {
            let (folder, dir) = group();
            set(&dir, json).unwrap();
            for file in FILES {
                let written = std::fs::read_to_string(folder.path().join(file)).unwrap();
                let wanted = expected.iter().find(|(name, _)| *name == file);
                assert_eq!(written, wanted.map_or("", |(_, value)| value), "{file} of {json}");
            }
        }
    }

    #[test]
    fn what_cannot_be_set_is_an_error_in_runcs_words() {
        for (missing, json, text) in [
            (
                "pids.max",
                r#"{"pids":{"limit":1}}"#,
                "cannot set pids limit: container could not join or create cgroup",
            ),
            (
                "cpu.weight",
                r#"{"cpu":{"shares":2}}"#,
                "cannot set cpu limit: container could not join or create cgroup",
            ),
            ("io.max", r#"{"memory":{"swap":5}}"#, "unable to set swap limit without memory limit"),
            (
                "memory.swap.max",
                r#"{"memory":{"limit":5,"swap":9}}"#,
                "cannot set memory limit: container could not join or create cgroup",
            ),
            (
                "io.max",
                r#"{"unified":{"a/b":"1"}}"#,
                "unified resource \"a/b\" must be a file name (no slashes)",
            ),
            (
                "io.max",
                r#"{"unified":{"nodot":"1"}}"#,
                "unified resource \"nodot\" must be in the form CONTROLLER.PARAMETER",
            ),
            (
                "io.max",
                r#"{"unified":{"misc.max":"1"}}"#,
                "unified resource \"misc.max\" can't be set: controller \"misc\" not available",
            ),
        ] {
            let (folder, dir) = group();
            std::fs::remove_file(folder.path().join(missing)).unwrap();
            assert_eq!(set(&dir, json).unwrap_err().to_string(), text);
        }
        let (folder, dir) = group();
        std::fs::remove_file(folder.path().join("memory.swap.max")).unwrap();
        set(&dir, r#"{"memory":{"limit":5,"swap":5}}"#).unwrap();
    }

    #[test]
    fn a_limit_below_the_usage_is_refused_when_asked_for() {
        let (folder, dir) = group();
        std::fs::write(folder.path().join("memory.current"), "100\n").unwrap();
        for (json, text) in [
            (
                r#"{"memory":{"limit":100,"checkBeforeUpdate":true}}"#,
                "rejecting memory limit 100 <= usage 100",
            ),
            (
                r#"{"memory":{"limit":50,"swap":60,"checkBeforeUpdate":true}}"#,
                "rejecting memory+swap limit 60 <= usage 100",
            ),
        ] {
            assert_eq!(set(&dir, json).unwrap_err().to_string(), text);
        }
        set(&dir, r#"{"memory":{"limit":101,"checkBeforeUpdate":true}}"#).unwrap();
        set(&dir, r#"{"memory":{"limit":1,"checkBeforeUpdate":false}}"#).unwrap();
    }

    #[test]
    fn files_of_other_folders_are_out_of_reach() {
        let (folder, dir) = group();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link")).unwrap();
        for file in ["../x", "/etc/hostname", "link"] {
            assert!(dir.write(file, "1").is_err(), "{file}");
        }
    }

    #[test]
    fn a_group_below_processes_takes_no_domain_limits() {
        for (state, needs, error) in [
            ("domain", Needs::Domain, None),
            ("domain invalid", Needs::Domain, Some("an invalid state")),
            ("threaded", Needs::Domain, Some("threaded mode")),
            ("domain invalid", Needs::Anything, None),
            ("threaded", Needs::Anything, None),
        ] {
            let (folder, dir) = group();
            std::fs::write(folder.path().join("cgroup.type"), format!("{state}\n")).unwrap();
            let found = settle_type(&dir, needs).map_err(|error| error.to_string());
            assert_eq!(found.is_err(), error.is_some(), "{state} {needs:?}");
            assert!(error.is_none_or(|text| found.unwrap_err().ends_with(text)));
        }
    }
}
