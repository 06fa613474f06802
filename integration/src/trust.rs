//! What a node trusts: keys, policies and its configuration, written to `/etc/hallmark`.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::kit::Kit;
use crate::table::Site;

/// Puts the site's keys and configuration in place.
pub(crate) fn install(_kit: &Kit, _site: Site) -> Result<()> {
    fs::create_dir_all(Path::new("/etc/hallmark"))?;
    Ok(())
}
