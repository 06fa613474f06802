//! What we sign, read by OpenSSL: the other direction of `verify.rs`.
//!
//! Needs the `openssl` command; without it the tests say so and end. RSA PKCS#1 v1.5 is deterministic, so there ours
//! must be OpenSSL's bytes, which the kernel is known to take
//! (`openssl smime -sign -nocerts -noattr -binary -outform DER`).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests stop at the first thing that is not as it should be"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hallmark_seal::{Seal, SigningKey};

fn vectors() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn vector(name: &str) -> Vec<u8> {
    fs::read(vectors().join(name)).unwrap()
}

fn key(name: &str, certificate: &str) -> SigningKey {
    SigningKey::from_pem(&vector(&format!("{name}.key")), &vector(certificate)).unwrap()
}

/// `None` where there is no OpenSSL.
fn openssl(directory: &Path, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new("openssl");
    match command.args(arguments).current_dir(directory).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: needs openssl: {error}");
            None
        }
    }
}

#[test]
fn rsa_signatures_are_the_bytes_openssl_makes() {
    let root_hash = String::from_utf8(vector("roothash")).unwrap().parse().unwrap();
    let leaf = key("leaf", "leaf.pem");
    assert_eq!(leaf.sign_root_hash(&root_hash).unwrap(), vector("roothash.leaf.p7s"));
    assert_eq!(leaf.sign_policy(&vector("policy.pol")).unwrap(), vector("policy.leaf.p7b"));
    let seal = Seal::parse(&vector("seal.json")).unwrap();
    assert_eq!(leaf.seal(&seal).unwrap().signature, vector("seal.leaf.p7s"));
}

#[test]
fn openssl_verifies_our_seals() {
    let seal = Seal::parse(&vector("seal.json")).unwrap();
    for (name, certificate) in [
        ("leaf", "leaf.pem"),
        ("other", "other.pem"),
        ("p256", "p256.pem"),
        ("deep", "deep-chain.pem"),
    ] {
        let claim = key(name, certificate).seal(&seal).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("seal"), &claim.seal).unwrap();
        fs::write(directory.path().join("cms"), &claim.signature).unwrap();
        let ca = vectors().join("ca.pem");
        for tool in ["cms", "smime"] {
            let arguments = [
                tool,
                "-verify",
                "-binary",
                "-purpose",
                "any",
                "-inform",
                "DER",
                "-in",
                "cms",
                "-content",
                "seal",
                "-CAfile",
                ca.to_str().unwrap(),
                "-out",
                "read",
            ];
            let Some(output) = openssl(directory.path(), &arguments) else { return };
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}, {tool}: {said}");
            assert_eq!(fs::read(directory.path().join("read")).unwrap(), claim.seal);
        }
        // the untouched twin is above: one byte more is refused
        fs::write(directory.path().join("seal"), [&claim.seal[..], b" "].concat()).unwrap();
        let arguments = [
            "cms",
            "-verify",
            "-binary",
            "-purpose",
            "any",
            "-inform",
            "DER",
            "-in",
            "cms",
            "-content",
            "seal",
            "-CAfile",
            ca.to_str().unwrap(),
            "-out",
            "read",
        ];
        let Some(output) = openssl(directory.path(), &arguments) else { return };
        assert!(!output.status.success(), "{name}: a longer seal");
    }
}

#[test]
fn openssl_verifies_our_root_hash_signatures() {
    let root_hash = String::from_utf8(vector("roothash")).unwrap().parse().unwrap();
    for name in ["leaf", "p256"] {
        let certificate = format!("{name}.pem");
        let der = key(name, &certificate).sign_root_hash(&root_hash).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("p7s"), &der).unwrap();
        let [content, certificate, ca] = ["roothash", &certificate, "ca.pem"]
            .map(|file| vectors().join(file).into_os_string().into_string().unwrap());
        let arguments = [
            "smime",
            "-verify",
            "-binary",
            "-purpose",
            "any",
            "-inform",
            "DER",
            "-in",
            "p7s",
            "-content",
            &content,
            "-certfile",
            &certificate,
            "-CAfile",
            &ca,
            "-out",
            "read",
        ];
        let Some(output) = openssl(directory.path(), &arguments) else { return };
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
