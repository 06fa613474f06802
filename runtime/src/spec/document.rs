//! What is read of config.json.
//!
//! oci-spec has the types of nearly all of it. The document and its process are our own: oci-spec's bring the settings
//! of every other platform along, and an engine of regular expressions for one field, which together were a fifth of
//! the program and of the memory that each run of it needs.
//!
//! Source: runtime-spec 1.3 config.md.

use std::collections::HashMap;

use oci_spec::runtime as oci;
use serde::Deserialize;

/// The root object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default)]
    pub(super) oci_version: String,
    pub(super) root: Option<oci::Root>,
    pub(super) mounts: Option<Vec<oci::Mount>>,
    pub(super) process: Option<Process>,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    pub(super) hooks: Option<oci::Hooks>,
    pub(super) annotations: Option<HashMap<String, String>>,
    pub(super) linux: Option<oci::Linux>,
}

/// `process`, but for its capabilities.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    pub(super) terminal: Option<bool>,
    pub(super) console_size: Option<oci::Box>,
    pub(super) user: oci::User,
    pub(super) args: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    pub(super) cwd: String,
    pub(super) rlimits: Option<Vec<oci::PosixRlimit>>,
    pub(super) no_new_privileges: Option<bool>,
    pub(super) apparmor_profile: Option<String>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) selinux_label: Option<String>,
    pub(super) io_priority: Option<oci::LinuxIOPriority>,
    pub(super) scheduler: Option<oci::Scheduler>,
    #[serde(rename = "execCPUAffinity")]
    pub(super) exec_cpu_affinity: Option<ExecCpuAffinity>,
}

/// Lists of processors as the kernel writes them; one that is empty says nothing.
#[derive(Debug, Deserialize)]
pub(super) struct ExecCpuAffinity {
    pub(super) initial: Option<String>,
    #[serde(rename = "final")]
    pub(super) last: Option<String>,
}
