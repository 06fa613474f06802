//! Invariants: a CMS signature and a file of certificates are read or refused, without a panic; no signature made of any bytes
//! counts for a seal or a policy whose signer did not sign it.
#![no_main]

use std::sync::LazyLock;

use hallmark_seal::{Claim, Keyring, Revocations, SealDigest, Timestamp, open_policy};
use libfuzzer_sys::fuzz_target;

const CA: &[u8] = include_bytes!("../../integrity/seal/tests/vectors/ca.pem");
const SEAL: &[u8] = include_bytes!("../../integrity/seal/tests/vectors/seal.json");
const POLICY: &[u8] = include_bytes!("../../integrity/seal/tests/vectors/policy.pol");
static KEYS: LazyLock<Keyring> = LazyLock::new(|| Keyring::from_pem(CA).expect("a certificate"));
static NOW: LazyLock<Timestamp> = LazyLock::new(|| "2027-06-01T00:00:00Z".parse().expect("a moment"));

fuzz_target!(|input: &[u8]| {
    drop(Keyring::from_pem(input));
    if let Ok(policy) = open_policy(input, &KEYS, &Revocations::default(), *NOW) {
        // one vector is the seal, signed in this form
        assert!(policy == POLICY || policy == SEAL, "a policy that nobody signed");
    }
    for seal in [SEAL, &[SEAL, b" "].concat()] {
        let claim = Claim { seal: seal.to_vec(), signature: input.to_vec(), layer_signatures: vec![] };
        if let Ok(verified) = claim.verify(&KEYS, &Revocations::default(), *NOW) {
            assert_eq!(verified.digest(), SealDigest::of(SEAL), "a seal that nobody signed");
        }
    }
    // the seal's own signature, with the input in place of a layer's
    let signature = include_bytes!("../../integrity/seal/tests/vectors/seal.leaf.p7s").to_vec();
    let claim = Claim { seal: SEAL.to_vec(), signature, layer_signatures: vec![Some(input.to_vec()); 3] };
    if let Ok(verified) = claim.verify(&KEYS, &Revocations::default(), *NOW) {
        for index in 0..4 {
            let _ = verified.layer_signed(index);
        }
    }
});
