//! What is written is read back: seals, claims files and referrers, for every value.
#![allow(clippy::unwrap_used, reason = "tests stop at the first thing that is not as it should be")]

use hallmark_seal::referrer::{self, Bundle, Referrer};
use hallmark_seal::{
    Claim, ClaimFile, ErrorKind, Insertion, LayerFormat, MAX_CLAIMS, Pins, RepositoryGlob,
    SUBJECT_MEDIA_TYPES, SchemaVersion, Seal, SealedLayer, Subject, Timestamp,
};
use hallmark_verity::{DataBlocks, DiffId, ImageDigest, LayerDigest, RootHash, Salt};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

fn layer() -> impl Strategy<Value = SealedLayer> {
    // few root hashes, so that layers repeat
    let salt = vec(any::<u8>(), 0..=256);
    (any::<[u8; 32]>(), any::<[u8; 32]>(), 0..4u8, salt, 1..1_000_000u64).prop_map(
        |(digest, diff_id, root, salt, blocks)| SealedLayer {
            digest: LayerDigest::from_bytes(digest),
            diff_id: DiffId::from_bytes(diff_id),
            root_hash: RootHash::from_bytes([root; 32]),
            salt: Salt::from_bytes(&salt).unwrap(),
            data_blocks: DataBlocks(blocks),
        },
    )
}

fn pins() -> impl Strategy<Value = Pins> {
    let strings = || option::of(vec(".{0,12}", 0..3));
    (strings(), strings()).prop_map(|(entrypoint, env)| Pins { entrypoint, env })
}

fn seal() -> impl Strategy<Value = Seal> {
    let globs = vec("[a-z0-9./:_-]{1,20}(/\\*{1,2})?", 1..4);
    let times = (any::<u64>(), option::of(any::<u64>()));
    let subject = (any::<bool>(), any::<[u8; 32]>(), any::<u64>());
    (subject, globs, times, any::<u64>(), vec(layer(), 1..8), option::of(pins())).prop_map(
        |((docker, digest, size), globs, (issued, not_after), serial, layers, pins)| Seal {
            schema_version: SchemaVersion,
            subject: Subject {
                media_type: SUBJECT_MEDIA_TYPES[usize::from(docker)].to_owned(),
                digest: ImageDigest::from_bytes(digest),
                size,
            },
            repositories: globs
                .iter()
                .map(|glob| glob.parse::<RepositoryGlob>().unwrap())
                .collect(),
            layer_format: LayerFormat::HallmarkErofs1,
            issued: Timestamp::from_unix_seconds(issued),
            not_after: not_after.map(Timestamp::from_unix_seconds),
            serial,
            layers,
            pins,
        },
    )
}

fn claim() -> impl Strategy<Value = Claim> {
    (seal(), vec(any::<u8>(), 0..64), any::<u64>()).prop_map(|(seal, signature, gaps)| Claim {
        seal: seal.encode().unwrap(),
        signature,
        layer_signatures: (0..seal.layers.len())
            .map(|index| {
                let root_hash = seal.layers[index].root_hash;
                (gaps >> root_hash.as_bytes()[0] & 1 == 1)
                    .then(|| root_hash.signed_bytes().to_vec())
            })
            .collect(),
    })
}

proptest! {
    #[test]
    fn a_seal(seal in seal()) {
        let bytes = seal.encode().unwrap();
        prop_assert_eq!(Seal::parse(&bytes).unwrap(), seal);
    }

    #[test]
    fn a_claims_file(claims in vec(claim(), 0..5)) {
        let mut file = ClaimFile::default();
        for claim in &claims {
            file.insert(claim.clone()).unwrap();
        }
        prop_assert_eq!(file.claims(), claims.as_slice());
        prop_assert_eq!(ClaimFile::parse(&file.encode().unwrap()).unwrap(), file);
    }

    #[test]
    fn a_referrer(claim in claim()) {
        let bundle = Bundle::of(&claim).unwrap();
        let referrer = Referrer::parse(&bundle.manifest).unwrap().unwrap();
        prop_assert_eq!(referrer.subject(), &claim.alleged().unwrap().subject);
        let blobs = referrer.blobs().iter().map(|wanted| {
            bundle.blobs.iter().find(|blob| blob.descriptor.digest == wanted.digest).unwrap().bytes.clone()
        });
        // a layer signature is found by digest and root hash; equal pairs share one
        prop_assert_eq!(referrer.claim(blobs.collect()).unwrap(), claim);
        prop_assert_eq!(bundle.digest, ImageDigest::of(&bundle.manifest));
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200), json in "[\\[\\]{}\",:a-z0-9]{0,60}") {
        for bytes in [bytes.as_slice(), json.as_bytes()] {
            prop_assert!(Seal::parse(bytes).is_err());
            prop_assert!(ClaimFile::parse(bytes).is_err());
            prop_assert!(!matches!(Referrer::parse(bytes), Ok(Some(_))));
        }
    }

    #[test]
    fn no_signature_panics(at in 0..2000usize, byte in any::<u8>(), kind in prop_oneof![Just("leaf"), Just("p384"), Just("deep")]) {
        let path = format!("{}/tests/vectors/seal.{kind}.p7s", env!("CARGO_MANIFEST_DIR"));
        let mut signature = std::fs::read(path).unwrap();
        let at = at % signature.len();
        signature[at] = byte;
        let path = format!("{}/tests/vectors/ca.pem", env!("CARGO_MANIFEST_DIR"));
        let keyring = hallmark_seal::Keyring::from_pem(&std::fs::read(path).unwrap()).unwrap();
        let claim = Claim { seal: Vec::new(), signature, layer_signatures: Vec::new() };
        let now = Timestamp::from_unix_seconds(1_800_000_000);
        prop_assert!(claim.verify(&keyring, &hallmark_seal::Revocations::default(), now).is_err());
    }
}

fn plain(seal: &[u8], signature: &[u8]) -> Claim {
    Claim { seal: seal.to_vec(), signature: signature.to_vec(), layer_signatures: vec![None] }
}

#[test]
fn a_claims_file_is_bounded_and_strict() {
    let mut file = ClaimFile::from(plain(b"a", b"b"));
    assert_eq!(file.insert(plain(b"a", b"b")).unwrap(), Insertion::Known);
    for index in 1..MAX_CLAIMS {
        let claim = plain(b"a", &index.to_le_bytes());
        assert_eq!(file.insert(claim).unwrap(), Insertion::Added);
    }
    let before = file.clone();
    assert_eq!(file.insert(plain(b"x", b"y")).unwrap_err().kind(), ErrorKind::Limit);
    assert_eq!(file, before);

    let mut file = ClaimFile::default();
    for index in 0..2 {
        file.insert(plain(&vec![index; 1 << 20], b"")).unwrap();
    }
    assert_eq!(file.insert(plain(&vec![2; 1 << 20], b"")).unwrap_err().kind(), ErrorKind::Limit);
    assert_eq!(file.claims().len(), 2);

    for (text, expected) in [
        (r#"{"schemaVersion":2,"claims":[]}"#, ErrorKind::Version),
        (r#"{"claims":[]}"#, ErrorKind::Malformed),
        (r#"{"schemaVersion":1,"claims":[],"x":1}"#, ErrorKind::Malformed),
        (r#"{"schemaVersion":1,"claims":[{"seal":"","signature":""}]}"#, ErrorKind::Malformed),
        (
            r#"{"schemaVersion":1,"claims":[{"seal":"AQ","signature":"","layerSignatures":[]}]}"#,
            ErrorKind::Malformed,
        ),
        (
            r#"{"schemaVersion":1,"claims":[{"seal":"A Q=","signature":"","layerSignatures":[]}]}"#,
            ErrorKind::Malformed,
        ),
    ] {
        assert_eq!(ClaimFile::parse(text.as_bytes()).unwrap_err().kind(), expected, "{text}");
    }
    let good = r#"{"schemaVersion":1,"claims":[{"seal":"AQ==","signature":"","layerSignatures":[null,"AQI="]}]}"#;
    let file = ClaimFile::parse(good.as_bytes()).unwrap();
    assert_eq!(file.claims()[0].layer_signatures, [None, Some(vec![1, 2])]);
    assert_eq!(file.encode().unwrap(), good.as_bytes());
}

#[test]
fn a_referrer_that_is_not_one_of_ours_or_lies_is_told_apart() {
    let vector = |name: &str| {
        std::fs::read(format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let signature = Some(vector("roothash.leaf.p7s"));
    let claim = Claim {
        seal: vector("seal.json"),
        signature: vector("seal.leaf.p7s"),
        layer_signatures: vec![signature, None, None, None],
    };
    let bundle = Bundle::of(&claim).unwrap();
    let text = String::from_utf8(bundle.manifest.clone()).unwrap();
    let blobs = |bundle: &Bundle| -> Vec<Vec<u8>> {
        bundle.blobs.iter().skip(1).map(|blob| blob.bytes.clone()).collect()
    };
    let parse = |text: &str| Referrer::parse(text.as_bytes());
    assert_eq!(parse(&text).unwrap().unwrap().claim(blobs(&bundle)).unwrap(), claim);
    assert_eq!(bundle.blobs[0].bytes, referrer::EMPTY_CONFIG);
    assert!(text.contains(
        "\"config\":{\"mediaType\":\"application/vnd.oci.empty.v1+json\",\"digest\":\"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\",\"size\":2}"
    ));

    assert_eq!(parse(&text.replace("hallmark.seal.v1\"", "other\"")).unwrap(), None);
    assert_eq!(parse(r#"{"schemaVersion":2,"layers":[]}"#).unwrap(), None);
    for (what, text) in [
        ("no subject", text.replace("\"subject\"", "\"object\"")),
        ("no layers", text.replace("\"layers\"", "\"players\"")),
        ("order", text.replace("vnd.hallmark.seal.v1+json", "pkcs7-signature")),
        ("digest", text.replace("\"digest\":\"sha256:", "\"digest\":\"sha512:")),
    ] {
        assert_eq!(parse(&text).unwrap_err().kind(), ErrorKind::Malformed, "{what}");
    }
    let of = |text: String, blobs: Vec<Vec<u8>>| {
        parse(&text).unwrap().unwrap().claim(blobs).unwrap_err().kind()
    };
    let subject = claim.alleged().unwrap().subject.digest.to_hex();
    assert_eq!(of(text.replace(&subject, &"0".repeat(64)), blobs(&bundle)), ErrorKind::Subject);
    let root_hash = String::from_utf8(vector("roothash")).unwrap();
    assert_eq!(of(text.replace(&root_hash, &"0".repeat(64)), blobs(&bundle)), ErrorKind::Layers);
    let mut changed = blobs(&bundle);
    changed[1][0] ^= 1;
    assert_eq!(of(text.clone(), changed), ErrorKind::Malformed);
    let mut short = blobs(&bundle);
    short.pop();
    assert_eq!(of(text, short), ErrorKind::Malformed);
}
