//! What the fuzz targets reach: parsers that have no other door.

/// The kernel's command line.
pub fn command_line(bytes: &[u8]) {
    let _ = crate::proc_mem::force_override(bytes);
}
