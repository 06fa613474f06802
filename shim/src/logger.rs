//! The shim's own log: one line a record into the bundle's `log` FIFO, which containerd copies to its own.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};

/// Sends log records of `level` and above to the FIFO at `path`, marked with the shim's `id`.
///
/// # Errors
/// The FIFO cannot be opened, or a logger is in place already.
pub(crate) fn start(path: &Path, id: &str, level: LevelFilter) -> anyhow::Result<()> {
    // opened for reading as well: no reader yet is no error, and none later gives no EPIPE
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let fifo = OpenOptions::new().read(true).write(true).custom_flags(nonblock).open(path)?;
    log::set_boxed_logger(Box::new(Fifo { fifo, id: id.to_owned() }))?;
    log::set_max_level(level);
    Ok(())
}

struct Fifo {
    fifo: File,
    id: String,
}

impl Log for Fifo {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ttrpc reports every closed connection as an error
        metadata.target().starts_with("containerd_shim_hallmark_v1")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let line = line(now.as_secs(), record, &self.id);
            // A full FIFO loses the line: a log that blocks would stop the container's life cycle.
            (&self.fifo).write_all(line.as_bytes()).unwrap_or_default();
        }
    }

    fn flush(&self) {}
}

/// logrus' text format, which containerd's own lines have.
fn line(unix_seconds: u64, record: &Record<'_>, id: &str) -> String {
    let level = record.level().as_str().to_ascii_lowercase();
    let message = record.args().to_string();
    format!("time=\"{}\" level={level} msg={message:?} id={id}\n", rfc3339(unix_seconds))
}

/// UTC. The calendar arithmetic is Howard Hinnant's `civil_from_days`.
pub(crate) fn rfc3339(unix_seconds: u64) -> String {
    let days = unix_seconds / 86400;
    let (hour, minute, second) =
        (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date() {
        // `date -u -d @N +%FT%TZ`
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_564_800, "2026-11-25T00:00:00Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }

    #[test]
    fn a_line_break_cannot_forge_a_line() {
        let record = Record::builder().level(log::Level::Warn).args(format_args!("a\nb")).build();
        assert_eq!(
            line(0, &record, "c1"),
            "time=\"1970-01-01T00:00:00Z\" level=warn msg=\"a\\nb\" id=c1\n"
        );
    }
}
