//! The runtime's part of the tamper table, on real layers, mounts and overlays.
//!
//! [`rows!`] makes the table and a `match` over [`Refusal`] from one list: a new variant does not compile until it has
//! a row. Before and after every row the untouched container is launched as well.
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;
use std::sync::OnceLock;

use hallmark_erofs::{Compression, Limits};
use hallmark_seal::{
    ClaimFile, LayerFormat, SchemaVersion, Seal, SealedLayer, SigningKey, Subject,
};
use hallmark_verity::{DiffId, LayerDigest};
use rustix::mount::{MoveMountFlags, move_mount};

use super::*;
use crate::error::ErrorKind;

const POLICY: &str = "policy_name=node policy_version=1.0.0\nDEFAULT action=ALLOW\n\
                      DEFAULT op=EXECUTE action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n";

/// Whether the test runs as root; says so if not.
pub(super) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// Runs `test` in a thread with a mount namespace and a tmpfs of its own, or says why not.
fn privately(test: impl FnOnce(&Path) + Send + 'static) {
    if !is_root() {
        return;
    }
    let run = move || {
        let dir = tempfile::tempdir().unwrap();
        #[expect(
            deprecated,
            reason = "only CLONE_FILES makes it unsound, and it is not asked for"
        )]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        sh("mount --make-rprivate /");
        sh(&format!("mount -t tmpfs tmpfs {}", dir.path().display()));
        test(dir.path());
        sh(&format!("umount -l {}", dir.path().display()));
    };
    std::thread::spawn(run).join().unwrap();
}

fn sh(command: &str) {
    let done = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command}: {stderr}");
}

/// Key and certificate of the node's signer.
fn signer() -> &'static (Vec<u8>, Vec<u8>) {
    static SIGNER: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    SIGNER.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        sh(&format!(
            "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
             -subj /CN=node -addext keyUsage=critical,digitalSignature -keyout key.pem -out cert.pem",
            dir.path().display()
        ));
        let read = |name| fs::read(dir.path().join(name)).unwrap();
        (read("key.pem"), read("cert.pem"))
    })
}

/// A packed layer on a loop device, mounted as our snapshotter would.
fn layer(dir: &Path, name: &str, script: &str) -> (PathBuf, SealedLayer) {
    let tree = dir.join(format!("{name}.tree"));
    let image = dir.join(format!("{name}.img"));
    fs::create_dir(&tree).unwrap();
    sh(&format!("cd {} && {script}", tree.display()));
    let tar = dir.join(format!("{name}.tar"));
    sh(&format!("tar -cf {} -C {} .", tar.display(), tree.display()));
    let out = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
    let (tar, limits) = (File::open(&tar).unwrap(), Limits::default());
    let packed = hallmark_erofs::pack(tar, Compression::None, &out, &limits).unwrap();
    let lower = dir.join(name);
    fs::create_dir(&lower).unwrap();
    let device =
        hallmark_sys::loopdev::attach_read_only(File::open(&image).unwrap().as_fd()).unwrap();
    sh(&format!("mount -t erofs -o ro {} {}", device.path.display(), lower.display()));
    let sealed = SealedLayer {
        digest: LayerDigest::of(name.as_bytes()),
        diff_id: DiffId::of(name.as_bytes()),
        root_hash: packed.root_hash(),
        salt: packed.salt(),
        data_blocks: packed.data_blocks(),
    };
    (lower, sealed)
}

fn claim(dir: &Path, layers: &[SealedLayer]) {
    let (key, certificate) = signer();
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
        layers: layers.to_vec(),
        pins: None,
    };
    let claim = SigningKey::from_pem(key, certificate).unwrap().seal(&seal).unwrap();
    let path = dir.join("claims").join(seal.stack_id().file_name());
    fs::write(path, ClaimFile::from(claim).encode().unwrap()).unwrap();
}

/// A node, a sealed image of two layers on it, and a container to be started from that.
#[derive(Clone)]
struct World {
    dir: PathBuf,
    config: PathBuf,
    lowers: Vec<PathBuf>,
    options: String,
    handed_over: bool,
    args: Vec<String>,
    namespace: MountNamespace,
    mounts: Vec<MountRequest>,
    hooks: Vec<PathBuf>,
}

impl World {
    fn new(dir: &Path) -> Self {
        let (key, certificate) = signer();
        fs::create_dir(dir.join("claims")).unwrap();
        fs::write(dir.join("keys.pem"), certificate).unwrap();
        let policy = SigningKey::from_pem(key, certificate).unwrap().sign_policy(POLICY.as_bytes());
        fs::write(dir.join("policy.p7b"), policy.unwrap()).unwrap();
        for mode in ["enforce", "audit"] {
            let shown = dir.display();
            let config = format!(
                "[gate]\nmode = \"{mode}\"\nminimum_evidence = \"rehashed\"\nexec_control = \"launch-only\"\n\
                 claims = \"{shown}/claims\"\naudit_log = \"{shown}/log/audit.log\"\nhooks = [\"/usr/bin/allowed\"]\n\
                 [trust]\nkeys = \"{shown}/keys.pem\"\npolicy = \"{shown}/policy.p7b\"\n\
                 [snapshotter]\nstate = \"{shown}\"\n"
            );
            fs::write(dir.join(format!("{mode}.toml")), config).unwrap();
        }
        let program = "mkdir -p usr/bin etc srv/www && ln -s usr/bin bin && \
                       printf x >usr/bin/app && chmod 755 usr/bin/app && printf conf >etc/conf && \
                       head -c 100000 /dev/urandom >srv/www/large";
        let (bottom, a) = layer(dir, "a", program);
        let (top, b) = layer(dir, "b", "mkdir etc && printf upper >etc/other");
        claim(dir, &[a, b]);
        Self {
            dir: dir.to_owned(),
            config: dir.join("enforce.toml"),
            lowers: vec![top, bottom],
            options: String::new(),
            handed_over: true,
            args: vec!["/bin/app".to_owned()],
            namespace: MountNamespace::New,
            mounts: Vec::new(),
            hooks: vec!["/usr/bin/allowed".into()],
        }
    }

    /// With an upper and work directory of its own.
    fn fresh(&self) -> Self {
        let upper = tempfile::tempdir_in(&self.dir).unwrap().keep();
        let shown = upper.display();
        sh(&format!("mkdir {shown}/fs {shown}/work"));
        let options = format!("\"upperdir={shown}/fs\",\"workdir={shown}/work\",");
        Self { options, ..self.clone() }
    }

    fn upper(&self) -> PathBuf {
        self.options.split('"').nth(1).unwrap().trim_start_matches("upperdir=").into()
    }

    fn mount(&mut self, source: &Path, destination: &str, kind: MountKind) {
        let source = Some(source.to_owned());
        self.mounts.push(MountRequest { destination: destination.into(), source, kind });
    }

    fn launch(&self) -> Result<Launch> {
        let lowers: Vec<&str> = self.lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
        let lowerdir = format!("\"lowerdir={}\"", lowers.join(":"));
        let text = format!(
            "{{\"schemaVersion\":1,\"mounts\":[{{\"type\":\"overlay\",\"source\":\"overlay\",\"options\":[{}{lowerdir}]}}]}}",
            self.options
        );
        self.launch_with(&text)
    }

    fn launch_with(&self, hand_over: &str) -> Result<Launch> {
        let file = self.dir.join("hallmark-rootfs.json");
        fs::write(&file, hand_over).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        launch(&Request {
            container: "c1",
            config: &self.config,
            rootfs_mounts: self.handed_over.then_some(file.as_path()),
            args: &self.args,
            env: &["PATH=/usr/bin:/bin".to_owned()],
            mount_label: None,
            mount_namespace: self.namespace.clone(),
            mounts: &self.mounts,
            hooks: &self.hooks,
        })
    }

    fn refused(&self) -> String {
        let error = self.launch().map(|launch| launch.verdict).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        error.to_string()
    }

    /// Attaches the root file system and gives its mount point.
    fn attach(&self, launch: &Launch) -> PathBuf {
        let to = tempfile::tempdir_in(&self.dir).unwrap().keep();
        let from = launch.rootfs.as_ref().unwrap();
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(from, "", rustix::fs::CWD, &to, flags).unwrap();
        to
    }

    /// Changes one bit of a stored layer.
    fn flip(&self, image: &str, offset: u64) {
        let file = File::options().read(true).write(true).open(self.dir.join(image)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }
}

/// A row: which refusal, a piece of its message, how to get there.
type Row = (&'static str, &'static str, fn(&mut World));

macro_rules! rows {
    ($($variant:ident, $fragment:expr, $tamper:expr;)*) => {
        const ROWS: &[Row] = &[$((stringify!($variant), $fragment, $tamper),)*];

        /// Not called: it is here to have no wildcard.
        const _: fn(&Refusal) = |refusal| match refusal {
            $(Refusal::$variant { .. } => {})*
        };
    };
}

rows! {
    Hook, "hook /opt/evil, expected one of gate.hooks", |w| w.hooks.push("/opt/evil".into());
    Layers, "expected EROFS", |w| w.lowers[0] = w.dir.join("a.tree");
    MountHidesCode, "hides code of the image", |w| {
        let source = w.dir.join("a.tree");
        w.mount(&source, "/usr/bin", MountKind::Bind);
    };
    MountNamespaceJoined, "mount namespace /proc/1/ns/mnt", |w| {
        w.namespace = MountNamespace::Joined("/proc/1/ns/mnt".into());
    };
    MountNamespaceMissing, "no mount namespace", |w| w.namespace = MountNamespace::Inherited;
    NoLayers, "is the directory", |w| w.options = "bind".to_owned();
    NotHandedOver, "mounted by the caller", |w| w.handed_over = false;
    ProgramUnverified, "would be started from", |w| {
        w.args = vec!["/sbin/tini".to_owned()];
        let source = w.dir.join("a.tree/usr/bin/app");
        w.mount(&source, "/sbin/tini", MountKind::Bind);
    };
    UpperNotEmpty, "holds bin before the first start", |w| fs::create_dir(w.upper().join("bin")).unwrap();
    UpperOfOtherStack, "was written on stack 00", |w| {
        let work = w.upper().parent().unwrap().join("work");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(work, "trusted.hallmark.stack", b"00", flags).unwrap();
    };
}

#[test]
fn every_refusal_has_a_row_and_an_untouched_twin() {
    privately(|dir| {
        let world = World::new(dir);
        for (variant, fragment, tamper) in ROWS {
            assert_eq!(world.fresh().launch().unwrap().verdict.outcome, Outcome::Permitted);
            let mut tampered = world.fresh();
            tamper(&mut tampered);
            let message = if tampered.options == "bind" {
                let source = world.fresh().upper();
                let error =
                    tampered.launch_with(&bind(&source, "rw")).map(|l| l.verdict).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused);
                error.to_string()
            } else {
                tampered.refused()
            };
            assert!(message.starts_with("hallmark: refused: container c1"), "{variant}: {message}");
            assert!(message.contains(fragment), "{variant}: {message}");
            assert!(
                message.contains("exec control launch-only; to run it: "),
                "{variant}: {message}"
            );
        }
        assert!(world.fresh().launch().is_ok());
    });
}

fn bind(source: &Path, access: &str) -> String {
    let mount = format!(
        "{{\"type\":\"bind\",\"source\":\"{}\",\"options\":[\"rbind\",\"{access}\"]}}",
        source.display()
    );
    format!("{{\"schemaVersion\":1,\"mounts\":[{mount}]}}")
}

#[test]
fn a_sealed_stack_is_mounted_from_its_descriptors() {
    privately(|dir| {
        let world = World::new(dir).fresh();
        let launched = world.launch().unwrap();
        assert!(launched.warnings.is_empty());
        assert_eq!(launched.hardening, Hardening::of(hallmark_trust::Enforcement::Enforce));
        let verdict = serde_json::to_value(&launched.verdict).unwrap();
        assert_eq!(verdict["outcome"], "permitted");
        assert_eq!(verdict["evidence"], "rehashed");
        assert_eq!(verdict["execControl"], "launch-only");
        assert_eq!(verdict["image"], ImageDigest::of(b"manifest").to_string());
        assert_eq!(verdict["layers"].as_array().unwrap().len(), 2);

        // swapped after the judgement: what was judged is what is mounted
        sh(&format!("mount --bind {0}/b.tree {0}/a && mount -t tmpfs tmpfs {0}/b", dir.display()));
        let root = world.attach(&launched);
        assert_eq!(fs::read_to_string(root.join("etc/conf")).unwrap(), "conf");
        assert_eq!(fs::read_to_string(root.join("etc/other")).unwrap(), "upper");
        fs::write(root.join("etc/conf"), "changed").unwrap();
        assert_eq!(fs::read_to_string(world.upper().join("etc/conf")).unwrap(), "changed");
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours = table.lines().find(|line| line.contains(root.to_str().unwrap())).unwrap();
        // what is the kernel's default is not shown
        assert!(ours.contains("redirect_dir=nofollow"), "{ours}");
        assert!(!ours.contains("metacopy=on") && !ours.contains("userxattr"), "{ours}");
    });
}

#[test]
fn a_stack_that_is_not_as_sealed_is_refused_with_the_layer() {
    privately(|dir| {
        let world = World::new(dir);
        let (a, b) = (world.lowers[1].clone(), world.lowers[0].clone());
        let digest = LayerDigest::of(b"a");
        world.flip("a.img", 50_000);
        let message = world.fresh().refused();
        assert!(message.contains(&format!("layer 1 ({digest}): root hash is ")), "{message}");
        assert!(
            message.contains(", the seal says ") && message.contains("; evidence rehashed"),
            "{message}"
        );
        world.flip("a.img", 50_000);
        world.fresh().launch().unwrap();

        let stacks: [(&str, Vec<PathBuf>); 4] = [
            ("order changed", vec![a.clone(), b.clone()]),
            ("one left out", vec![a.clone()]),
            ("one left out", vec![b.clone()]),
            ("one twice", vec![b.clone(), a.clone(), b.clone()]),
        ];
        for (why, lowers) in stacks {
            let message = World { lowers, ..world.fresh() }.refused();
            assert!(
                message.contains("no seal for this stack") || message.contains("root hash is"),
                "{why}: {message}"
            );
        }
        let (c, sealed) = layer(dir, "c", "touch c");
        claim(dir, &[sealed]);
        let message = World { lowers: vec![c, a], ..world.fresh() }.refused();
        assert!(message.contains("no seal for this stack of 2 layers"), "{message}");
        fs::remove_dir_all(dir.join("claims")).unwrap();
        assert!(world.fresh().refused().contains("no claim in"));
    });
}

#[test]
fn the_upper_stays_with_its_stack() {
    privately(|dir| {
        let world = World::new(dir).fresh();
        let first = world.launch().unwrap();
        let root = world.attach(&first);
        fs::write(root.join("written"), "by the container").unwrap();
        drop(first);
        sh(&format!("umount {}", root.display()));
        // the same container again, with what it wrote
        let second = world.launch().unwrap();
        assert_eq!(fs::read(world.attach(&second).join("written")).unwrap(), b"by the container");
        // looked into by somebody before the first start, with an overlay of their own
        let other = world.fresh();
        let (upper, lowers) = (other.upper(), &other.lowers);
        let work = upper.parent().unwrap().join("work");
        sh(&format!(
            "mount -t overlay overlay -o lowerdir={}:{},upperdir={},workdir={} /mnt && umount /mnt",
            lowers[0].display(),
            lowers[1].display(),
            upper.display(),
            work.display()
        ));
        other.launch().unwrap();
        let other = world.fresh();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(other.upper(), "trusted.overlay.opaque", b"y", flags).unwrap();
        assert!(other.refused().contains("trusted.overlay.opaque"));
    });
}

#[test]
fn a_view_of_one_layer_is_judged_and_read_only() {
    privately(|dir| {
        let world = World::new(dir);
        let (lower, sealed) = layer(dir, "c", "mkdir bin && touch bin/app");
        claim(dir, &[sealed]);
        let launched = world.launch_with(&bind(&lower, "ro")).unwrap();
        let root = world.attach(&launched);
        assert!(root.join("bin/app").is_file());
        assert!(fs::write(root.join("x"), "").is_err());
        let unsealed = world.launch_with(&bind(&world.lowers[0], "ro")).unwrap_err();
        assert!(unsealed.to_string().contains("no seal for this stack of 1 layers"), "{unsealed}");
    });
}

#[test]
fn audit_passes_and_writes_down_what_enforce_would_refuse() {
    privately(|dir| {
        let mut world = World::new(dir);
        world.config = dir.join("audit.toml");
        let clean = world.fresh().launch().unwrap();
        assert_eq!(clean.verdict.outcome, Outcome::Permitted);
        assert!(fs::read(dir.join("log/audit.log")).is_err());
        let none = Hardening::of(hallmark_trust::Enforcement::Audit);
        assert_eq!(clean.hardening, none);

        let mut unsealed = world.fresh();
        unsealed.lowers.reverse();
        unsealed.hooks.push("/opt/evil".into());
        let launched = unsealed.launch().unwrap();
        assert_eq!(launched.verdict.outcome, Outcome::Audit);
        assert_eq!(launched.warnings.len(), 2);
        assert_eq!(
            fs::read_to_string(unsealed.attach(&launched).join("etc/conf")).unwrap(),
            "conf"
        );
        let log = fs::read_to_string(dir.join("log/audit.log")).unwrap();
        assert_eq!(log.lines().count(), 2);
        assert!(log.contains("no seal for this stack") && log.contains("/opt/evil"), "{log}");

        let plain = World { handed_over: false, ..world.fresh() };
        let launched = plain.launch().unwrap();
        assert!(launched.rootfs.is_none());
        assert_eq!(launched.verdict.outcome, Outcome::NotJudged);
        let source = world.fresh().upper();
        let active = world.launch_with(&bind(&source, "rw")).unwrap();
        fs::write(world.attach(&active).join("x"), "").unwrap();
        assert!(source.join("x").is_file());
    });
}

#[test]
fn mounts_may_cover_data_and_not_code() {
    privately(|dir| {
        let world = World::new(dir);
        let (volume, sealed) = layer(dir, "v", "mkdir bin && touch bin/tool");
        claim(dir, &[sealed]);
        let file = dir.join("a.tree/etc/conf");
        let tree = dir.join("a.tree");
        let rows: [(&Path, &str, MountKind, Option<MountDecision>); 14] = [
            (&file, "/etc/conf", MountKind::Bind, Some(MountDecision::NoExec)),
            (&file, "/etc/hosts", MountKind::Bind, Some(MountDecision::NoExec)),
            (&tree, "/srv/www", MountKind::Bind, Some(MountDecision::NoExec)),
            (&tree, "/usr/bin/newdir", MountKind::Bind, Some(MountDecision::NoExec)),
            (&volume, "/usr/bin", MountKind::Bind, Some(MountDecision::Keep)),
            (Path::new("proc"), "/proc", MountKind::Other, Some(MountDecision::Keep)),
            (&file, "/etc/conf/below/a/file", MountKind::Bind, Some(MountDecision::NoExec)),
            (&tree, "usr/bin", MountKind::Bind, None),
            (&tree, "/usr", MountKind::Bind, None),
            (&tree, "/", MountKind::Bind, None),
            (&tree, "/bin", MountKind::Bind, None),
            (&file, "/bin/app", MountKind::Bind, None),
            (&file, "/srv/../usr/bin/app", MountKind::Bind, None),
            (Path::new("tmpfs"), "/usr/bin", MountKind::Other, None),
        ];
        for (source, destination, kind, expected) in rows {
            let mut world = world.fresh();
            world.mount(source, destination, kind);
            match expected {
                Some(decision) => {
                    let launched = world.launch().unwrap();
                    assert_eq!(launched.mounts, [decision], "{destination}");
                }
                None => assert!(world.refused().contains("hides code"), "{destination}"),
            }
        }
    });
}
