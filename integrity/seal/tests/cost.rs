//! What the gate pays for a claim at each launch, beside the signatures in it.
//!
//! Nothing is remembered between launches: a seal is verified by its content each time. That has to stay cheap whatever the
//! machine, so it is held to what the bare signatures cost on it: `ring`'s verification of one, times the number of
//! them. What comes on top is reading: the seal's JSON, certificates, CMS.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests stop at the first thing that is not as it should be, and say what they measured"
)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use der::Decode as _;
use hallmark_seal::{Claim, Keyring, Revocations, Seal, SealedLayer, SigningKey};
use hallmark_verity::RootHash;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};

const LAYERS: u8 = 20;

/// A seal costs at most so many of its bare signatures; what is read is read unoptimized in a debug build.
const SEAL: f64 = if cfg!(debug_assertions) { 30.0 } else { 8.0 };

/// With its layers' signatures, one of which is smaller than the seal's.
const WITH_LAYERS: f64 = if cfg!(debug_assertions) { 10.0 } else { 3.0 };

fn vector(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)).unwrap()
}

fn sealed(key: &SigningKey) -> Claim {
    let mut seal = Seal::parse(&vector("seal.json")).unwrap();
    let first = seal.layers[0].clone();
    let layer =
        |number| SealedLayer { root_hash: RootHash::from_bytes([number; 32]), ..first.clone() };
    seal.layers = (0..LAYERS).map(layer).collect();
    key.seal(&seal).unwrap()
}

/// The least time of one round: what else the machine does only adds to it.
fn best(mut round: impl FnMut()) -> f64 {
    let timed = (0..200).map(|_| {
        let started = Instant::now();
        round();
        started.elapsed()
    });
    timed.min().unwrap_or(Duration::MAX).as_secs_f64()
}

/// The time of verifying one signature of this key and nothing else.
fn bare(key: &SigningKey, certificate: &str, algorithm: &'static dyn VerificationAlgorithm) -> f64 {
    let pem = String::from_utf8(vector(certificate)).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let certificate = BASE64_STANDARD.decode(body).unwrap();
    let certificate = x509_cert::Certificate::from_der(&certificate).unwrap();
    let spki = certificate.tbs_certificate().subject_public_key_info();
    let public = UnparsedPublicKey::new(algorithm, spki.subject_public_key.raw_bytes().to_vec());
    let root_hash = RootHash::from_bytes([7; 32]);
    // the signature is the last field of a PKCS#7 without attributes: an OCTET STRING that ends where all ends
    let der = key.sign_root_hash(&root_hash).unwrap();
    let signature = (1..der.len()).map(|at| &der[at..]).find(|end| {
        let octets = |header: usize| end.len() - header;
        end.starts_with(&[4, 0x82, 1, 0]) && octets(4) == 256
            || end[0] == 4 && end.get(2) == Some(&0x30) && usize::from(end[1]) == octets(2)
    });
    let signature = signature.unwrap();
    let signature = &signature[if signature[1] == 0x82 { 4 } else { 2 }..];
    let signed = root_hash.to_hex();
    best(|| public.verify(signed.as_bytes(), signature).unwrap())
}

#[test]
fn a_seal_costs_little_more_than_its_signatures() {
    let now = "2027-06-01T00:00:00Z".parse().unwrap();
    let keyring = Keyring::from_pem(&[vector("ca.pem"), vector("p256.pem")].concat()).unwrap();
    let revocations = Revocations::parse(b"version = 1").unwrap();
    let cases: [(&str, &'static dyn VerificationAlgorithm, f64); 2] = [
        // the seal's and the leaf certificate's
        ("leaf", &RSA_PKCS1_2048_8192_SHA256, 2.0),
        // a certificate of the keyring itself
        ("p256", &ECDSA_P256_SHA256_ASN1, 1.0),
    ];
    for (name, algorithm, signatures) in cases {
        let certificate = format!("{name}.pem");
        let key =
            SigningKey::from_pem(&vector(&format!("{name}.key")), &vector(&certificate)).unwrap();
        let claim = sealed(&key);
        let bare = bare(&key, &certificate, algorithm);
        let verify = || claim.verify(&keyring, &revocations, now).unwrap();
        let seal = best(|| drop(verify()));
        let with_layers = best(|| {
            let seal = verify();
            assert!((0..usize::from(LAYERS)).all(|index| seal.layer_signed(index)));
        });
        let (alone, all) =
            (seal / (bare * signatures), with_layers / (bare * (signatures + f64::from(LAYERS))));
        println!(
            "{name}: a bare signature {:.0} us; the seal {:.0} us, {alone:.1} of its signatures; with {LAYERS} layers \
             {:.0} us, {all:.1} of theirs",
            bare * 1e6,
            seal * 1e6,
            with_layers * 1e6
        );
        assert!(
            alone < SEAL,
            "{name}: the seal costs {alone:.1} of its signatures, at most {SEAL}"
        );
        assert!(all < WITH_LAYERS, "{name}: with layers {all:.1}, at most {WITH_LAYERS}");
    }
}
