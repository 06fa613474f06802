//! Scheduling, processors, I/O priority, memory policy and personality.

use hallmark_sys::process;
use rustix::process::Rlimit;

use super::{Common, Limits};

use crate::error::{Context, Result};
use crate::spec::{Plan, ProcessPlan};

/// `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity.final`.
pub(super) fn schedule(plan: &ProcessPlan) -> Result<()> {
    if let Some(attributes) = &plan.scheduler {
        process::set_scheduler(attributes).context(|| "scheduler")?;
    }
    if let Some(priority) = plan.io_priority {
        process::set_io_priority(priority).context(|| "ioPriority")?;
    }
    if let Some(cpus) = &plan.final_affinity {
        rustix::thread::sched_setaffinity(None, cpus).context(|| "execCPUAffinity.final")?;
    }
    Ok(())
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
