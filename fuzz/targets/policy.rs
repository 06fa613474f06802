//! Invariants: an IPE policy, its pins and a node configuration are read or refused, without a panic; a policy that was read
//! is printed and read again as the same.
#![no_main]

use hallmark_trust::config::NodeConfig;
use hallmark_trust::ipe::{Pins, Policy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    drop(Pins::parse(input));
    if let Ok(policy) = Policy::parse(input) {
        let printed = policy.to_string();
        let again = Policy::parse(printed.as_bytes()).expect("what was printed can be read");
        assert_eq!(again.to_string(), printed);
        let _ = policy.unverified_execute();
    }
    if let Ok(text) = std::str::from_utf8(input) {
        drop(NodeConfig::parse(text));
    }
});
