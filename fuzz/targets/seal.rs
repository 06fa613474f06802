//! Invariants: seals, claims files, revocations and referrers are read or refused, without a panic; a claims file that was
//! read is written and read again as the same.
#![no_main]

use hallmark_seal::{ClaimFile, Revocations, Seal, referrer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    drop(Seal::parse(input));
    drop(Revocations::parse(input));
    drop(referrer::Referrer::parse(input));
    if let Ok(file) = ClaimFile::parse(input) {
        let bytes = file.encode().expect("what was read can be written");
        assert_eq!(ClaimFile::parse(&bytes).expect("what was written can be read"), file);
    }
});
