//! Invariant: whatever is in a mount table, it is read or refused, without a panic, by each of its readers.
#![no_main]

use libfuzzer_sys::fuzz_target;

// the snapshotter is a program: its parser is built in here, as it is
#[allow(dead_code)]
#[path = "../../snapshotter/src/mountinfo.rs"]
mod mountinfo;
/// What of the snapshotter's errors that file names.
#[allow(dead_code)]
mod error {
    #[derive(Debug)]
    pub(crate) struct Error(String, std::io::Error);
    pub(crate) type Result<T> = std::result::Result<T, Error>;

    impl Error {
        pub(crate) fn io(what: String) -> impl FnOnce(std::io::Error) -> Self {
            move |source| Self(what, source)
        }
    }
}

fuzz_target!(|input: &[u8]| {
    drop(hallmark_trust::evidence::mountinfo::parse(input));
    for line in input.split(|byte| *byte == b'\n') {
        drop(mountinfo::parse(line));
    }
    if let Ok(text) = std::str::from_utf8(input) {
        hallmark_runtime::fuzzing::mount_table(text);
    }
});
