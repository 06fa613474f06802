//! A container's numbers as containerd's clients read them: `io.containerd.cgroups.v1.Metrics` or `…v2.Metrics`.
//!
//! Read from the cgroup's files when asked, nothing is kept. A controller that is not there leaves its part out. v1 times are
//! nanoseconds except `cpuacct.stat`, which counts ticks of 10 ms (USER_HZ is 100 on every Linux this runs on); v2 times are
//! microseconds.

use std::path::Path;

use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::events::pack;

mod v1;
mod v2;

/// The numbers of `cgroup`, packed for the answer to `Stats`.
///
/// # Errors
/// The message cannot be encoded.
pub(crate) fn collect(cgroup: &Cgroup) -> Result<Any> {
    match cgroup {
        Cgroup::V1(controllers) => pack("io.containerd.cgroups.v1", &v1::metrics(controllers)),
        Cgroup::V2(directory) => pack("io.containerd.cgroups.v2", &v2::metrics(directory)),
    }
}

/// Sizes as the kernel writes them in names of files, `hugetlb.2MB.current`; one file of each size ends in `end`.
fn huge_page_sizes(directory: &Path, end: &str) -> Vec<String> {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(end)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: Vec<String> = names.filter_map(size).collect();
    sizes.sort();
    sizes
}

/// Device, handles and objects of each line `mlx5_0 hca_handle=2 hca_object=max`; no limit is the largest number.
/// Source: Linux Documentation/admin-guide/cgroup-v2.rst, RDMA.
fn rdma_devices(text: &str) -> Vec<(String, u32, u32)> {
    let device = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut device = (fields.next()?.to_owned(), 0, 0);
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = if value == "max" { u32::MAX } else { value.parse().unwrap_or(0) };
            match key {
                "hca_handle" => device.1 = value,
                "hca_object" => device.2 = value,
                _ => {}
            }
        }
        Some(device)
    };
    text.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::cgroups::metrics as v1;
    use containerd_shim_protos::cgroups_v2::metrics as v2;
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
            (
                "io.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.25 total=5\n",
            ),
            ("hugetlb.2MB.current", "4096\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 3\n"),
            ("rdma.current", "mlx5_0 hca_handle=2 hca_object=9\n"),
            ("rdma.max", "mlx5_0 hca_handle=4 hca_object=max\n"),
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
        let pressure = &metrics.io.psi;
        assert_eq!((pressure.some.avg10, pressure.some.total), (1.5, 7));
        assert_eq!((pressure.full.avg300, pressure.full.total), (0.25, 5));
        assert!(metrics.cpu.psi.is_none());
        let huge: Vec<_> =
            metrics.hugetlb.iter().map(|h| (h.pagesize.as_str(), h.current, h.failcnt)).collect();
        assert_eq!(huge, [("2MB", 4096, 3)]);
        let (current, limit) = (&metrics.rdma.current[0], &metrics.rdma.limit[0]);
        assert_eq!((current.device.as_str(), current.hca_objects), ("mlx5_0", 9));
        assert_eq!((limit.hca_handles, limit.hca_objects), (4, u32::MAX));
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
            ("hugetlb.1GB.usage_in_bytes", "1\n"),
            ("hugetlb.1GB.failcnt", "2\n"),
            ("hugetlb.1GB.rsvd.usage_in_bytes", "3\n"),
        ]);
        let controllers = ["pids", "cpu", "cpuacct", "memory", "blkio", "hugetlb"];
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
        let huge: Vec<_> =
            metrics.hugetlb.iter().map(|h| (h.pagesize.as_str(), h.usage, h.failcnt)).collect();
        assert_eq!(huge, [("1GB", 1, 2)]);
    }
}
