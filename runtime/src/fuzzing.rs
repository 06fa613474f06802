//! What the fuzz targets reach: parsers that have no other door.

use crate::state::Record;

/// The hand-over file.
pub fn hand_over(bytes: &[u8]) {
    drop(crate::gate::hand_over(bytes));
}

/// A state file: what was read is written, and read again as the same.
pub fn state(text: &str) {
    let Ok(record) = Record::parse(text) else { return };
    let written = record.text().expect("what was read can be written");
    let again = Record::parse(&written).expect("what was written can be read");
    assert_eq!(again.text().expect("what was read can be written"), written);
}

/// A mount table.
pub fn mount_table(text: &str) {
    for line in text.lines() {
        drop((crate::init::v1_mount(line), crate::launch::host_view(line)));
    }
    crate::cgroup::fuzzing::mount_table(text);
}

/// Files of procfs, of a control group, and the output of `ps`.
pub fn kernel_files(text: &str) {
    drop(crate::state::process_stat(text));
    drop(crate::operation::ps::table(text, &[1]));
    crate::cgroup::fuzzing::kernel_files(text);
}
