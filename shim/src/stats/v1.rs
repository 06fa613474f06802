//! The message for cgroup v1.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::protobuf::MessageField;

use super::{huge_page_sizes, rdma_devices};
use crate::cgroup::{keyed, number, text};

const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// The numbers of a container, by its directory in each controller's hierarchy.
pub(super) fn metrics(controllers: &BTreeMap<String, PathBuf>) -> v1::Metrics {
    let part = |name: &str| controllers.get(name).map(|path| path.as_path());
    v1::Metrics {
        hugetlb: part("hugetlb").map(huge_pages).unwrap_or_default(),
        pids: part("pids").map(pids).into(),
        cpu: cpu(part("cpuacct"), part("cpu")),
        memory: part("memory").map(memory).into(),
        memory_oom_control: part("memory").and_then(oom).into(),
        blkio: part("blkio").map(blkio).into(),
        rdma: part("rdma").map(rdma).into(),
        ..v1::Metrics::default()
    }
}

fn huge_pages(directory: &Path) -> Vec<v1::HugetlbStat> {
    let of_size = |pagesize: String| {
        let value =
            |name: &str| number(directory, &format!("hugetlb.{pagesize}.{name}")).unwrap_or(0);
        v1::HugetlbStat {
            usage: value("usage_in_bytes"),
            max: value("max_usage_in_bytes"),
            failcnt: value("failcnt"),
            pagesize,
            ..v1::HugetlbStat::default()
        }
    };
    huge_page_sizes(directory, ".usage_in_bytes").into_iter().map(of_size).collect()
}

fn rdma(directory: &Path) -> v1::RdmaStat {
    let entries = |file: &str| {
        let devices = rdma_devices(&text(directory, file).unwrap_or_default());
        let entry = |(device, hca_handles, hca_objects)| v1::RdmaEntry {
            device,
            hca_handles,
            hca_objects,
            ..v1::RdmaEntry::default()
        };
        devices.into_iter().map(entry).collect()
    };
    v1::RdmaStat {
        current: entries("rdma.current"),
        limit: entries("rdma.max"),
        ..v1::RdmaStat::default()
    }
}

fn pids(directory: &Path) -> v1::PidsStat {
    v1::PidsStat {
        current: number(directory, "pids.current").unwrap_or(0),
        limit: number(directory, "pids.max").unwrap_or(0),
        ..v1::PidsStat::default()
    }
}

fn cpu(cpuacct: Option<&Path>, cpu: Option<&Path>) -> MessageField<v1::CPUStat> {
    let usage = cpuacct.map(|directory| {
        let stat = text(directory, "cpuacct.stat").unwrap_or_default();
        let ticks = |key| keyed(&stat, key).unwrap_or(0).saturating_mul(NANOSECONDS_PER_TICK);
        let per_cpu = text(directory, "cpuacct.usage_percpu").unwrap_or_default();
        v1::CPUUsage {
            total: number(directory, "cpuacct.usage").unwrap_or(0),
            user: ticks("user"),
            kernel: ticks("system"),
            per_cpu: per_cpu.split_whitespace().filter_map(|count| count.parse().ok()).collect(),
            ..v1::CPUUsage::default()
        }
    });
    let throttling =
        cpu.and_then(|directory| text(directory, "cpu.stat")).map(|stat| v1::Throttle {
            periods: keyed(&stat, "nr_periods").unwrap_or(0),
            throttled_periods: keyed(&stat, "nr_throttled").unwrap_or(0),
            throttled_time: keyed(&stat, "throttled_time").unwrap_or(0),
            ..v1::Throttle::default()
        });
    MessageField::some(v1::CPUStat {
        usage: usage.into(),
        throttling: throttling.into(),
        ..v1::CPUStat::default()
    })
}

fn memory(directory: &Path) -> v1::MemoryStat {
    let mut memory = v1::MemoryStat::default();
    for line in text(directory, "memory.stat").unwrap_or_default().lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        if let (Some(field), Ok(value)) = (memory_field(&mut memory, key), value.parse()) {
            *field = value;
        }
    }
    let entry = |prefix: &str| {
        let file = |name: &str| format!("memory.{prefix}{name}");
        Some(v1::MemoryEntry {
            usage: number(directory, &file("usage_in_bytes"))?,
            limit: number(directory, &file("limit_in_bytes")).unwrap_or(0),
            max: number(directory, &file("max_usage_in_bytes")).unwrap_or(0),
            failcnt: number(directory, &file("failcnt")).unwrap_or(0),
            ..v1::MemoryEntry::default()
        })
    };
    memory.usage = entry("").into();
    memory.swap = entry("memsw.").into();
    memory.kernel = entry("kmem.").into();
    memory.kernel_tcp = entry("kmem.tcp.").into();
    memory
}

/// The message's field for a key of the kernel's `memory.stat`.
fn memory_field<'a>(memory: &'a mut v1::MemoryStat, key: &str) -> Option<&'a mut u64> {
    Some(match key {
        "cache" => &mut memory.cache,
        "rss" => &mut memory.rss,
        "rss_huge" => &mut memory.rss_huge,
        "mapped_file" => &mut memory.mapped_file,
        "dirty" => &mut memory.dirty,
        "writeback" => &mut memory.writeback,
        "pgpgin" => &mut memory.pg_pg_in,
        "pgpgout" => &mut memory.pg_pg_out,
        "pgfault" => &mut memory.pg_fault,
        "pgmajfault" => &mut memory.pg_maj_fault,
        "inactive_anon" => &mut memory.inactive_anon,
        "active_anon" => &mut memory.active_anon,
        "inactive_file" => &mut memory.inactive_file,
        "active_file" => &mut memory.active_file,
        "unevictable" => &mut memory.unevictable,
        "hierarchical_memory_limit" => &mut memory.hierarchical_memory_limit,
        "hierarchical_memsw_limit" => &mut memory.hierarchical_swap_limit,
        "total_cache" => &mut memory.total_cache,
        "total_rss" => &mut memory.total_rss,
        "total_rss_huge" => &mut memory.total_rss_huge,
        "total_mapped_file" => &mut memory.total_mapped_file,
        "total_dirty" => &mut memory.total_dirty,
        "total_writeback" => &mut memory.total_writeback,
        "total_pgpgin" => &mut memory.total_pg_pg_in,
        "total_pgpgout" => &mut memory.total_pg_pg_out,
        "total_pgfault" => &mut memory.total_pg_fault,
        "total_pgmajfault" => &mut memory.total_pg_maj_fault,
        "total_inactive_anon" => &mut memory.total_inactive_anon,
        "total_active_anon" => &mut memory.total_active_anon,
        "total_inactive_file" => &mut memory.total_inactive_file,
        "total_active_file" => &mut memory.total_active_file,
        "total_unevictable" => &mut memory.total_unevictable,
        _ => return None,
    })
}

fn oom(directory: &Path) -> Option<v1::MemoryOomControl> {
    let control = text(directory, "memory.oom_control")?;
    Some(v1::MemoryOomControl {
        oom_kill_disable: keyed(&control, "oom_kill_disable").unwrap_or(0),
        under_oom: keyed(&control, "under_oom").unwrap_or(0),
        oom_kill: keyed(&control, "oom_kill").unwrap_or(0),
        ..v1::MemoryOomControl::default()
    })
}

fn blkio(directory: &Path) -> v1::BlkIOStat {
    // CFQ's files where that scheduler is, the throttler's where not
    let entries = |names: [&str; 2]| {
        let mut texts = names.iter().filter_map(|name| text(directory, name));
        let found = texts.find(|text| text.lines().any(|line| line.contains(':')));
        blkio_entries(&found.unwrap_or_default())
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: entries([
            "blkio.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
        ]),
        io_serviced_recursive: entries([
            "blkio.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
        ]),
        ..v1::BlkIOStat::default()
    }
}

/// `MAJOR:MINOR OPERATION VALUE` lines; the `Total` line has no device and is left out.
fn blkio_entries(text: &str) -> Vec<v1::BlkIOEntry> {
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        Some(v1::BlkIOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: fields.next()?.to_owned(),
            value: fields.next()?.parse().ok()?,
            ..v1::BlkIOEntry::default()
        })
    };
    text.lines().filter_map(parse).collect()
}
