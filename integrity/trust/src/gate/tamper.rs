//! The tamper table: one row for every way a launch is refused.
//!
//! [`rows!`] makes the table and a `match` over [`Refusal`] from the same list, so a new variant does
//! not compile until it has a row. Every row starts from a world in which the launch is permitted,
//! and that twin is judged in the same run: a gate that refuses everything fails as well.

use hallmark_seal::{
    Keyring, LayerFormat, Pins, Revocations, SchemaVersion, Seal, SealedLayer, SigningKey, Subject,
    Timestamp,
};
use hallmark_sys::dm::{VerityStatus, VerityTarget};
use hallmark_verity::{DataBlocks, DiffId, LayerDigest, Salt, VolumeParams};

use super::layer::EROFS;
use super::*;
use crate::evidence::{self, ActivationRecord, DeviceKind, DmVerity, Record, Rehashed, Volume};
use crate::ipe::Policy;
use crate::set::{PolicySource, TrustError, TrustedPolicy};
use crate::testing::Signer;

type Judged = Result<LaunchPermit, Refusal>;

/// Everything a launch depends on, at first as it should be: an image of four layers, of which the
/// empty one is there twice, on signed dm-verity under an enforcing policy.
struct World {
    trust: TrustSet,
    node: NodeRequirements,
    seal: Seal,
    key: SigningKey,
    unsigned: Vec<usize>,
    evidence: Vec<Evidence>,
    args: Vec<String>,
    env: Vec<String>,
}

const POLICY: &str = "policy_name=node policy_version=1.0.0\nDEFAULT action=ALLOW\n\
                      DEFAULT op=EXECUTE action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n";

fn sealed(byte: u8) -> SealedLayer {
    SealedLayer {
        digest: LayerDigest::of(&[byte]),
        diff_id: DiffId::of(&[byte]),
        root_hash: RootHash::from_bytes([byte; 32]),
        salt: Salt::from_bytes(&[byte; 4]).unwrap(),
        data_blocks: DataBlocks(u64::from(byte)),
    }
}

/// What the kernel says of a layer that our snapshotter activated with its signature.
fn activated(minor: u32, layer: &SealedLayer) -> Evidence {
    let uuid = format!("HALLMARK-{}-s-0123456789abcdef", layer.root_hash);
    let record = ActivationRecord {
        schema_version: 1,
        root_hash: layer.root_hash,
        signed: true,
        salt: layer.salt.clone(),
        data_blocks: layer.data_blocks,
        name: "hallmark-0-s-0".to_owned(),
        dev: format!("254:{minor}"),
        uuid: uuid.clone(),
        lower: format!("/run/hallmark/l/{minor}").into(),
        kind: DeviceKind::DmVerity,
    };
    let target = VerityTarget {
        version: 1,
        data_dev: "7:0".to_owned(),
        hash_dev: "7:0".to_owned(),
        data_block_size: 4096,
        hash_block_size: 4096,
        data_blocks: layer.data_blocks.0,
        hash_start: layer.data_blocks.0 + 1,
        algorithm: "sha256".to_owned(),
        root_hash: layer.root_hash.as_bytes().to_vec(),
        salt: layer.salt.as_bytes().to_vec(),
        options: Vec::new(),
        signed: true,
    };
    Evidence {
        lower: record.lower.clone(),
        file_system: EROFS,
        is_mount_root: true,
        shown_root: "/".to_owned(),
        mounted_beneath: None,
        options: ["ro", "user_xattr", "acl", "cache_strategy=readaround"].map(str::to_owned).into(),
        device: (254, minor),
        volume: Volume::DmVerity(Box::new(DmVerity {
            sectors: 0..target.data_blocks * 8,
            target,
            status: VerityStatus::Verified,
            uuid,
            record: Record::Found(Box::new(record)),
        })),
    }
}

/// What is found of a layer that was mounted from a loop device.
fn hashed(layer: &SealedLayer) -> Evidence {
    let params = VolumeParams::new(layer.salt.clone(), layer.data_blocks).unwrap();
    let rehashed = Rehashed {
        root_hash: layer.root_hash,
        stated: None,
        params,
        offset: 0,
        size_limit: 0,
        read_only: true,
    };
    Evidence { volume: Volume::Rehashed(rehashed), device: (7, 1), ..activated(1, layer) }
}

fn policy(text: &str, source: PolicySource) -> TrustedPolicy {
    TrustedPolicy { policy: Policy::parse(text.as_bytes()).unwrap(), source }
}

impl World {
    fn untouched() -> Self {
        let signer = Signer::ours();
        let layers: Vec<SealedLayer> = [1, 9, 2, 9].map(sealed).into();
        let seal = Seal {
            schema_version: SchemaVersion,
            subject: Subject {
                media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
                digest: ImageDigest::of(b"manifest"),
                size: 8,
            },
            repositories: vec!["registry.example/app".parse().unwrap()],
            layer_format: LayerFormat::HallmarkErofs1,
            issued: Timestamp::from(std::time::SystemTime::now()),
            not_after: None,
            serial: 1,
            layers,
            pins: None,
        };
        let stack = [1, 2, 9].map(sealed);
        Self {
            trust: TrustSet {
                keyring: Keyring::from_pem(&signer.certificate).unwrap(),
                revocations: Revocations::default(),
                policy: Some(policy(POLICY, PolicySource::Kernel)),
                exec_control: ExecControl::Ipe,
                weakness: None,
                unpinned: Vec::new(),
            },
            node: NodeRequirements {
                minimum_evidence: Strength::DmVerity,
                exec_control: ExecControl::Ipe,
            },
            seal,
            key: signer.key(),
            unsigned: Vec::new(),
            evidence: stack.iter().zip(1..).map(|(layer, minor)| activated(minor, layer)).collect(),
            args: ["/bin/app", "--serve"].map(str::to_owned).into(),
            env: ["PATH=/bin", "A=b"].map(str::to_owned).into(),
        }
    }

    /// The same image on a node without device-mapper and IPE, with a signed policy file.
    fn without_kernel_help() -> Self {
        let mut world = Self::untouched();
        world.trust.policy = Some(policy(POLICY, PolicySource::SignedFile));
        world.trust.exec_control = ExecControl::LaunchOnly;
        world.trust.weakness = Some("the kernel has no IPE".to_owned());
        world.node.exec_control = ExecControl::LaunchOnly;
        world.node.minimum_evidence = Strength::Rehashed;
        world.evidence = [1, 2, 9].map(|byte| hashed(&sealed(byte))).into();
        world
    }

    fn dm(&mut self, position: usize) -> &mut DmVerity {
        let Volume::DmVerity(volume) = &mut self.evidence[position].volume else { panic!() };
        volume
    }

    fn record(&mut self, position: usize) -> &mut ActivationRecord {
        let Record::Found(record) = &mut self.dm(position).record else { panic!() };
        record
    }

    fn rehashed(&mut self, position: usize) -> &mut Rehashed {
        let Volume::Rehashed(volume) = &mut self.evidence[position].volume else { panic!() };
        volume
    }

    fn claims(&self) -> Claims {
        let mut claim = self.key.seal(&self.seal).unwrap();
        for layer in &self.unsigned {
            claim.layer_signatures[*layer] = None;
        }
        let now = Timestamp::from(std::time::SystemTime::now());
        let TrustSet { keyring, revocations, .. } = &self.trust;
        match claim.verify(keyring, revocations, now) {
            Ok(seal) => Claims { verified: vec![seal], rejected: Vec::new() },
            Err(e) => Claims { verified: Vec::new(), rejected: vec![crate::chain(&e)] },
        }
    }

    fn judge(&self) -> Judged {
        self.judge_with(&self.claims())
    }

    fn judge_with(&self, claims: &Claims) -> Judged {
        let launch = Launch { evidence: &self.evidence, args: &self.args, env: &self.env };
        judge(&self.trust, self.node, claims, &launch)
    }

    fn tampered(mut self, tamper: impl FnOnce(&mut Self)) -> Judged {
        tamper(&mut self);
        self.judge()
    }
}

fn changed(file: &'static str) -> Unpinned {
    let (found, expected) = ("sha256:01".to_owned(), "a pin".to_owned());
    Unpinned { file, found, expected, pinned: false }
}

/// The table, and the name of every variant: the `match` has no wildcard, and no arm without a row.
macro_rules! rows {
    ($($variant:ident: $row:expr,)*) => {
        const ROWS: &[(&str, fn(World) -> Judged)] = &[$((stringify!($variant), $row),)*];

        fn variant(refusal: &Refusal) -> &'static str {
            match refusal {
                $(Refusal::$variant { .. } => stringify!($variant),)*
            }
        }
    };
}

rows! {
    Corrupted: |w| w.tampered(|w| w.dm(1).status = VerityStatus::Corrupted),
    DataBlocks: |w| w.tampered(|w| {
        w.dm(1).target.data_blocks += 1;
        w.dm(1).sectors.end += 8;
        w.record(1).data_blocks.0 += 1;
    }),
    DmOption: |w| w.tampered(|w| w.dm(0).target.options.push("ignore_corruption".to_owned())),
    DmTable: |w| w.tampered(|w| w.dm(0).target.data_block_size = 512),
    Entrypoint: |w| w.tampered(|w| {
        let entrypoint = Some(vec!["/bin/sh".to_owned()]);
        w.seal.pins = Some(Pins { entrypoint, env: None });
    }),
    Environment: |w| w.tampered(|w| {
        let env = Some(vec!["A=c".to_owned()]);
        w.seal.pins = Some(Pins { entrypoint: None, env });
    }),
    EvidenceTooWeak: |w| w.tampered(|w| w.evidence[1] = hashed(&sealed(2))),
    ExecControl: |w| w.tampered(|w| w.trust.exec_control = ExecControl::LaunchOnly),
    FileSystem: |w| w.tampered(|w| w.evidence[2].file_system = 0x0102_1994),
    LayerExtra: |w| w.tampered(|w| w.evidence.push(activated(7, &sealed(7)))),
    LayerMissing: |w| w.tampered(|w| drop(w.evidence.pop())),
    LoopDevice: |_| World::without_kernel_help().tampered(|w| w.rehashed(0).offset = 4096),
    MountedBeneath: |w| w.tampered(|w| w.evidence[0].mounted_beneath = Some("/l/a/bin".to_owned())),
    NoEvidence: |w| {
        let error = evidence::Error::from(evidence::ErrorKind::NotMounted(42));
        Err(Refusal::no_evidence(1, w.evidence[1].lower(), &error))
    },
    NoPolicy: |w| w.tampered(|w| w.trust.policy = None),
    NoSeal: |w| w.judge_with(&Claims::default()),
    NoTrustSet: |_| {
        let source = Keyring::from_pem(b"").unwrap_err();
        Err(Refusal::no_trust_set(&TrustError::Seal { file: "/k".to_owned(), source }))
    },
    NotOurs: |w| w.tampered(|w| w.dm(2).record = Record::Missing),
    NotRoot: |w| w.tampered(|w| w.evidence[1].shown_root = "/sub".to_owned()),
    PolicyDenies: |w| w.tampered(|w| {
        let deny = "DEFAULT action=DENY\nop=EXECUTE dmverity_signature=FALSE action=ALLOW\n";
        let text = format!("policy_name=node policy_version=1.0.0\n{deny}");
        w.trust.policy = Some(policy(&text, PolicySource::Kernel));
    }),
    RootHash: |w| w.tampered(|w| w.evidence.swap(0, 1)),
    Salt: |w| w.tampered(|w| {
        w.dm(0).target.salt = vec![0; 4];
        w.record(0).salt = Salt::from_bytes(&[0; 4]).unwrap();
    }),
    SuperblockOption: |w| w.tampered(|w| w.evidence[0].options.push("fsoffset=8192".to_owned())),
    Unpinned: |w| w.tampered(|w| {
        w.trust.unpinned.push(changed("keys"));
    }),
    Unverified: |w| w.tampered(|w| {
        w.evidence[0].volume = Volume::Unverified("device 254:1 is a linear".to_owned());
    }),
}

#[test]
fn every_refusal_has_a_row_and_an_untouched_twin() {
    for (expected, row) in ROWS {
        let permit = World::untouched().judge().unwrap();
        assert_eq!(permit.evidence(), Strength::DmVeritySigned);
        let refusal = row(World::untouched()).unwrap_err();
        assert_eq!(variant(&refusal), *expected, "{refusal}");
        let message = refusal.to_string();
        assert!(
            message.contains("expected") || message.contains("seal") || message.contains("asks")
        );
        assert!(!message.ends_with('.') && !refusal.remedy().is_empty(), "{message}");
    }
}

/// Another way to a refusal: why, which, and how.
type Form = (&'static str, &'static str, fn(&mut World));

fn refused(untouched: fn() -> World, forms: &[Form]) {
    for (why, expected, tamper) in forms {
        untouched().judge().unwrap();
        let refusal = untouched().tampered(tamper).unwrap_err();
        assert_eq!(variant(&refusal), *expected, "{why}: {refusal}");
    }
}

/// From the attacks that were run against the design.
#[test]
fn every_other_device_is_refused() {
    let forms: &[Form] = &[
        ("check_at_most_once", "DmOption", |w| {
            w.dm(2).target.options.push("check_at_most_once".into())
        }),
        ("ignore_zero_blocks", "DmOption", |w| {
            w.dm(2).target.options.push("ignore_zero_blocks".into())
        }),
        ("try_verify_in_tasklet", "DmOption", |w| {
            w.dm(2).target.options.push("try_verify_in_tasklet".into());
        }),
        ("version 0", "DmTable", |w| w.dm(0).target.version = 0),
        ("sha1", "DmTable", |w| w.dm(0).target.algorithm = "sha1".into()),
        ("sha512 root hash", "NotOurs", |w| w.dm(0).target.root_hash = vec![1; 64]),
        ("shorter target", "DmTable", |w| w.dm(0).sectors.end -= 8),
        ("target that starts later", "DmTable", |w| w.dm(0).sectors.start = 8),
        ("other device of the same table", "NotOurs", |w| w.evidence[0].device = (254, 99)),
        ("other uuid", "NotOurs", |w| w.dm(0).uuid.push('x')),
        ("forged record of another root hash", "NotOurs", |w| {
            w.record(0).root_hash = RootHash::from_bytes([2; 32]);
        }),
        ("record of a foreign uuid", "NotOurs", |w| {
            w.dm(0).uuid = "CRYPT-VERITY-x".into();
            w.record(0).uuid = "CRYPT-VERITY-x".into();
        }),
        ("record of a loop device", "NotOurs", |w| w.record(0).kind = DeviceKind::Loop),
        ("signed device, unsigned record", "NotOurs", |w| w.record(0).signed = false),
        ("unreadable record", "NotOurs", |w| w.dm(0).record = Record::Unusable("uid 1".into())),
    ];
    refused(World::untouched, forms);
}

#[test]
fn every_other_stack_is_refused() {
    let forms: &[Form] = &[
        ("a directory inside", "NotRoot", |w| w.evidence[0].is_mount_root = false),
        ("extra device", "SuperblockOption", |w| {
            w.evidence[1].options.push("device=/dev/x".into())
        }),
        ("fscache domain", "SuperblockOption", |w| {
            w.evidence[1].options.push("domain_id=x".into())
        }),
        ("shared inodes", "SuperblockOption", |w| w.evidence[1].options.push("inode_share".into())),
        ("two images stacked", "RootHash", |w| w.evidence[1] = activated(2, &sealed(3))),
        ("order changed", "RootHash", |w| w.evidence.reverse()),
        ("lowest left out", "RootHash", |w| drop(w.evidence.remove(0))),
        ("lower copy mounted as well", "RootHash", |w| {
            w.evidence.insert(1, activated(9, &sealed(9)))
        }),
        ("no layer at all", "LayerMissing", |w| w.evidence.clear()),
        ("unsigned device, signature rule", "PolicyDenies", |w| {
            let dm = w.dm(0);
            dm.target.signed = false;
            dm.uuid = dm.uuid.replace("-s-", "-u-");
            let uuid = dm.uuid.clone();
            w.record(0).signed = false;
            w.record(0).uuid = uuid;
        }),
        ("revoked by root hash", "PolicyDenies", |w| {
            let revoked =
                format!("op=EXECUTE dmverity_roothash=sha256:{} action=DENY", "02".repeat(32));
            let text =
                POLICY.replace("op=EXECUTE dmverity", &format!("{revoked}\nop=EXECUTE dmverity"));
            w.trust.policy = Some(policy(&text, PolicySource::Kernel));
        }),
        ("signed by somebody else", "NoSeal", |w| w.key = Signer::other().key()),
        ("image revoked", "NoSeal", |w| {
            let list = format!("version = 1\nimages = [\"{}\"]\n", w.seal.subject.digest);
            w.trust.revocations = Revocations::parse(list.as_bytes()).unwrap();
        }),
        ("seal that is over", "NoSeal", |w| {
            w.seal.not_after = Some(Timestamp::from_unix_seconds(0))
        }),
        ("pinned variable missing", "Environment", |w| {
            w.env.clear();
            w.seal.pins = Some(Pins { entrypoint: None, env: Some(vec!["A=b".into()]) });
        }),
        ("pinned variable twice", "Environment", |w| {
            w.env.push("A=c".into());
            w.seal.pins = Some(Pins { entrypoint: None, env: Some(vec!["A=b".into()]) });
        }),
        ("more asked for than there is", "EvidenceTooWeak", |w| {
            w.evidence[0] = hashed(&sealed(1));
            w.node.minimum_evidence = Strength::FsVerity;
        }),
    ];
    refused(World::untouched, forms);
}

#[test]
fn a_node_without_kernel_help_judges_what_it_hashed() {
    let permit = World::without_kernel_help().judge().unwrap();
    assert_eq!(permit.evidence(), Strength::Rehashed);
    assert_eq!(permit.exec_control(), ExecControl::LaunchOnly);
    assert_eq!(permit.stack().len(), 3);
    let forms: &[Form] = &[
        ("changed byte", "RootHash", |w| w.rehashed(1).root_hash = RootHash::from_bytes([5; 32])),
        ("size limit", "LoopDevice", |w| w.rehashed(1).size_limit = 4096),
        ("writable", "LoopDevice", |w| w.rehashed(1).read_only = false),
        ("layer signature missing", "PolicyDenies", |w| w.unsigned = vec![2]),
        ("policy missing", "NoPolicy", |w| w.trust.policy = None),
        ("dm-verity asked for", "EvidenceTooWeak", |w| {
            w.node.minimum_evidence = Strength::DmVerity;
        }),
        ("pinned, whatever the configuration asks for", "Unpinned", |w| {
            w.trust.unpinned.push(Unpinned { pinned: true, ..changed("config") });
        }),
        ("ipe asked for", "ExecControl", |w| w.node.exec_control = ExecControl::Ipe),
        // a kernel with IPE knows nothing of what we hashed, and would refuse every exec
        ("kernel policy", "PolicyDenies", |w| {
            w.trust.policy = Some(policy(POLICY, PolicySource::Kernel));
        }),
    ];
    refused(World::without_kernel_help, forms);
}

#[test]
fn what_is_harmless_is_permitted() {
    type Harmless = (&'static str, fn(&mut World));
    let forms: &[Harmless] = &[
        ("SELinux label", |w| {
            w.evidence[0].options.push("context=system_u:object_r:x_t:s0".into())
        }),
        ("pins that hold", |w| {
            w.seal.pins = Some(Pins {
                entrypoint: Some(vec!["/bin/app".into()]),
                env: Some(vec!["A=b".into()]),
            });
        }),
        ("signature of the lower copy missing", |w| w.unsigned = vec![1]),
        ("unsigned device allowed by root hash", |w| {
            let dm = w.dm(0);
            dm.target.signed = false;
            dm.uuid = dm.uuid.replace("-s-", "-u-");
            let uuid = dm.uuid.clone();
            w.record(0).signed = false;
            w.record(0).uuid = uuid;
            let rule =
                format!("op=EXECUTE dmverity_roothash=sha256:{} action=ALLOW\n", "01".repeat(32));
            w.trust.policy = Some(policy(&format!("{POLICY}{rule}"), PolicySource::Kernel));
        }),
        ("nothing need be pinned where launch-only is enough", |w| {
            w.node.exec_control = ExecControl::LaunchOnly;
            w.trust.unpinned.push(changed("keys"));
        }),
    ];
    for (why, change) in forms {
        World::untouched().tampered(change).unwrap_or_else(|refusal| panic!("{why}: {refusal}"));
    }
}

#[test]
fn a_message_names_the_layer_as_the_seal_counts_it() {
    let refusal = World::untouched().tampered(|w| w.evidence.swap(0, 1)).unwrap_err();
    let (digest, one, two) = (LayerDigest::of(&[1]), "01".repeat(32), "02".repeat(32));
    assert_eq!(
        refusal.to_string(),
        format!("layer 1 ({digest}): root hash is {two}, the seal says {one}")
    );
    let top = World::untouched().tampered(|w| w.dm(2).status = VerityStatus::Corrupted);
    let digest = LayerDigest::of(&[9]);
    assert!(top.unwrap_err().to_string().starts_with(&format!("layer 4 ({digest}): ")));
}

#[test]
fn the_second_seal_of_a_stack_counts_as_well() {
    let world = World::untouched();
    let mut other = World::untouched();
    other.seal.pins = Some(Pins { entrypoint: Some(vec!["/bin/other".into()]), env: None });
    let mut claims = other.claims();
    claims.verified.extend(world.claims().verified);
    assert!(world.judge_with(&claims).is_ok());
    claims.verified.truncate(1);
    assert!(matches!(world.judge_with(&claims), Err(Refusal::Entrypoint { .. })));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    /// Of all stacks that can be made of an image's layers and a foreign one, exactly the sealed
    /// one is launched.
    #[test]
    fn no_other_stack_is_launched(
        layers in proptest::collection::vec(1_u8..4, 1..5),
        stack in proptest::collection::vec(1_u8..5, 0..5),
    ) {
        let mut world = World::untouched();
        world.seal.layers = layers.iter().copied().map(sealed).collect();
        let evidence = |stack: &[u8]| -> Vec<Evidence> {
            stack.iter().zip(1..).map(|(byte, minor)| activated(minor, &sealed(*byte))).collect()
        };
        let canonical: Vec<u8> =
            world.seal.stack().iter().map(|root_hash| root_hash.as_bytes()[0]).collect();
        world.evidence = evidence(&canonical);
        world.judge().unwrap();
        world.evidence = evidence(&stack);
        proptest::prop_assert_eq!(world.judge().is_ok(), stack == canonical);
    }
}
