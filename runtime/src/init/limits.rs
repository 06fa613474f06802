//! Scheduling, processors, I/O priority, memory policy and personality.

use hallmark_sys::process;
use rustix::io::Errno;
use rustix::process::Rlimit;
use rustix::thread::CpuSet;

use super::{Common, Limits};
use crate::error::{Context, Error, Result};
use crate::spec::{Plan, ProcessPlan};

/// `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity.final`.
pub(super) fn schedule(plan: &ProcessPlan) -> Result<()> {
    every_processor()?;
    if let Some(attributes) = &plan.scheduler {
        process::set_scheduler(attributes).map_err(|error| match error.errno() {
            // what sched_setattr(2) says of a processor list that is not every processor
            Some(Errno::PERM) => Error::from(error)
                .within("process scheduler can't be used together with AllowedCPUs"),
            _ => Error::from(error).within("scheduler"),
        })?;
    }
    if let Some(priority) = plan.io_priority {
        process::set_io_priority(priority).context(|| "ioPriority")?;
    }
    if let Some(cpus) = &plan.final_affinity {
        rustix::thread::sched_setaffinity(None, cpus).context(|| "execCPUAffinity.final")?;
    }
    Ok(())
}

/// Undoes what whoever started the runtime was bound to: the cpuset alone says where a container runs.
fn every_processor() -> Result<()> {
    let mut cpus = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| cpus.set(cpu));
    rustix::thread::sched_setaffinity(None, &cpus).context(|| "reset the processors")
}

/// `process.rlimits`, unless the runtime sets them.
pub(super) fn resources(common: &Common<'_>) -> Result<()> {
    if common.limits == Limits::Runtime {
        return Ok(());
    }
    for limit in &common.process.rlimits {
        let new = Rlimit { current: limit.soft(), maximum: limit.hard() };
        rustix::process::setrlimit(limit.resource, new)
            .context(|| format!("error setting rlimit {:?}", limit.resource))?;
    }
    Ok(())
}

/// `linux.personality` and `linux.memoryPolicy`.
pub(super) fn personality_and_memory(plan: &Plan) -> Result<()> {
    if let Some(persona) = plan.personality {
        process::set_personality(persona).context(|| "personality")?;
    }
    if let Some(policy) = &plan.memory_policy {
        process::set_memory_policy(policy.mode, &policy.nodes).context(|| "memoryPolicy")?;
    }
    Ok(())
}
