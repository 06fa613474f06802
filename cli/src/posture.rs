//! `hallmark posture`: what this node is set to, what it has, and whether that is enough.
//!
//! The same code that the gate uses reads the configuration, the trust files and the kernel's policy, so that the
//! answer here is the one a launch gets.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use hallmark_seal::Timestamp;
use hallmark_trust::config::{self, LoadedConfig, NodeConfig};
use hallmark_trust::set::{PolicySource, TrustSet};
use hallmark_trust::{ExecControl, Strength, exec_control};

use crate::error::{Error, Result};

/// Show what this node enforces and whether it can.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// node configuration
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
}

/// Lines of `name value`, and what is not as it must be.
#[derive(Default)]
struct Report {
    lines: Vec<(&'static str, String)>,
    faults: Vec<String>,
}

/// Runs the command; the table goes to `out`, what is missing comes back as [`Error::Refused`].
pub(crate) fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<()> {
    let mut report = Report::default();
    let best = report.evidence();
    match NodeConfig::load(&arguments.config) {
        Ok(loaded) => report.node(&arguments.config, &loaded, best),
        Err(error) => {
            report.kernel(ExecControl::LaunchOnly);
            report.faults.push(crate::chain(&error));
        }
    }
    let width = report.lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, value) in &report.lines {
        writeln!(out, "{name:width$}  {value}").map_err(Error::Output)?;
    }
    if report.faults.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "this node cannot do what it is set to: {}",
        report.faults.join("; ")
    )))
}

impl Report {
    fn line(&mut self, name: &'static str, value: impl Into<String>) {
        self.lines.push((name, value.into()));
    }

    /// The best evidence a layer can have on this kernel.
    fn evidence(&mut self) -> Strength {
        let (mapper, best) = match hallmark_sys::dm::version() {
            Ok((major, minor, patch)) => {
                let (verity, best) = verity_target();
                (format!("device-mapper {major}.{minor}.{patch}, {verity}"), best)
            }
            Err(error) => (format!("none ({})", crate::chain(&error)), Strength::Rehashed),
        };
        self.line("device-mapper", mapper);
        let verity = Path::new("/proc/sys/fs/verity").is_dir()
            || Path::new("/sys/fs/ext4/features/verity").is_file();
        self.line(
            "fs-verity",
            if verity { "in the kernel; no layer is stored that way" } else { "none" },
        );
        self.line("best evidence", best.as_str());
        best
    }

    /// Who controls execution, and whether that is enough.
    fn kernel(&mut self, asked: ExecControl) {
        let kernel = exec_control::read();
        let why = kernel.weakness().map(|weakness| format!(" ({})", crate::chain(weakness)));
        let found = format!("{}{}", kernel.exec_control(), why.unwrap_or_default());
        self.line("exec control", found.clone());
        if kernel.exec_control() < asked {
            self.faults.push(format!("exec control: found {found}, exec_control is {asked}"));
        }
    }

    fn node(&mut self, path: &Path, loaded: &LoadedConfig, best: Strength) {
        let gate = &loaded.config.gate;
        let there = if loaded.sha256.is_some() { "" } else { " (not there: every default)" };
        self.line("configuration", format!("{}{there}", path.display()));
        self.line("mode", gate.mode.as_str());
        self.line("asks for evidence", gate.minimum_evidence.as_str());
        self.line("asks for exec control", gate.exec_control.as_str());
        self.kernel(gate.exec_control);
        if best < gate.minimum_evidence {
            self.faults.push(format!(
                "evidence: found at best {best}, minimum_evidence is {}",
                gate.minimum_evidence
            ));
        }
        match TrustSet::load(loaded, Timestamp::from(SystemTime::now())) {
            Ok(set) => self.trust(&loaded.config, &set),
            Err(error) => self.faults.push(crate::chain(&error)),
        }
    }

    fn trust(&mut self, config: &NodeConfig, set: &TrustSet) {
        self.line("keys", set.keyring().subjects().collect::<Vec<_>>().join(", "));
        let policy = set.policy().map(|trusted| {
            let source = match trusted.source {
                PolicySource::Kernel => "active in the kernel",
                PolicySource::SignedFile => "a signed file",
            };
            format!("{} {}, {source}", trusted.policy.name.as_str(), trusted.policy.version)
        });
        if policy.is_none() {
            let expected = config.trust.policy.display();
            self.faults
                .push(format!("policy: found none, expected one in the kernel or in {expected}"));
        }
        self.line("policy", policy.unwrap_or_else(|| "none".into()));
        let asked = config.gate.exec_control;
        // a pin binds whatever is configured; without one a file is only missed where the kernel is to control exec
        let counts = set.unpinned().iter().filter(|file| file.pinned || asked == ExecControl::Ipe);
        for file in counts {
            let policy = match file.pinned {
                true => format!("pins {}", file.expected),
                false => "does not pin it".to_owned(),
            };
            let (name, found) = (file.file, &file.found);
            self.faults.push(format!("{name}: found {found}, the active policy {policy}"));
        }
    }
}

/// What dm-verity of this kernel can do. It has the parameter exactly where it checks signatures of root hashes; a module
/// that nothing has loaded yet does not tell.
fn verity_target() -> (&'static str, Strength) {
    let module = Path::new("/sys/module/dm_verity");
    if module.join("parameters/require_signatures").is_file() {
        ("dm-verity checks signatures", Strength::DmVeritySigned)
    } else if module.is_dir() {
        ("dm-verity checks no signatures", Strength::DmVerity)
    } else {
        ("dm-verity not loaded (after modprobe dm-verity more can be said)", Strength::DmVerity)
    }
}
