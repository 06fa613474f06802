//! Running programs: every failure shows the command line, its exit and the end of what it printed.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) line: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Standard output and error, for messages that may be on either.
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Standard output of a success without its last line end, or an error that shows both.
    pub(crate) fn good(self) -> Result<String> {
        if !self.status.success() {
            bail!("{}: {}\n{}", self.line, self.status, tail(&self.all(), 40));
        }
        Ok(self.stdout.trim_end_matches('\n').to_owned())
    }

    /// What was printed by a failure; a success or a time-out is an error.
    pub(crate) fn bad(self) -> Result<String> {
        if self.status.success() {
            bail!("{}: succeeded, and must not\n{}", self.line, tail(&self.all(), 20));
        }
        if matches!(self.status.code(), Some(124 | 137)) && self.line.starts_with("timeout") {
            bail!("{}: timed out\n{}", self.line, tail(&self.all(), 20));
        }
        Ok(self.all())
    }
}

/// The ways in which commands are run here.
pub(crate) trait Run {
    /// Runs to the end; an error only if it cannot be started.
    fn ran(&mut self) -> Result<Ran>;

    /// Standard output of a success.
    fn good(&mut self) -> Result<String> {
        self.ran()?.good()
    }

    /// Standard output and error of a failure.
    fn bad(&mut self) -> Result<String> {
        self.ran()?.bad()
    }

    /// Runs with both outputs in a file; its end is shown on failure.
    fn logged(&mut self, log: &Path) -> Result<()>;
}

impl Run for Command {
    fn ran(&mut self) -> Result<Ran> {
        let line = line(self);
        let output = self.stdin(Stdio::null()).output().with_context(|| line.clone())?;
        Ok(Ran {
            line,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn logged(&mut self, log: &Path) -> Result<()> {
        let line = line(self);
        let file =
            std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let status = self
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| line.clone())?;
        if !status.success() {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            bail!("{line}: {status}\n{}\n(all of it: {})", tail(&text, 40), log.display());
        }
        Ok(())
    }
}

/// A command that is killed after so many seconds, with exit 124 or 137.
pub(crate) fn within(seconds: u32, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", &seconds.to_string()]).arg(program);
    command
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_command_and_its_words() {
        let error = Command::new("sh").args(["-c", "echo seen >&2; exit 3"]).good().unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("sh -c") && text.contains("seen") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_time_out_is_no_refusal() {
        let error = within(1, "sleep").arg("5").bad().unwrap_err();
        assert!(format!("{error:#}").contains("timed out"));
    }

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 9), "a");
    }
}
