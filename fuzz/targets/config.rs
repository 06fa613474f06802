//! Invariant: a container's configuration is read or refused, without a panic.
#![no_main]

use std::path::Path;

use hallmark_runtime::spec::Plan;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| drop(Plan::parse(input, Path::new("/bundle"))));
