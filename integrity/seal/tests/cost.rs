//! What the gate spends on signatures for an image of twenty layers: the seal's CMS with its chain. Where the policy is a
//! file, because the kernel has no IPE, a PKCS#7 a layer comes on top; there the layers are hashed as well, which costs a
//! thousand times as much. The best of many rounds counts: a busy machine makes the others worse.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests stop at the first thing that is not as it should be, and say what they measured"
)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hallmark_seal::{Claim, Keyring, Revocations, Seal, SealedLayer, SigningKey};
use hallmark_verity::RootHash;

const LAYERS: u8 = 20;
/// For the seal, which is all that a launch needs where the kernel checks the layers.
const LIMIT: Duration = Duration::from_millis(1);
const LIMIT_WITH_LAYERS: Duration = Duration::from_millis(5);

fn vector(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)).unwrap()
}

fn sealed(key: &str, certificate: &str) -> Claim {
    let mut seal = Seal::parse(&vector("seal.json")).unwrap();
    let first = seal.layers[0].clone();
    let layer =
        |number| SealedLayer { root_hash: RootHash::from_bytes([number; 32]), ..first.clone() };
    seal.layers = (0..LAYERS).map(layer).collect();
    let key = SigningKey::from_pem(&vector(key), &vector(certificate)).unwrap();
    key.seal(&seal).unwrap()
}

fn best(mut round: impl FnMut()) -> Duration {
    (0..60)
        .map(|_| {
            let started = Instant::now();
            round();
            started.elapsed()
        })
        .min()
        .unwrap()
}

#[test]
fn a_seal_of_twenty_layers_costs_less_than_a_millisecond() {
    let now = "2027-06-01T00:00:00Z".parse().unwrap();
    let keyring = Keyring::from_pem(&[vector("ca.pem"), vector("p256.pem")].concat()).unwrap();
    let revocations = Revocations::parse(b"version = 1").unwrap();
    for (key, certificate) in [("leaf.key", "leaf.pem"), ("p256.key", "p256.pem")] {
        let claim = sealed(key, certificate);
        let verify = || claim.verify(&keyring, &revocations, now).unwrap();
        let seal_only = best(|| drop(verify()));
        let with_layers = best(|| {
            let seal = verify();
            assert!((0..usize::from(LAYERS)).all(|index| seal.layer_signed(index)));
        });
        println!("{certificate}: the seal {seal_only:?}, with {LAYERS} layers {with_layers:?}");
        assert!(seal_only < LIMIT, "the seal takes {seal_only:?}, expected less than {LIMIT:?}");
        assert!(
            with_layers < LIMIT_WITH_LAYERS,
            "with layers {with_layers:?}, expected less than {LIMIT_WITH_LAYERS:?}"
        );
    }
}
