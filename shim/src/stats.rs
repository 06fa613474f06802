//! A container's numbers as containerd's clients read them: `io.containerd.cgroups.v1.Metrics` or `…v2.Metrics`.
//!
//! Read from the cgroup's files when asked, nothing is kept. A controller that is not there leaves its part out. v1 times are
//! nanoseconds except `cpuacct.stat`, which counts ticks of 10 ms (USER_HZ is 100 on every Linux this runs on); v2 times are
//! microseconds.

use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::cgroup::{Cgroup, keyed, number, text};
use crate::error::Result;
use crate::events::pack;

const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// The numbers of `cgroup`, packed for the answer to `Stats`.
///
/// # Errors
/// The message cannot be encoded.
pub(crate) fn collect(cgroup: &Cgroup) -> Result<Any> {
    match cgroup {
        Cgroup::V1(controllers) => {
            let part = |name: &str| controllers.get(name).map(|path| path.as_path());
            pack(
                "io.containerd.cgroups.v1",
                &v1::Metrics {
                    pids: part("pids").map(v1_pids).into(),
                    cpu: v1_cpu(part("cpuacct"), part("cpu")),
                    memory: part("memory").map(v1_memory).into(),
                    memory_oom_control: part("memory").and_then(v1_oom).into(),
                    blkio: part("blkio").map(v1_blkio).into(),
                    ..v1::Metrics::default()
                },
            )
        }
        Cgroup::V2(directory) => pack(
            "io.containerd.cgroups.v2",
            &v2::Metrics {
                pids: v2_pids(directory).into(),
                cpu: text(directory, "cpu.stat").map(|stat| v2_cpu(&stat)).into(),
                memory: v2_memory(directory).into(),
                memory_events: text(directory, "memory.events").map(|text| v2_events(&text)).into(),
                io: text(directory, "io.stat").map(|stat| v2_io(&stat)).into(),
                ..v2::Metrics::default()
            },
        ),
    }
}

fn v1_pids(directory: &Path) -> v1::PidsStat {
    v1::PidsStat {
        current: number(directory, "pids.current").unwrap_or(0),
        limit: number(directory, "pids.max").unwrap_or(0),
        ..v1::PidsStat::default()
    }
}

fn v1_cpu(cpuacct: Option<&Path>, cpu: Option<&Path>) -> MessageField<v1::CPUStat> {
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

fn v1_memory(directory: &Path) -> v1::MemoryStat {
    let mut memory = v1::MemoryStat::default();
    for line in text(directory, "memory.stat").unwrap_or_default().lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        if let (Some(field), Ok(value)) = (v1_memory_field(&mut memory, key), value.parse()) {
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
fn v1_memory_field<'a>(memory: &'a mut v1::MemoryStat, key: &str) -> Option<&'a mut u64> {
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

fn v1_oom(directory: &Path) -> Option<v1::MemoryOomControl> {
    let control = text(directory, "memory.oom_control")?;
    Some(v1::MemoryOomControl {
        oom_kill_disable: keyed(&control, "oom_kill_disable").unwrap_or(0),
        under_oom: keyed(&control, "under_oom").unwrap_or(0),
        oom_kill: keyed(&control, "oom_kill").unwrap_or(0),
        ..v1::MemoryOomControl::default()
    })
}

fn v1_blkio(directory: &Path) -> v1::BlkIOStat {
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

fn v2_pids(directory: &Path) -> Option<v2::PidsStat> {
    Some(v2::PidsStat {
        current: number(directory, "pids.current")?,
        limit: number(directory, "pids.max").unwrap_or(0),
        ..v2::PidsStat::default()
    })
}

fn v2_cpu(stat: &str) -> v2::CPUStat {
    let value = |key| keyed(stat, key).unwrap_or(0);
    v2::CPUStat {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        nr_periods: value("nr_periods"),
        nr_throttled: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
        nr_bursts: value("nr_bursts"),
        burst_usec: value("burst_usec"),
        ..v2::CPUStat::default()
    }
}

/// No limit is the largest number, as containerd's own cgroup package tells it.
fn v2_memory(directory: &Path) -> Option<v2::MemoryStat> {
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
        ..v2::MemoryStat::default()
    })
}

fn v2_events(events: &str) -> v2::MemoryEvents {
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
fn v2_io(stat: &str) -> v2::IOStat {
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
    v2::IOStat { usage: stat.lines().filter_map(parse).collect(), ..v2::IOStat::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::Message as _;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    #[test]
    fn v2_numbers() {
        let cgroup = directory(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 50\nuser_usec 30\nsystem_usec 20\nnr_throttled 2\n"),
            ("memory.stat", "anon 4096\nfile 8192\nanon_thp 1\n"),
            ("memory.current", "12288\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 2\noom_kill 1\n"),
            ("io.stat", "253:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n8:16 rbytes=5\nbad\n"),
        ]);
        let any = collect(&Cgroup::V2(cgroup.path().into())).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.nr_throttled), (50, 2));
        assert_eq!((metrics.memory.anon, metrics.memory.usage), (4096, 12288));
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!(metrics.memory_events.oom_kill, 1);
        let io: Vec<_> = metrics.io.usage.iter().map(|e| (e.major, e.rbytes, e.wios)).collect();
        assert_eq!(io, [(253, 10, 2), (8, 5, 0)]);
    }

    #[test]
    fn v1_numbers() {
        let cgroup = directory(&[
            ("pids.current", "3\n"),
            ("pids.max", "100\n"),
            ("cpuacct.usage", "123456789\n"),
            ("cpuacct.stat", "user 5\nsystem 7\n"),
            ("cpuacct.usage_percpu", "1 2 \n"),
            ("cpu.stat", "nr_periods 9\nnr_throttled 1\nthrottled_time 77\n"),
            (
                "memory.stat",
                "cache 1\npgpgin 2\ntotal_inactive_file 3\nhierarchical_memsw_limit 4\n",
            ),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.limit_in_bytes", "2000\n"),
            ("memory.failcnt", "6\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 11\n8:0 Write 12\nTotal 23\n"),
        ]);
        let controllers = ["pids", "cpu", "cpuacct", "memory", "blkio"];
        let controllers = controllers.map(|name| (name.to_owned(), cgroup.path().to_owned()));
        let any = collect(&Cgroup::V1(controllers.into())).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 100));
        let usage = &metrics.cpu.usage;
        assert_eq!((usage.total, usage.user, usage.kernel), (123_456_789, 50_000_000, 70_000_000));
        assert_eq!(usage.per_cpu, [1, 2]);
        assert_eq!(metrics.cpu.throttling.throttled_time, 77);
        let memory = &metrics.memory;
        assert_eq!((memory.cache, memory.pg_pg_in, memory.total_inactive_file), (1, 2, 3));
        assert_eq!(memory.hierarchical_swap_limit, 4);
        assert_eq!((memory.usage.usage, memory.usage.limit, memory.usage.failcnt), (1000, 2000, 6));
        assert!(memory.swap.is_none());
        assert_eq!(metrics.memory_oom_control.oom_kill, 1);
        let bytes: Vec<_> =
            metrics.blkio.io_service_bytes_recursive.iter().map(|e| e.value).collect();
        assert_eq!(bytes, [11, 12]);
    }
}
