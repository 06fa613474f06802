//! A node, sealed layers on loop devices, and containers to be started from them: for tests.
//!
//! Also a module of `tests/id_mapped.rs`, which must be a process of one thread.
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hallmark_erofs::{Compression, Limits};
use hallmark_seal::{
    ClaimFile, LayerFormat, SchemaVersion, Seal, SealedLayer, SigningKey, Subject, Timestamp,
};
use hallmark_verity::{DiffId, ImageDigest, LayerDigest};
use rustix::mount::{MoveMountFlags, move_mount};

use super::{
    Access, ErrorKind, HookRequest, Launch, MountKind, MountNamespace, MountRequest, Processes,
    Request, Result, Runs, launch,
};

const POLICY: &str = "policy_name=node policy_version=1.0.0\nDEFAULT action=ALLOW\n\
                      DEFAULT op=EXECUTE action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n";

/// Whether the test runs as root; says so if not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// Runs `test` in a thread with a mount namespace and a tmpfs of its own, or says why not.
pub(crate) fn privately(test: impl FnOnce(&Path) + Send + 'static) {
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

pub(crate) fn sh(command: &str) {
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
pub(crate) fn layer(dir: &Path, name: &str, script: &str) -> (PathBuf, SealedLayer) {
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

pub(crate) fn claim(dir: &Path, layers: &[SealedLayer]) {
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
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) lowers: Vec<PathBuf>,
    pub(crate) options: String,
    pub(crate) handed_over: bool,
    pub(crate) root: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) namespace: MountNamespace,
    pub(crate) mounts: Vec<MountRequest>,
    pub(crate) hooks: Vec<HookRequest>,
}

impl World {
    pub(crate) fn new(dir: &Path) -> Self {
        let (key, certificate) = signer();
        fs::create_dir(dir.join("claims")).unwrap();
        fs::write(dir.join("keys.pem"), certificate).unwrap();
        let policy = SigningKey::from_pem(key, certificate).unwrap().sign_policy(POLICY.as_bytes());
        fs::write(dir.join("policy.p7b"), policy.unwrap()).unwrap();
        for mode in ["enforce", "audit"] {
            let shown = dir.display();
            let config = format!(
                "[gate]\nmode = \"{mode}\"\nminimum_evidence = \"rehashed\"\nexec_control = \"launch-only\"\n\
                 claims = \"{shown}/claims\"\naudit_log = \"{shown}/log/audit.log\"\n\
                 hooks = [{{path = \"/usr/bin/allowed\", args = [\"allowed\", \"now\"], env = [\"PATH=/sbin\", \"HOME\"]}}]\n\
                 [trust]\nkeys = \"{shown}/keys.pem\"\npolicy = \"{shown}/policy.p7b\"\n\
                 [snapshotter]\nroot = \"{shown}/lib\"\nstate = \"{shown}\"\n"
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
            root: dir.to_owned(),
            args: vec!["/bin/app".to_owned()],
            namespace: MountNamespace::New,
            mounts: Vec::new(),
            hooks: vec![hook("/usr/bin/allowed", &["allowed", "now"])],
        }
    }

    /// With an upper and work directory of its own.
    pub(crate) fn fresh(&self) -> Self {
        let upper = tempfile::tempdir_in(&self.dir).unwrap().keep();
        let shown = upper.display();
        sh(&format!("mkdir {shown}/fs {shown}/work"));
        let options = format!("\"upperdir={shown}/fs\",\"workdir={shown}/work\",");
        Self { options, ..self.clone() }
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.options.split('"').nth(1).unwrap().trim_start_matches("upperdir=").into()
    }

    pub(crate) fn mount(&mut self, source: &Path, destination: &str, kind: MountKind) {
        let source = Some(source.to_owned());
        let access = Access::ReadOnly;
        self.mounts.push(MountRequest { destination: destination.into(), source, kind, access });
    }

    pub(crate) fn hook(&mut self, path: &str, args: &[&str]) {
        self.hooks.push(hook(path, args));
    }

    pub(crate) fn launch(&self) -> Result<Launch> {
        let lowers: Vec<&str> = self.lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
        let lowerdir = format!("\"lowerdir={}\"", lowers.join(":"));
        let text = format!(
            "{{\"schemaVersion\":1,\"mounts\":[{{\"type\":\"overlay\",\"source\":\"overlay\",\"options\":[{}{lowerdir}]}}]}}",
            self.options
        );
        self.launch_with(&text)
    }

    pub(crate) fn launch_with(&self, hand_over: &str) -> Result<Launch> {
        let file = self.dir.join("hallmark-rootfs.json");
        fs::write(&file, hand_over).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        launch(&Request {
            container: "c1",
            config: &self.config,
            rootfs_mounts: self.handed_over.then_some(file.as_path()),
            root: &self.root,
            args: &self.args,
            cwd: Path::new("/srv"),
            env: &["PATH=/usr/bin:/bin".to_owned()],
            mount_label: None,
            mount_namespace: self.namespace.clone(),
            processes: Processes::Contained,
            mounts: &self.mounts,
            hooks: &self.hooks,
        })
    }

    pub(crate) fn refused(&self) -> String {
        let error = self.launch().map(|launch| launch.verdict).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        error.to_string()
    }

    /// Attaches the root file system and gives its mount point.
    pub(crate) fn attach(&self, launch: &Launch) -> PathBuf {
        let to = tempfile::tempdir_in(&self.dir).unwrap().keep();
        let from = launch.rootfs.as_ref().unwrap();
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(from, "", rustix::fs::CWD, &to, flags).unwrap();
        to
    }

    /// Changes one bit of a stored layer.
    pub(crate) fn flip(&self, image: &str, offset: u64) {
        let file = File::options().read(true).write(true).open(self.dir.join(image)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }
}

fn hook(path: &str, args: &[&str]) -> HookRequest {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    HookRequest { path: path.into(), args, env: Vec::new(), runs: Runs::Outside }
}

pub(crate) fn bind(source: &Path, access: &str) -> String {
    let mount = format!(
        "{{\"type\":\"bind\",\"source\":\"{}\",\"options\":[\"rbind\",\"{access}\"]}}",
        source.display()
    );
    format!("{{\"schemaVersion\":1,\"mounts\":[{mount}]}}")
}
