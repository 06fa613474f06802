//! What the fuzz targets reach of control groups.

use super::devices::Policy;
use super::{group, layout, stats};

/// Where a mount table says that control groups are.
pub(crate) fn mount_table(text: &str) {
    drop(layout::parse_mountinfo(text));
}

/// Files of a control group, and in which a process is.
pub(crate) fn kernel_files(text: &str) {
    for controller in ["", "memory"] {
        let _ = group::path_in(text, controller);
    }
    stats::parse(text);
    if let Ok(policy) = Policy::parse_list(text) {
        drop(policy.transition(&policy));
    }
}
