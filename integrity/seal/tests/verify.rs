//! The table of claims that must not verify, each beside one that does, all made by OpenSSL.
//!
//! `vectors/make.sh` holds the command lines. The tests bring their own clock: the seal is issued 2027-01-01 and ends
//! 2030-01-01, the certificates are valid for a hundred years.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first thing that is not as it should be"
)]

use std::fs;
use std::path::PathBuf;

use hallmark_seal::{
    Claim, ErrorKind, Keyring, Revocations, Seal, SealDigest, SigningKey, Timestamp, open_policy,
};

const NOW: &str = "2027-06-01T00:00:00Z";

fn vector(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn keyring(names: &[&str]) -> Keyring {
    let pem: Vec<u8> = names.iter().flat_map(|name| vector(&format!("{name}.pem"))).collect();
    Keyring::from_pem(&pem).unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn at(text: &str) -> impl Fn(&Claim) -> Result<(), ErrorKind> {
    let now = time(text);
    move |claim| outcome(claim, &["ca"], "version = 1", now)
}

fn outcome(
    claim: &Claim,
    keys: &[&str],
    revocations: &str,
    now: Timestamp,
) -> Result<(), ErrorKind> {
    let revocations = Revocations::parse(revocations.as_bytes()).unwrap();
    match claim.verify(&keyring(keys), &revocations, now) {
        Ok(seal) => {
            assert_eq!(*seal.seal(), claim.alleged().unwrap());
            Ok(())
        }
        Err(error) => {
            assert!(!error.found().is_empty() && !error.expected().is_empty(), "{error}");
            Err(error.kind())
        }
    }
}

/// The seal of the vectors with a CMS of theirs, and a good signature for its first layer.
fn claim(signature: &str) -> Claim {
    let layer = Some(vector("roothash.leaf.p7s"));
    Claim {
        seal: vector("seal.json"),
        signature: vector(signature),
        layer_signatures: vec![layer, None, None, None],
    }
}

fn key(name: &str) -> SigningKey {
    let certificate = vector(&format!("{name}.pem"));
    SigningKey::from_pem(&vector(&format!("{name}.key")), &certificate).unwrap()
}

/// The vectors' seal, changed and signed anew by us.
fn resealed(change: impl FnOnce(&mut Seal)) -> Claim {
    let mut seal = Seal::parse(&vector("seal.json")).unwrap();
    change(&mut seal);
    key("leaf").seal(&seal).unwrap()
}

#[test]
fn signatures_by_openssl_verify() {
    for (signature, keys) in [
        ("seal.leaf.p7s", &["ca"][..]),
        ("seal.leaf.p7s", &["leaf"]),
        ("seal.leaf.p7s", &["stranger", "leaf", "ca"]),
        ("seal.other.p7s", &["ca"]),
        ("seal.p256.p7s", &["ca"]),
        ("seal.p384.p7s", &["ca"]),
        ("seal.deep.p7s", &["ca"]),
        ("seal.deep.p7s", &["middle"]),
        ("seal.deep-alone.p7s", &["deep"]),
        ("seal.deep-alone.p7s", &["ca", "middle"]),
        ("seal.stranger.p7s", &["stranger"]),
        ("seal.under.p7s", &["sub"]),
    ] {
        assert_eq!(
            outcome(&claim(signature), keys, "version = 1", time(NOW)),
            Ok(()),
            "{signature} {keys:?}"
        );
    }
}

#[test]
fn a_verified_seal_says_what_was_signed() {
    let claim = claim("seal.leaf.p7s");
    let none = Revocations::default();
    let verified = claim.verify(&keyring(&["ca"]), &none, time(NOW)).unwrap();
    let names: Vec<String> = verified.stack().iter().map(ToString::to_string).collect();
    // base, app, empty: the lower of the two empty layers is left out
    assert_eq!(names.len(), 3);
    assert_eq!(names[0], String::from_utf8(vector("roothash")).unwrap());
    assert_eq!(verified.stack_id(), claim.stack_id().unwrap());
    assert_eq!(verified.digest(), SealDigest::of(&vector("seal.json")));
    assert!(
        verified.signer().starts_with("CN=leaf,O=Hallmark test (sha256:"),
        "{}",
        verified.signer()
    );
    let signed: Vec<bool> = (0..5).map(|index| verified.layer_signed(index)).collect();
    assert_eq!(signed, [true, false, false, false, false]);
}

#[test]
fn signers_that_do_not_count_are_refused() {
    for (signature, keys, expected) in [
        ("seal.leaf.p7s", &["stranger"][..], ErrorKind::SignerUnknown),
        ("seal.leaf.p7s", &["other"], ErrorKind::SignerUnknown),
        ("seal.stranger.p7s", &["ca"], ErrorKind::SignerUnknown),
        ("seal.deep-alone.p7s", &["ca"], ErrorKind::SignerUnknown),
        ("seal.noca.p7s", &["ca"], ErrorKind::Certificate),
        ("seal.bynoca.p7s", &["ca"], ErrorKind::Certificate),
        ("seal.under.p7s", &["ca"], ErrorKind::Certificate),
        ("seal.under.p7s", &["middle"], ErrorKind::Certificate),
        ("seal.cipher.p7s", &["ca"], ErrorKind::Certificate),
        ("seal.cipher.p7s", &["cipher"], ErrorKind::Certificate),
        ("seal.tls.p7s", &["ca"], ErrorKind::Certificate),
        ("seal.critical.p7s", &["ca"], ErrorKind::Certificate),
        ("seal.small.p7s", &["ca"], ErrorKind::Certificate),
        ("roothash.leaf.p7s", &["ca"], ErrorKind::SignerUnknown),
        ("roothash.leaf.p7s", &["leaf"], ErrorKind::SignatureMismatch),
    ] {
        let found = outcome(&claim(signature), keys, "version = 1", time(NOW));
        assert_eq!(found, Err(expected), "{signature} {keys:?}");
    }
    assert_eq!(at(NOW)(&claim("seal.leaf.p7s")), Ok(()));
}

#[test]
fn forms_that_the_kernel_or_we_do_not_take_are_refused() {
    let good = claim("seal.leaf.p7s");
    let with = |signature: Vec<u8>| Claim { signature, ..good.clone() };
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut signature = good.signature.clone();
        change(&mut signature);
        with(signature)
    };
    for (what, claim, expected) in [
        ("attributes", claim("seal.attributes.p7s"), ErrorKind::SignatureForm),
        ("two signers", claim("seal.two-signers.p7s"), ErrorKind::SignatureForm),
        ("content within", claim("seal.embedded.p7s"), ErrorKind::SignatureForm),
        ("sha512", claim("seal.sha512.p7s"), ErrorKind::SignatureForm),
        ("key identifier", claim("seal.keyid.p7s"), ErrorKind::SignatureForm),
        ("RSA-PSS", claim("seal.pss.p7s"), ErrorKind::SignatureForm),
        ("empty", with(Vec::new()), ErrorKind::Malformed),
        ("PEM", with(vector("leaf.pem")), ErrorKind::Malformed),
        ("a certificate", with(b"\x30\x03\x02\x01\x00".to_vec()), ErrorKind::Malformed),
        ("truncated", changed(|der| der.truncate(der.len() - 1)), ErrorKind::Malformed),
        ("trailing byte", changed(|der| der.push(0)), ErrorKind::Malformed),
        ("indefinite length", changed(|der| der[1] = 0x80), ErrorKind::Malformed),
        ("one bit", changed(|der| *der.last_mut().unwrap() ^= 1), ErrorKind::SignatureMismatch),
        ("too long", with(vec![0x30; (64 << 10) + 1]), ErrorKind::Limit),
    ] {
        assert_eq!(at(NOW)(&claim), Err(expected), "{what}");
    }
    assert_eq!(at(NOW)(&good), Ok(()));
}

/// No byte of a claim can be changed without it being noticed.
#[test]
fn every_flipped_byte_of_seal_and_signature_is_refused() {
    let good = claim("seal.leaf.p7s");
    let (keyring, none) = (keyring(&["ca"]), Revocations::default());
    let verifies = |claim: &Claim| claim.verify(&keyring, &none, time(NOW)).is_ok();
    assert!(verifies(&good));
    for index in 0..good.seal.len() {
        let mut bad = good.clone();
        bad.seal[index] ^= 0x20;
        assert!(!verifies(&bad), "seal byte {index}");
    }
    for index in 0..good.signature.len() {
        let mut bad = good.clone();
        bad.signature[index] ^= 1;
        assert!(!verifies(&bad), "signature byte {index}");
    }
}

#[test]
fn times_and_serials_are_held() {
    let good = claim("seal.leaf.p7s");
    for (now, expected) in [
        (NOW, Ok(())),
        ("2026-12-31T23:55:00Z", Ok(())), // five minutes ahead of us
        ("2026-12-31T23:54:59Z", Err(ErrorKind::Expired)),
        ("2030-01-01T00:00:00Z", Ok(())),
        ("2030-01-01T00:00:01Z", Err(ErrorKind::Expired)),
        ("2020-01-01T00:00:00Z", Err(ErrorKind::CertificateTime)),
        ("2200-01-01T00:00:00Z", Err(ErrorKind::CertificateTime)),
    ] {
        assert_eq!(at(now)(&good), expected, "{now}");
    }
    let early = resealed(|seal| seal.issued = time("2020-01-01T00:00:00Z"));
    assert_eq!(at(NOW)(&early), Err(ErrorKind::CertificateTime), "issued before its certificate");
    let endless = resealed(|seal| seal.not_after = None);
    assert_eq!(at("2031-01-01T00:00:00Z")(&endless), Ok(()));
}

#[test]
fn what_the_list_names_is_revoked() {
    let good = claim("seal.leaf.p7s");
    let image = good.alleged().unwrap().subject.digest;
    let seal = SealDigest::of(&good.seal);
    let print = |name| fingerprint(&vector(name));
    let (leaf, ca, other) = (print("leaf.pem"), print("ca.pem"), print("other.pem"));
    let issuer = |print: &str, time: &str| {
        format!("[[issuers]]\ncertificate = \"{print}\"\nissued_before = \"{time}\"")
    };
    let serial = |glob: &str, minimum: u64| {
        format!("[[serials]]\nrepository = \"{glob}\"\nminimum = {minimum}")
    };
    for (list, expected) in [
        (String::new(), Ok(())),
        (format!("seals = [\"{seal}\"]"), Err(ErrorKind::Revoked)),
        (format!("seals = [\"{}\"]", SealDigest::of(b"")), Ok(())),
        (format!("images = [\"{image}\"]"), Err(ErrorKind::Revoked)),
        (format!("images = [\"{seal}\"]"), Ok(())),
        (format!("certificates = [\"{leaf}\"]"), Err(ErrorKind::Revoked)),
        (format!("certificates = [\"{ca}\"]"), Err(ErrorKind::Revoked)),
        (format!("certificates = [\"{other}\"]"), Ok(())),
        (issuer(&ca, "2027-01-01T00:00:00Z"), Err(ErrorKind::Revoked)),
        (issuer(&leaf, "2027-01-01T00:00:00Z"), Err(ErrorKind::Revoked)),
        (issuer(&ca, "2026-01-01T00:00:00Z"), Err(ErrorKind::Revoked)),
        (issuer(&ca, "2027-01-01T00:00:01Z"), Ok(())),
        (issuer(&other, "2026-01-01T00:00:00Z"), Ok(())),
        (serial("registry.example/app", 7), Ok(())),
        (serial("registry.example/app", 8), Err(ErrorKind::Serial)),
        (serial("**", 8), Err(ErrorKind::Serial)),
        (serial("registry.example/team/x", 8), Err(ErrorKind::Serial)),
        (serial("registry.example/other", 8), Ok(())),
    ] {
        let list = format!("version = 1\n{list}");
        assert_eq!(outcome(&good, &["ca"], &list, time(NOW)), expected, "{list}");
    }
    // a certificate issued too late makes no seal good, whenever that says it was issued
    let backdated = issuer(&ca, "2026-06-01T00:00:00Z");
    let early = Claim { ..good.clone() };
    let list = format!("version = 1\n{backdated}");
    assert_eq!(outcome(&early, &["ca"], &list, time(NOW)), Err(ErrorKind::Revoked));
}

fn fingerprint(pem: &[u8]) -> String {
    use base64::Engine as _;
    let text = std::str::from_utf8(pem).unwrap();
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
    SealDigest::of(&der).to_string()
}

#[test]
fn lists_that_are_none_are_refused() {
    for (list, expected) in [
        ("", ErrorKind::Malformed),
        ("version = 2", ErrorKind::Version),
        ("version = 2\nnew = 1", ErrorKind::Version),
        ("version = \"1\"", ErrorKind::Version),
        ("version = 1\nseal = []", ErrorKind::Malformed),
        ("version = 1\nseals = [\"sha256:00\"]", ErrorKind::Malformed),
        ("version = 1\nseals = [7]", ErrorKind::Malformed),
        ("version = 1\nversion = 1", ErrorKind::Malformed),
        (
            "version = 1\n[[issuers]]\nissued_before = \"2026-01-01T00:00:00Z\"",
            ErrorKind::Malformed,
        ),
        ("version = 1\n[[serials]]\nrepository = \"A\"\nminimum = 1", ErrorKind::Malformed),
    ] {
        let error = Revocations::parse(list.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), expected, "{list}: {error}");
    }
}

#[test]
fn seals_that_state_something_else_are_refused() {
    let text = String::from_utf8(vector("seal.json")).unwrap();
    let image = "application/vnd.oci.image.manifest.v1+json";
    let upper = text.replacen("7f86d081", "7F86D081", 1);
    let after = |from: &str, to: &str| text.replacen(from, to, 1);
    let layers = text.find("\"layers\":").unwrap();
    let no_layers = format!("{}\"layers\":[]}}", &text[..layers]);
    for (what, seal, expected) in [
        ("upper-case hex", upper, ErrorKind::Malformed),
        ("unknown key", after("{", "{\"extra\":1,"), ErrorKind::Malformed),
        (
            "unknown key in a layer",
            after("{\"digest\"", "{\"x\":1,\"digest\""),
            ErrorKind::Malformed,
        ),
        ("key twice", after("{", "{\"serial\":8,"), ErrorKind::Malformed),
        ("version 2", after(":1,", ":2,"), ErrorKind::Version),
        ("format", after("erofs.1", "erofs.2"), ErrorKind::LayerFormat),
        ("index", after(image, "application/vnd.oci.image.index.v1+json"), ErrorKind::Subject),
        (
            "no repositories",
            after("\"registry.example/app\",\"registry.example/team/*\"", ""),
            ErrorKind::Malformed,
        ),
        ("no blocks", after("\"dataBlocks\":12345", "\"dataBlocks\":0"), ErrorKind::Malformed),
        ("no layers", no_layers, ErrorKind::Layers),
        ("time with fraction", after("00:00Z", "00:00.0Z"), ErrorKind::Malformed),
        ("negative serial", after("\"serial\":7", "\"serial\":-7"), ErrorKind::Malformed),
        ("trailing", format!("{text} x"), ErrorKind::Malformed),
        ("array", "[]".into(), ErrorKind::Malformed),
        ("empty", String::new(), ErrorKind::Malformed),
        ("too long", format!("{text}{}", " ".repeat(1 << 20)), ErrorKind::Limit),
    ] {
        let error = Seal::parse(seal.as_bytes()).expect_err(what);
        assert_eq!(error.kind(), expected, "{what}: {error}");
    }
    // the vectors were not written by us: they are what we write
    assert_eq!(Seal::parse(text.as_bytes()).unwrap().encode().unwrap(), text.as_bytes());
}

#[test]
fn a_layer_signature_counts_for_its_own_root_hash_only() {
    let (keyring, none) = (keyring(&["ca"]), Revocations::default());
    let signed = |claim: &Claim| {
        let verified = claim.verify(&keyring, &none, time(NOW)).unwrap();
        (0..4).map(|index| verified.layer_signed(index)).collect::<Vec<bool>>()
    };
    let good = resealed(|_| ());
    assert_eq!(signed(&good), [true; 4]);
    assert_eq!(good.layer_signatures[1], good.layer_signatures[3], "a repeated layer");

    let mut swapped = good.clone();
    swapped.layer_signatures.swap(0, 2);
    assert_eq!(signed(&swapped), [false, true, false, true]);

    for (what, signature, expected) in [
        ("other signer of the CA", Some("roothash.other.p7s"), false),
        ("stranger", Some("roothash.stranger.p7s"), false),
        ("p256", Some("roothash.p256.p7s"), false),
        ("over the seal", Some("seal.leaf.p7s"), false),
        ("none", None, false),
        ("its own", Some("roothash.leaf.p7s"), true),
    ] {
        let mut claim = good.clone();
        claim.layer_signatures[0] = signature.map(vector);
        assert_eq!(signed(&claim), [expected, true, true, true], "{what}");
    }
    // without certificates of its own a layer's signer must be known: here the keyring knows it
    let mut claim = good.clone();
    claim.layer_signatures[0] = Some(vector("roothash.other.p7s"));
    let known = claim.verify(&self::keyring(&["ca", "other"]), &none, time(NOW)).unwrap();
    assert!(known.layer_signed(0));

    for length in [0, 3, 5] {
        let mut claim = good.clone();
        claim.layer_signatures.resize(length, None);
        assert_eq!(at(NOW)(&claim), Err(ErrorKind::Layers), "{length} signatures");
    }
}

/// A root hash in capitals is another text: the kernel would check the signature over what stands in the table.
#[test]
fn a_signature_over_capitals_is_none() {
    let capitals = vector("roothash.capitals.p7s");
    let mut claim = claim("seal.leaf.p7s");
    let verified = |claim: &Claim| {
        claim.verify(&keyring(&["ca"]), &Revocations::default(), time(NOW)).unwrap().layer_signed(0)
    };
    assert!(verified(&claim));
    claim.layer_signatures[0] = Some(capitals);
    assert!(!verified(&claim));
}

#[test]
fn policies_open_under_the_keyring_only() {
    let none = Revocations::default();
    let der = vector("policy.leaf.p7b");
    let open = |der: &[u8], keys: &[&str], now: &str| {
        open_policy(der, &keyring(keys), &none, time(now)).map_err(|error| error.kind())
    };
    let policy = vector("policy.pol");
    assert_eq!(open(&der, &["leaf"], NOW), Ok(policy.clone()));
    assert_eq!(open(&der, &["leaf"], "2200-01-01T00:00:00Z"), Err(ErrorKind::CertificateTime));
    // made for the kernel it carries no certificate, so the CA alone does not know its signer
    assert_eq!(open(&der, &["ca"], NOW), Err(ErrorKind::SignerUnknown));
    assert_eq!(open(&der, &["other"], NOW), Err(ErrorKind::SignerUnknown));
    assert_eq!(open(&vector("seal.leaf.p7s"), &["leaf"], NOW), Err(ErrorKind::SignatureForm));
    assert_eq!(open(&vec![0; 65_536], &["leaf"], NOW), Err(ErrorKind::Limit));
    let place = der.windows(5).position(|bytes| bytes == b"ALLOW").unwrap();
    let mut changed = der.clone();
    changed[place..place + 5].copy_from_slice(b"DENY ");
    assert_eq!(open(&changed, &["leaf"], NOW), Err(ErrorKind::SignatureMismatch));
    assert_eq!(key("leaf").sign_policy(&policy).unwrap(), der, "as OpenSSL signs it");
    let long = key("leaf").sign_policy(&vec![b'#'; 65_536]).unwrap_err();
    assert_eq!(long.kind(), ErrorKind::Limit);
}

#[test]
fn keys_that_cannot_sign_are_refused() {
    let leaf = vector("leaf.key");
    let swapped = [leaf.clone(), leaf.clone()].concat();
    let old = String::from_utf8(leaf.clone()).unwrap().replace("PRIVATE KEY", "RSA PRIVATE KEY");
    for (what, key, certificate, expected) in [
        ("another key", vector("other.key"), "leaf.pem", ErrorKind::Key),
        ("another kind", vector("p256.key"), "leaf.pem", ErrorKind::Key),
        ("P-384", vector("p384.key"), "p384.pem", ErrorKind::Key),
        ("two keys", swapped, "leaf.pem", ErrorKind::Key),
        ("PKCS#1", old.into_bytes(), "leaf.pem", ErrorKind::Key),
        ("no key", vector("leaf.pem"), "leaf.pem", ErrorKind::Key),
        ("nothing", Vec::new(), "leaf.pem", ErrorKind::Key),
        ("no certificate", leaf.clone(), "leaf.key", ErrorKind::Malformed),
        ("may not sign", leaf.clone(), "ca.pem", ErrorKind::Certificate),
    ] {
        let error = SigningKey::from_pem(&key, &vector(certificate)).expect_err(what);
        assert_eq!(error.kind(), expected, "{what}: {error}");
    }
    assert!(SigningKey::from_pem(&leaf, &vector("leaf.pem")).is_ok());
    assert!(SigningKey::from_pem(&vector("deep.key"), &vector("deep-chain.pem")).is_ok());
}

#[test]
fn keyrings_that_trust_nobody_or_hold_keys_are_refused() {
    for (what, pem, expected) in [
        ("empty", Vec::new(), ErrorKind::Malformed),
        ("text", b"no certificate here".to_vec(), ErrorKind::Malformed),
        ("private key", [vector("ca.pem"), vector("leaf.key")].concat(), ErrorKind::Malformed),
        ("cut", vector("ca.pem")[..400].to_vec(), ErrorKind::Malformed),
        ("too long", vec![b'\n'; (1 << 20) + 1], ErrorKind::Limit),
        ("too many", vector("ca.pem").repeat(257), ErrorKind::Limit),
    ] {
        assert_eq!(Keyring::from_pem(&pem).expect_err(what).kind(), expected, "{what}");
    }
    let subjects = keyring(&["ca", "leaf"]);
    let subjects: Vec<&str> = subjects.subjects().collect();
    assert_eq!(subjects, ["CN=ca,O=Hallmark test", "CN=leaf,O=Hallmark test"]);
}
