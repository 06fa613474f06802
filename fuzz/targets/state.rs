//! Invariant: a state file is read or refused, without a panic; what was read is written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| hallmark_runtime::fuzzing::state(text));
