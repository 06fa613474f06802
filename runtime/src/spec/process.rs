//! `process`: what is executed, as whom, and with which limits.

use hallmark_sys::process::SchedulerAttributes;
use oci_spec::runtime as oci;
use rustix::process::Resource;
use rustix::thread::CpuSet;

use super::document::Process;
use super::{Capabilities, no_nul, non_empty};
use crate::error::{Error, Result};

/// One process of a container: its first one, or one that `exec` adds.
#[derive(Debug, Clone)]
pub(crate) struct ProcessPlan {
    /// Never empty.
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    /// Absolute.
    pub(crate) cwd: String,
    pub(crate) terminal: Terminal,
    pub(crate) user: User,
    pub(crate) capabilities: Capabilities,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) no_new_privileges: bool,
    pub(crate) apparmor_profile: Option<String>,
    pub(crate) selinux_label: Option<String>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) scheduler: Option<SchedulerAttributes>,
    /// `class << 13 | level`.
    pub(crate) io_priority: Option<i32>,
    /// `execCPUAffinity.initial`, while the process moves into its cgroup.
    pub(crate) initial_affinity: Option<CpuSet>,
    /// `execCPUAffinity.final`.
    pub(crate) final_affinity: Option<CpuSet>,
}

/// Standard streams: the caller's, or a terminal of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    No,
    /// With rows and columns, if asked for.
    Yes(Option<(u16, u16)>),
}

/// Numeric, as the specification has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) umask: Option<u32>,
    pub(crate) additional_gids: Vec<u32>,
}

/// One resource limit; `u64::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rlimit {
    pub(crate) resource: Resource,
    soft: u64,
    hard: u64,
}

impl Rlimit {
    /// `None`: unlimited.
    pub(crate) fn soft(&self) -> Option<u64> {
        (self.soft != u64::MAX).then_some(self.soft)
    }

    /// `None`: unlimited.
    pub(crate) fn hard(&self) -> Option<u64> {
        (self.hard != u64::MAX).then_some(self.hard)
    }
}

impl ProcessPlan {
    pub(super) fn parse(process: Process, capabilities: Option<Capabilities>) -> Result<Self> {
        let affinity = process.exec_cpu_affinity.as_ref();
        let cpus = |list| non_empty(list).as_deref().map(cpu_set).transpose();
        let plan = Self {
            terminal: terminal(&process)?,
            user: user(&process.user)?,
            capabilities: capabilities.unwrap_or_else(Capabilities::none),
            rlimits: rlimits(process.rlimits.as_deref().unwrap_or_default())?,
            no_new_privileges: process.no_new_privileges.unwrap_or(false),
            apparmor_profile: label(process.apparmor_profile.as_ref(), "apparmorProfile")?,
            selinux_label: label(process.selinux_label.as_ref(), "selinuxLabel")?,
            oom_score_adj: oom_score_adj(process.oom_score_adj)?,
            scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
            initial_affinity: cpus(affinity.and_then(|affinity| affinity.initial.as_ref()))?,
            final_affinity: cpus(affinity.and_then(|affinity| affinity.last.as_ref()))?,
            args: process.args.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            cwd: process.cwd,
        };
        plan.require()?;
        Ok(plan)
    }

    /// What every process must have, wherever its parts came from.
    ///
    /// # Errors
    /// No arguments, a working directory that is not absolute, NUL bytes, malformed environment entries.
    pub(crate) fn require(&self) -> Result<()> {
        if self.args.is_empty() {
            return Err(Error::spec("args must not be empty"));
        }
        if self.cwd.is_empty() {
            return Err(Error::spec("cwd property must not be empty"));
        }
        if !self.cwd.starts_with('/') {
            return Err(Error::spec("cwd must be an absolute path"));
        }
        no_nul(&self.cwd, "process.cwd")?;
        self.args.iter().try_for_each(|text| no_nul(text, "process.args"))?;
        self.env.iter().try_for_each(|text| no_nul(text, "process.env"))?;
        let malformed = |text: &&String| text.split_once('=').is_none_or(|(key, _)| key.is_empty());
        match self.env.iter().find(malformed) {
            Some(bad) => Err(Error::spec(format!(
                "invalid environment variable {bad:?}: expected NAME=value"
            ))),
            None => Ok(()),
        }
    }
}

fn terminal(process: &Process) -> Result<Terminal> {
    if !process.terminal.unwrap_or(false) {
        return Ok(Terminal::No);
    }
    let Some(size) = process.console_size else { return Ok(Terminal::Yes(None)) };
    match (u16::try_from(size.height()), u16::try_from(size.width())) {
        (Ok(rows), Ok(columns)) => Ok(Terminal::Yes(Some((rows, columns)))),
        _ => Err(Error::spec(format!(
            "consoleSize {} x {}: out of range",
            size.height(),
            size.width()
        ))),
    }
}

fn user(user: &oci::User) -> Result<User> {
    let additional_gids = user.additional_gids().clone().unwrap_or_default();
    // u32::MAX means "leave as it is" to setresuid and its kin
    if [user.uid(), user.gid()].contains(&u32::MAX) || additional_gids.contains(&u32::MAX) {
        return Err(Error::spec(format!("process.user: {} is no id", u32::MAX)));
    }
    Ok(User {
        uid: user.uid(),
        gid: user.gid(),
        umask: user.umask().map(|umask| umask & 0o777),
        additional_gids,
    })
}

fn label(label: Option<&String>, what: &str) -> Result<Option<String>> {
    let label = non_empty(label);
    label.iter().try_for_each(|label| no_nul(label, what))?;
    Ok(label)
}

fn oom_score_adj(value: Option<i32>) -> Result<Option<i32>> {
    match value {
        Some(value) if !(-1000..=1000).contains(&value) => {
            Err(Error::spec(format!("oomScoreAdj {value}: expected -1000 to 1000")))
        }
        value => Ok(value),
    }
}

fn rlimits(limits: &[oci::PosixRlimit]) -> Result<Vec<Rlimit>> {
    let mut list: Vec<Rlimit> = Vec::new();
    for limit in limits {
        let resource = resource(limit.typ())?;
        if list.iter().any(|other| other.resource == resource) {
            return Err(Error::spec(format!("duplicate rlimit {}", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::spec(format!(
                "rlimit {}: soft {} is above hard {}",
                limit.typ(),
                limit.soft(),
                limit.hard()
            )));
        }
        list.push(Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(list)
}

fn resource(kind: oci::PosixRlimitType) -> Result<Resource> {
    use oci::PosixRlimitType as T;
    Ok(match kind {
        T::RlimitCpu => Resource::Cpu,
        T::RlimitFsize => Resource::Fsize,
        T::RlimitData => Resource::Data,
        T::RlimitStack => Resource::Stack,
        T::RlimitCore => Resource::Core,
        T::RlimitRss => Resource::Rss,
        T::RlimitNproc => Resource::Nproc,
        T::RlimitNofile => Resource::Nofile,
        T::RlimitMemlock => Resource::Memlock,
        T::RlimitAs => Resource::As,
        T::RlimitLocks => Resource::Locks,
        T::RlimitSigpending => Resource::Sigpending,
        T::RlimitMsgqueue => Resource::Msgqueue,
        T::RlimitNice => Resource::Nice,
        T::RlimitRtprio => Resource::Rtprio,
        T::RlimitRttime => Resource::Rttime,
    })
}

/// Numbers of <linux/sched.h>.
fn scheduler(scheduler: &oci::Scheduler) -> Result<SchedulerAttributes> {
    use oci::LinuxSchedulerPolicy as P;
    let policy = match scheduler.policy() {
        P::SchedOther => 0,
        P::SchedFifo => 1,
        P::SchedRr => 2,
        P::SchedBatch => 3,
        P::SchedIso => 4,
        P::SchedIdle => 5,
        P::SchedDeadline => 6,
    };
    let mut flags = 0;
    for flag in scheduler.flags().as_deref().unwrap_or_default() {
        use oci::LinuxSchedulerFlag as F;
        flags |= match flag {
            F::SchedResetOnFork => 0x01,
            F::SchedFlagReclaim => 0x02,
            F::SchedFlagDLOverrun => 0x04,
            F::SchedFlagKeepPolicy => 0x08,
            F::SchedFlagKeepParams => 0x10,
            F::SchedFlagUtilClampMin => 0x20,
            F::SchedFlagUtilClampMax => 0x40,
        };
    }
    let priority = scheduler.priority().unwrap_or(0);
    let priority = u32::try_from(priority)
        .map_err(|error| Error::spec(format!("scheduler.priority {priority}: {error}")))?;
    Ok(SchedulerAttributes {
        size: 0,
        policy,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    })
}

/// Numbers of <linux/ioprio.h>.
fn io_priority(priority: &oci::LinuxIOPriority) -> Result<i32> {
    let class = match priority.class() {
        oci::IOPriorityClass::IoprioClassRt => 1,
        oci::IOPriorityClass::IoprioClassBe => 2,
        oci::IOPriorityClass::IoprioClassIdle => 3,
    };
    match i32::try_from(priority.priority()) {
        Ok(level) if (0..=7).contains(&level) => Ok((class << 13) | level),
        _ => Err(Error::spec(format!(
            "ioPriority.priority {}: expected 0 to 7",
            priority.priority()
        ))),
    }
}

/// A list as the kernel writes it: `0-3,7`.
fn cpu_set(list: &str) -> Result<CpuSet> {
    let bad = || Error::spec(format!("execCPUAffinity {list:?}: expected a list like 0-3,7"));
    let mut set = CpuSet::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|cpu| digits && *cpu < CpuSet::MAX_CPU)
        };
        let (first, last) = number(first).zip(number(last)).ok_or_else(bad)?;
        if first > last {
            return Err(bad());
        }
        (first..=last).for_each(|cpu| set.set(cpu));
    }
    Ok(set)
}

/// What oci-spec reads more strictly than Go: a user that is left out is root, as numbers left out are 0.
pub(super) fn lenient(process: &mut serde_json::Value) {
    let Some(process) = process.as_object_mut() else { return };
    let user = process.entry("user").or_insert_with(|| serde_json::json!({}));
    if let Some(user) = user.as_object_mut() {
        for key in ["uid", "gid"] {
            user.entry(key).or_insert_with(|| 0.into());
        }
    }
    // the specification's name and the one that oci-spec knows
    let flags = process.get_mut("scheduler").and_then(|scheduler| scheduler.get_mut("flags"));
    for flag in flags.and_then(serde_json::Value::as_array_mut).into_iter().flatten() {
        if flag == "SCHED_FLAG_RESET_ON_FORK" {
            *flag = "SCHED_RESET_ON_FORK".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::minimal;
    use serde_json::json;

    #[test]
    fn a_process_is_read_whole() {
        let plan = minimal(|c| {
            let process = &mut c["process"];
            process["terminal"] = json!(true);
            process["consoleSize"] = json!({"height": 25, "width": 80});
            process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]);
            process["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 7});
            process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
            process["user"]["umask"] = json!(0o27);
            process["execCPUAffinity"] = json!({"initial": "", "final": "0-1,3"});
        })
        .unwrap()
        .process;
        assert_eq!(plan.terminal, Terminal::Yes(Some((25, 80))));
        assert_eq!(plan.rlimits[0], Rlimit { resource: Resource::Nofile, soft: 10, hard: 20 });
        assert_eq!(plan.io_priority, Some(3 << 13 | 7));
        assert_eq!(plan.scheduler.unwrap().policy, 3);
        assert_eq!(plan.user.umask, Some(0o27));
        assert!(plan.initial_affinity.is_none());
        assert_eq!(plan.final_affinity.unwrap().count(), 3);
        assert_eq!(plan.capabilities, Capabilities::none());
    }

    #[test]
    fn what_a_process_cannot_be_is_refused() {
        for (key, value, expected) in [
            ("args", json!([]), "args must not be empty"),
            ("args", json!(["a\u{0}"]), "NUL"),
            ("cwd", json!("tmp"), "cwd must be an absolute path"),
            ("cwd", json!(""), "cwd property must not be empty"),
            ("env", json!(["=x"]), "environment"),
            ("env", json!(["x"]), "environment"),
            ("user", json!({"uid": u32::MAX}), "is no id"),
            ("oomScoreAdj", json!(2000), "-1000 to 1000"),
            ("rlimits", json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]), "above hard"),
            ("rlimits", json!([{"type": "RLIMIT_NONE", "soft": 2, "hard": 1}]), "RLIMIT_NONE"),
            ("execCPUAffinity", json!({"initial": "3-1"}), "CPU"),
            ("execCPUAffinity", json!({"initial": "0, 1"}), "CPU"),
            ("execCPUAffinity", json!({"final": "+1"}), "CPU"),
            ("execCPUAffinity", json!({"final": "1,"}), "CPU"),
            ("execCPUAffinity", json!({"final": "1024"}), "CPU"),
        ] {
            let error = minimal(|c| c["process"][key] = value.clone()).unwrap_err();
            assert!(error.to_string().contains(expected), "{key} {value}: {error}");
        }
    }
}
