//! Invariant: a hand-over file is read or refused, without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| hallmark_runtime::fuzzing::hand_over(input));
