//! Scheduling, processors, I/O priority, memory policy and personality.

use hallmark_sys::process;

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
