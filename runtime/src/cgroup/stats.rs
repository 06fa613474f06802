//! What a container uses, in the shape and the units of `runc events`.
//!
//! Durations are in nanoseconds, sizes in bytes. A controller that is not there leaves its numbers at 0, and 0 is left
//! out of the text where runc leaves it out.
//!
//! Source: runc 1.5 `types/events.go`; kernel Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.

use std::collections::BTreeMap;

use serde::Serialize;

use super::dir::Dir;
use super::{Cgroup, Error, Version};

/// One look at all counters.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    cpu: Cpu,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    /// By page size.
    hugetlb: BTreeMap<String, Entry>,
}

#[derive(Debug, Default, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, Serialize)]
struct CpuUsage {
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu: Vec<u64>,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    periods: u64,
    throttled_periods: u64,
    throttled_time: u64,
}

#[derive(Debug, Default, Serialize)]
struct Memory {
    cache: u64,
    usage: Entry,
    swap: Entry,
    kernel: Entry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: Entry,
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, Serialize)]
struct Entry {
    limit: u64,
    usage: u64,
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Serialize)]
struct Pids {
    current: u64,
    /// 0: none.
    limit: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    io_service_bytes_recursive: Vec<BlockEntry>,
    io_serviced_recursive: Vec<BlockEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct BlockEntry {
    major: u64,
    minor: u64,
    op: String,
    value: u64,
}

/// Time lost for want of something: shares in per cent, totals in microseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Pressure {
    some: Stall,
    full: Stall,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Stall {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

impl Cgroup {
    /// Reads every counter there is.
    ///
    /// # Errors
    /// [`Error::NotMounted`] once the control groups are gone.
    pub fn stats(&self) -> Result<Stats, Error> {
        match self.version {
            Version::V1 => Ok(self.stats_v1()),
            Version::V2 => Ok(stats_v2(&self.v2()?.dir)),
        }
    }

    fn stats_v1(&self) -> Stats {
        let of = |controller| Source(self.v1(controller).ok());
        let (cpu, time, memory) = (of("cpu"), of("cpuacct"), of("memory"));
        let throttled = table(&cpu.text("cpu.stat"));
        let raw = table(&memory.text("memory.stat"));
        Stats {
            cpu: Cpu {
                usage: CpuUsage {
                    total: time.number("cpuacct.usage"),
                    percpu: numbers(&time.text("cpuacct.usage_percpu")),
                    kernel: time.number("cpuacct.usage_sys"),
                    user: time.number("cpuacct.usage_user"),
                },
                throttling: throttling(&throttled, "throttled_time", 1),
                psi: None,
            },
            memory: Memory {
                cache: value(&raw, "cache"),
                usage: memory.entry_v1("memory"),
                swap: memory.entry_v1("memory.memsw"),
                kernel: memory.entry_v1("memory.kmem"),
                kernel_tcp: memory.entry_v1("memory.kmem.tcp"),
                raw,
                psi: None,
            },
            pids: of("pids").pids(),
            blkio: of("blkio").blocks_v1(),
            hugetlb: BTreeMap::new(),
        }
    }
}

fn stats_v2(dir: &Dir) -> Stats {
    let group = Source(Some(dir));
    let cpu = table(&group.text("cpu.stat"));
    let nanoseconds = |key| value(&cpu, key).saturating_mul(1000);
    let raw = table(&group.text("memory.stat"));
    let mut usage = group.entry_v2("memory", "memory.peak");
    usage.failcnt = value(&table(&group.text("memory.events")), "max");
    let mut swap = group.entry_v2("memory.swap", "memory.swap.peak");
    // runc counts memory and swap together, as v1 does
    swap.usage = swap.usage.saturating_add(usage.usage);
    Stats {
        cpu: Cpu {
            usage: CpuUsage {
                total: nanoseconds("usage_usec"),
                percpu: Vec::new(),
                kernel: nanoseconds("system_usec"),
                user: nanoseconds("user_usec"),
            },
            throttling: throttling(&cpu, "throttled_usec", 1000),
            psi: pressure(&group.text("cpu.pressure")),
        },
        memory: Memory {
            cache: value(&raw, "file"),
            usage,
            swap,
            kernel: Entry { usage: group.number("memory.kernel"), ..Entry::default() },
            kernel_tcp: Entry::default(),
            raw,
            psi: pressure(&group.text("memory.pressure")),
        },
        pids: group.pids(),
        blkio: blocks_v2(&group.text("io.stat"), pressure(&group.text("io.pressure"))),
        hugetlb: hugetlb_v2(dir, &group),
    }
}

fn hugetlb_v2(dir: &Dir, group: &Source<'_>) -> BTreeMap<String, Entry> {
    let sizes = dir.files().into_iter().filter_map(|file| {
        let size = file.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.ends_with(".rsvd")).then(|| size.to_owned())
    });
    let entry = |size: String| {
        let events = table(&group.text(&format!("hugetlb.{size}.events")));
        let usage = group.number(&format!("hugetlb.{size}.current"));
        let entry = Entry { usage, failcnt: value(&events, "max"), ..Entry::default() };
        (size, entry)
    };
    sizes.map(entry).collect()
}

/// One control group's files; a file that is not there is empty.
struct Source<'a>(Option<&'a Dir>);

impl Source<'_> {
    fn text(&self, file: &str) -> String {
        self.0.and_then(|dir| dir.read(file).ok()).unwrap_or_default()
    }

    fn number(&self, file: &str) -> u64 {
        self.0.and_then(|dir| dir.read_number(file).ok()).unwrap_or_default()
    }

    fn entry_v1(&self, prefix: &str) -> Entry {
        Entry {
            limit: self.number(&format!("{prefix}.limit_in_bytes")),
            usage: self.number(&format!("{prefix}.usage_in_bytes")),
            max: self.number(&format!("{prefix}.max_usage_in_bytes")),
            failcnt: self.number(&format!("{prefix}.failcnt")),
        }
    }

    fn entry_v2(&self, prefix: &str, peak: &str) -> Entry {
        Entry {
            limit: self.number(&format!("{prefix}.max")),
            usage: self.number(&format!("{prefix}.current")),
            max: self.number(peak),
            failcnt: 0,
        }
    }

    fn pids(&self) -> Pids {
        let limit = self.number("pids.max");
        let limit = if limit == u64::MAX { 0 } else { limit };
        Pids { current: self.number("pids.current"), limit }
    }

    fn blocks_v1(&self) -> BlockIo {
        let read = |file: &str| self.text(file).lines().filter_map(block_v1).collect();
        BlockIo {
            io_service_bytes_recursive: read("blkio.throttle.io_service_bytes_recursive"),
            io_serviced_recursive: read("blkio.throttle.io_serviced_recursive"),
            psi: None,
        }
    }
}

fn throttling(table: &BTreeMap<String, u64>, time: &str, unit: u64) -> Throttling {
    Throttling {
        periods: value(table, "nr_periods"),
        throttled_periods: value(table, "nr_throttled"),
        throttled_time: value(table, time).saturating_mul(unit),
    }
}

/// Lines of a name and a number.
fn table(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn value(table: &BTreeMap<String, u64>, key: &str) -> u64 {
    table.get(key).copied().unwrap_or_default()
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// `8:0 Read 4096`; the line of the total has no device.
fn block_v1(line: &str) -> Option<BlockEntry> {
    let mut words = line.split(' ');
    let (major, minor) = words.next()?.split_once(':')?;
    let (op, number) = (words.next()?.to_owned(), words.next()?);
    Some(BlockEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op,
        value: number.parse().ok()?,
    })
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …`
fn blocks_v2(text: &str, psi: Option<Pressure>) -> BlockIo {
    let mut all = BlockIo { psi, ..BlockIo::default() };
    for line in text.lines() {
        let mut words = line.split(' ');
        let device = words.next().and_then(|word| word.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for (key, number) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut all.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut all.io_service_bytes_recursive, "Write"),
                "rios" => (&mut all.io_serviced_recursive, "Read"),
                "wios" => (&mut all.io_serviced_recursive, "Write"),
                _ => continue,
            };
            let value = number.parse().unwrap_or_default();
            list.push(BlockEntry { major, minor, op: op.to_owned(), value });
        }
    }
    all
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`.
fn pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let field =
            |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let share = |key| field(key).and_then(|text| text.parse().ok()).unwrap_or_default();
        Some(Stall {
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
            total: field("total")?.parse().ok()?,
        })
    };
    Some(Pressure { some: stall("some ")?, full: stall("full ").unwrap_or_default() })
}

/// Reads `text` as every file there is.
#[cfg(fuzzing)]
pub(super) fn parse(text: &str) {
    drop((table(text), numbers(text), pressure(text)));
    drop(blocks_v2(text, None));
    for line in text.lines() {
        drop(block_v1(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_block_counters_are_read() {
        let expected = BlockEntry { major: 8, minor: 16, op: "Read".into(), value: 4096 };
        assert_eq!(block_v1("8:16 Read 4096"), Some(expected));
        assert_eq!(block_v1("Total 4096"), None);
        let all = blocks_v2("8:16 rbytes=4096 wbytes=1 rios=2 wios=3 dbytes=9\nnoise\n", None);
        assert_eq!(all.io_service_bytes_recursive.len(), 2);
        assert_eq!(all.io_serviced_recursive[1].value, 3);
    }

    #[test]
    fn pressure_is_read_where_there_is_any() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.25 total=12\n";
        let psi = pressure(text).unwrap();
        assert!((psi.some.avg10 - 1.5).abs() < f64::EPSILON && psi.some.total == 12);
        assert_eq!(psi.full, Stall::default());
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn a_control_group_of_files_gives_runcs_text() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 7\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("hugetlb.2MB.current", "0\n"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let stats = serde_json::to_value(stats_v2(&Dir::pretend(dir.path()))).unwrap();
        assert_eq!(stats["cpu"]["usage"]["total"], 5000);
        assert_eq!(stats["cpu"]["throttling"]["throttledPeriods"], 1);
        assert_eq!(stats["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(stats["memory"]["cache"], 7);
        assert_eq!(stats["pids"], serde_json::json!({"current": 2, "limit": 0}));
        assert!(stats["hugetlb"]["2MB"].is_object());
    }
}
