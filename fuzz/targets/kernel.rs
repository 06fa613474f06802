//! Invariant: whatever is in a file of procfs, sysfs or a control group, or in device-mapper's answer, it is read or refused
//! without a panic: stat, cgroup, the kernel's command line, devices.list, every file of counters.
#![no_main]

use libfuzzer_sys::fuzz_target;

// the shim is a program: its parser is built in here, as it is
#[allow(dead_code)]
#[path = "../../shim/src/cgroup.rs"]
mod cgroup;
/// What of the shim's errors that file names.
#[allow(dead_code)]
mod error {
    #[derive(Debug)]
    pub(crate) enum Error {
        Invalid { what: &'static str, value: String, reason: String },
        Io(String, std::io::Error),
    }
    pub(crate) type Result<T> = std::result::Result<T, Error>;

    impl Error {
        pub(crate) fn io(_call: &str, path: &str) -> impl FnOnce(std::io::Error) -> Self {
            let path = path.to_owned();
            move |source| Self::Io(path, source)
        }
    }
}

fuzz_target!(|input: &[u8]| {
    hallmark_trust::fuzzing::command_line(input);
    hallmark_sys::dm::answers(input);
    if let Ok(text) = std::str::from_utf8(input) {
        hallmark_runtime::fuzzing::kernel_files(text);
        let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
        drop((cgroup::locate(first, second), cgroup::keyed(first, second)));
    }
});
