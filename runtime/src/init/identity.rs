//! Host name, domain name and sysctls.

use crate::error::{Context, Result};
use crate::spec::Plan;
use hallmark_sys::procfs::Procfs;

pub(super) fn set(plan: &Plan, procfs: &Procfs) -> Result<()> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .context(|| format!("sethostname({name:?})"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .context(|| format!("setdomainname({name:?})"))?;
    }
    for sysctl in &plan.sysctls {
        procfs.write(&sysctl.file, &sysctl.value)?;
    }
    Ok(())
}
