//! The message for cgroup v2.

use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics as v2;

use super::{huge_page_sizes, rdma_devices};
use crate::cgroup::{keyed, number, text};

/// The numbers of a container, by its directory.
pub(super) fn metrics(directory: &Path) -> v2::Metrics {
    v2::Metrics {
        pids: pids(directory).into(),
        cpu: cpu(directory).into(),
        memory: memory(directory).into(),
        memory_events: text(directory, "memory.events").map(|text| events(&text)).into(),
        io: io(directory).into(),
        hugetlb: huge_pages(directory),
        rdma: rdma(directory).into(),
        ..v2::Metrics::default()
    }
}

fn huge_pages(directory: &Path) -> Vec<v2::HugeTlbStat> {
    let of_size = |pagesize: String| {
        let file = |name: &str| format!("hugetlb.{pagesize}.{name}");
        let events = text(directory, &file("events")).unwrap_or_default();
        v2::HugeTlbStat {
            current: number(directory, &file("current")).unwrap_or(0),
            max: number(directory, &file("max")).unwrap_or(u64::MAX),
            failcnt: keyed(&events, "max").unwrap_or(0),
            pagesize,
            ..v2::HugeTlbStat::default()
        }
    };
    huge_page_sizes(directory, ".current").into_iter().map(of_size).collect()
}

fn rdma(directory: &Path) -> Option<v2::RdmaStat> {
    let entry = |(device, hca_handles, hca_objects)| v2::RdmaEntry {
        device,
        hca_handles,
        hca_objects,
        ..v2::RdmaEntry::default()
    };
    let entries = |text: &str| rdma_devices(text).into_iter().map(entry).collect();
    Some(v2::RdmaStat {
        current: entries(&text(directory, "rdma.current")?),
        limit: entries(&text(directory, "rdma.max").unwrap_or_default()),
        ..v2::RdmaStat::default()
    })
}

/// Pressure stall information: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same for `full`.
/// Source: Linux Documentation/accounting/psi.rst.
fn pressure(directory: &Path, file: &str) -> Option<v2::PSIStats> {
    let text = text(directory, file)?;
    let line = |kind: &str| {
        let fields = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let mut data = v2::PSIData::default();
        for (key, value) in fields.split_whitespace().filter_map(|field| field.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => data.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => data.avg300 = value.parse().unwrap_or(0.0),
                "total" => data.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        Some(data)
    };
    let (some, full) = (line("some ").into(), line("full ").into());
    Some(v2::PSIStats { some, full, ..v2::PSIStats::default() })
}

fn pids(directory: &Path) -> Option<v2::PidsStat> {
    Some(v2::PidsStat {
        current: number(directory, "pids.current")?,
        limit: number(directory, "pids.max").unwrap_or(0),
        ..v2::PidsStat::default()
    })
}

fn cpu(directory: &Path) -> Option<v2::CPUStat> {
    let stat = text(directory, "cpu.stat")?;
    let value = |key| keyed(&stat, key).unwrap_or(0);
    Some(v2::CPUStat {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        nr_periods: value("nr_periods"),
        nr_throttled: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
        nr_bursts: value("nr_bursts"),
        burst_usec: value("burst_usec"),
        psi: pressure(directory, "cpu.pressure").into(),
        ..v2::CPUStat::default()
    })
}

/// No limit is the largest number, as containerd's own cgroup package tells it.
fn memory(directory: &Path) -> Option<v2::MemoryStat> {
    let stat = text(directory, "memory.stat")?;
    let value = |key: &str| keyed(&stat, key).unwrap_or(0);
    let sum = |key| value(&format!("{key}_anon")).saturating_add(value(&format!("{key}_file")));
    Some(v2::MemoryStat {
        anon: value("anon"),
        file: value("file"),
        kernel_stack: value("kernel_stack"),
        slab: value("slab"),
        sock: value("sock"),
        shmem: value("shmem"),
        file_mapped: value("file_mapped"),
        file_dirty: value("file_dirty"),
        file_writeback: value("file_writeback"),
        anon_thp: value("anon_thp"),
        inactive_anon: value("inactive_anon"),
        active_anon: value("active_anon"),
        inactive_file: value("inactive_file"),
        active_file: value("active_file"),
        unevictable: value("unevictable"),
        slab_reclaimable: value("slab_reclaimable"),
        slab_unreclaimable: value("slab_unreclaimable"),
        pgfault: value("pgfault"),
        pgmajfault: value("pgmajfault"),
        workingset_refault: sum("workingset_refault"),
        workingset_activate: sum("workingset_activate"),
        workingset_nodereclaim: value("workingset_nodereclaim"),
        pgrefill: value("pgrefill"),
        pgscan: value("pgscan"),
        pgsteal: value("pgsteal"),
        pgactivate: value("pgactivate"),
        pgdeactivate: value("pgdeactivate"),
        pglazyfree: value("pglazyfree"),
        pglazyfreed: value("pglazyfreed"),
        thp_fault_alloc: value("thp_fault_alloc"),
        thp_collapse_alloc: value("thp_collapse_alloc"),
        usage: number(directory, "memory.current").unwrap_or(0),
        usage_limit: number(directory, "memory.max").unwrap_or(u64::MAX),
        max_usage: number(directory, "memory.peak").unwrap_or(0),
        swap_usage: number(directory, "memory.swap.current").unwrap_or(0),
        swap_limit: number(directory, "memory.swap.max").unwrap_or(u64::MAX),
        swap_max_usage: number(directory, "memory.swap.peak").unwrap_or(0),
        psi: pressure(directory, "memory.pressure").into(),
        ..v2::MemoryStat::default()
    })
}

fn events(events: &str) -> v2::MemoryEvents {
    let value = |key| keyed(events, key).unwrap_or(0);
    v2::MemoryEvents {
        low: value("low"),
        high: value("high"),
        max: value("max"),
        oom: value("oom"),
        oom_kill: value("oom_kill"),
        oom_group_kill: value("oom_group_kill"),
        ..v2::MemoryEvents::default()
    }
}

/// `MAJOR:MINOR rbytes=… wbytes=… rios=… wios=… …` lines.
fn io(directory: &Path) -> Option<v2::IOStat> {
    let stat = text(directory, "io.stat")?;
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        let mut entry = v2::IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..v2::IOEntry::default()
        };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    Some(v2::IOStat {
        usage: stat.lines().filter_map(parse).collect(),
        psi: pressure(directory, "io.pressure").into(),
        ..v2::IOStat::default()
    })
}
