//! The log as runc writes it: one object or one `key=value` line an event, and errors on stderr as well.
//!
//! containerd decodes log.json as a stream of objects and shows its user the `msg` of the last one whose `level` is
//! `error`, in lower case; `time` must parse as RFC 3339.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::process::Pid;

use crate::error::{Context, Result};
use crate::timestamp::Timestamp;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// logrus' `time="…" level=… msg="…"`.
    #[default]
    Text,
}

/// What is worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Steps, for whoever looks for a fault in the runtime itself.
    Debug,
    /// Something was ignored or is weaker than it could be.
    #[default]
    Warning,
    /// The operation failed.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Where events go. Without a file: to stderr.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
    format: Format,
    least: Level,
}

impl Log {
    /// Appends to `file`, or writes to stderr, from `least` upwards.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(file: Option<&Path>, format: Format, least: Level) -> Result<Self> {
        let file = match file {
            Some(path) => {
                let mut options = OpenOptions::new();
                options.append(true).create(true).mode(0o644);
                Some(options.open(path).context(|| format!("open log {}", path.display()))?)
            }
            None => None,
        };
        Ok(Self { file, format, least })
    }

    /// A step, if steps are wanted.
    pub(crate) fn debug(&self, message: &str) {
        self.write(Level::Debug, message);
    }

    /// The process is cloned and joins what it must: with a word of runc's, by which its readers find the step.
    pub(crate) fn container_setup(&self, pid: Pid) {
        self.debug(&format!("nsexec container setup: process {}", pid.as_raw_nonzero()));
    }

    /// The process has set itself up; runc's word again.
    pub(crate) fn in_init(&self, pid: Pid) {
        let pid = pid.as_raw_nonzero();
        self.debug(&format!("child process in init(): process {pid} is ready"));
    }

    /// Something that was ignored or is weaker than it could be.
    pub(crate) fn warning(&self, message: &str) {
        self.write(Level::Warning, message);
    }

    /// Something that belongs in a log and is said elsewhere too: stderr may already be the program's.
    pub(crate) fn note(&self, message: &str) {
        if self.file.is_some() {
            self.write(Level::Warning, message);
        }
    }

    /// The last word of a failed operation: in the log, and once on stderr.
    pub fn error(&self, message: &str) {
        self.write(Level::Error, message);
        if self.file.is_some() {
            to_stderr(&format!("{message}\n"));
        }
    }

    /// As [`error`](Self::error), without the time and the level on stderr.
    pub(crate) fn plain_error(&self, message: &str) {
        if self.file.is_some() {
            self.write(Level::Error, message);
        }
        to_stderr(&format!("{message}\n"));
    }

    fn write(&self, level: Level, message: &str) {
        if level < self.least {
            return;
        }
        let line = line(self.format, level, message, Timestamp::now());
        match &self.file {
            // a log that cannot be written must not stop an operation half-way, and there is nowhere left to say it
            Some(file) => drop((&mut &*file).write_all(line.as_bytes())),
            None => to_stderr(&line),
        }
    }
}

fn to_stderr(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}

fn line(format: Format, level: Level, message: &str, time: Timestamp) -> String {
    // a JSON string is also what logrus' %q makes of any text we print
    let message = serde_json::Value::from(message);
    match format {
        Format::Json => {
            format!("{{\"level\":\"{}\",\"msg\":{message},\"time\":\"{time}\"}}\n", level.name())
        }
        Format::Text => format!("time=\"{time}\" level={} msg={message}\n", level.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_what_go_runc_decodes() {
        let text = line(Format::Json, Level::Error, "exec: \"a\nb\": not found", Timestamp::now());
        assert_eq!(text.matches('\n').count(), 1);
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["level"], "error");
        assert_eq!(object["msg"], "exec: \"a\nb\": not found");
        assert!(object["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn only_what_is_wanted_reaches_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let log = Log::open(Some(&path), Format::Text, Level::Warning).unwrap();
        log.debug("step");
        log.warning("weak");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("level=warning msg=\"weak\""), "{text}");
        assert!(!text.contains("step"), "{text}");
    }
}
