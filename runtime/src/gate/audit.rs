//! What is done with a refusal: under enforce it ends the launch, under audit it is written down.
//!
//! The audit log has one JSON object a line:
//! `{"time":"…","mode":"audit","container":"…","image":"sha256:…","reason":"…","evidence":"…","execControl":"…"}`.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hallmark_seal::Timestamp;
use hallmark_trust::{Enforcement, ExecControl, Strength};
use hallmark_verity::ImageDigest;
use rustix::fs::OFlags;
use serde::Serialize;

use super::refusal::{Case, Refusal, Report};
use crate::error::{Error, ErrorKind, Result};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: Timestamp,
    mode: Enforcement,
    container: &'a str,
    image: Option<ImageDigest>,
    reason: String,
    evidence: Option<Strength>,
    exec_control: ExecControl,
}

/// A refusal was written down and the launch goes on. Only audit mode gives it.
#[derive(Debug)]
pub(super) struct AuditPass(());

/// The one place where the mode is looked at: everything else says what it found.
#[derive(Debug)]
pub(super) struct Findings {
    mode: Enforcement,
    log: PathBuf,
    pub(super) case: Case,
    warnings: Vec<String>,
    refused: usize,
}

impl Findings {
    pub(super) fn new(mode: Enforcement, log: &Path, case: Case) -> Self {
        Self { mode, log: log.to_owned(), case, warnings: Vec::new(), refused: 0 }
    }

    /// The value, or under audit `None` once the refusal is written down.
    ///
    /// # Errors
    /// Under enforce: the refusal, as the line a person reads.
    pub(super) fn weigh<T>(
        &mut self,
        found: std::result::Result<T, impl Into<Refusal>>,
    ) -> Result<Option<T>> {
        let refusal = match found {
            Ok(value) => return Ok(Some(value)),
            Err(refusal) => refusal.into(),
        };
        let report = Report { case: &self.case, refusal: &refusal };
        match self.mode {
            Enforcement::Enforce => {
                Err(Error::new(ErrorKind::Refused, format!("hallmark: refused: {report}")))
            }
            Enforcement::Audit => {
                let warning = format!("hallmark: audit: would be refused: {report}");
                let written = self.write(&refusal);
                self.refused = self.refused.saturating_add(1);
                self.warnings.push(warning);
                let unwritten =
                    written.err().map(|e| format!("audit log {}: {e}", self.log.display()));
                self.warnings.extend(unwritten);
                Ok(None)
            }
        }
    }

    /// Leave to go on without a permit.
    ///
    /// # Errors
    /// Under enforce: the refusal.
    pub(super) fn pass(&mut self, refusal: impl Into<Refusal>) -> Result<AuditPass> {
        self.weigh(Err::<(), _>(refusal)).map(|_written_down| AuditPass(()))
    }

    /// The node's mode, for what is not a refusal.
    pub(super) fn mode(&self) -> Enforcement {
        self.mode
    }

    /// Whether everything so far was as it should be.
    pub(super) fn is_clean(&self) -> bool {
        self.refused == 0
    }

    /// The lines for log.json.
    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    fn write(&self, refusal: &Refusal) -> std::io::Result<()> {
        let line = Line {
            time: Timestamp::from(std::time::SystemTime::now()),
            mode: self.mode,
            container: &self.case.container,
            image: self.case.image,
            reason: refusal.to_string(),
            evidence: self.case.evidence,
            exec_control: self.case.exec_control,
        };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        if let Some(parent) = self.log.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let mut log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(no_follow)
            .open(&self.log)?;
        // one write: lines of two runtimes do not mix
        log.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(mode: Enforcement, log: &Path) -> Findings {
        let case = Case {
            container: "c1".into(),
            image: Some(ImageDigest::of(b"i")),
            evidence: Some(Strength::Rehashed),
            exec_control: ExecControl::LaunchOnly,
        };
        Findings::new(mode, log, case)
    }

    #[test]
    fn enforce_refuses_with_who_what_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.log");
        let mut findings = findings(Enforcement::Enforce, &log);
        assert_eq!(findings.weigh(Ok::<_, Refusal>(7)).unwrap(), Some(7));
        let refused = findings.weigh(Err::<(), _>(Refusal::NotHandedOver)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        let (image, refusal) = (ImageDigest::of(b"i"), Refusal::NotHandedOver);
        assert_eq!(
            refused.to_string(),
            format!(
                "hallmark: refused: container c1, image {image}: {refusal}; evidence rehashed, exec control \
                 launch-only; to run it: {}",
                refusal.remedy()
            )
        );
        assert!(std::fs::read(&log).is_err());
    }

    #[test]
    fn audit_writes_a_line_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("new/audit.log");
        let mut findings = findings(Enforcement::Audit, &log);
        for _ in 0..2 {
            assert_eq!(findings.weigh(Err::<(), _>(Refusal::NotHandedOver)).unwrap(), None);
        }
        assert!(!findings.is_clean());
        let text = std::fs::read_to_string(&log).unwrap();
        assert_eq!(text.lines().count(), 2);
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(line["mode"], "audit");
        assert_eq!(line["container"], "c1");
        assert_eq!(line["evidence"], "rehashed");
        assert_eq!(line["execControl"], "launch-only");
        assert!(line["reason"].as_str().unwrap().contains("--rootfs-mounts"));
        assert_eq!(findings.into_warnings().len(), 2);
    }

    #[test]
    fn an_audit_log_that_cannot_be_written_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &log).unwrap();
        let mut findings = findings(Enforcement::Audit, &log);
        assert_eq!(findings.weigh(Err::<(), _>(Refusal::NotHandedOver)).unwrap(), None);
        let warnings = findings.into_warnings();
        assert_eq!(warnings.len(), 2);
        assert!(warnings[1].starts_with("audit log "), "{}", warnings[1]);
    }
}
