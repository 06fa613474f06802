//! Keys, and real layers on loop devices, for tests.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hallmark_erofs::{Compression, Limits};
use hallmark_seal::SigningKey;
use hallmark_sys::loopdev;
use hallmark_verity::{RootHash, VolumeParams};

/// A key with its certificate, made by openssl once for all tests.
pub(crate) struct Signer {
    key: Vec<u8>,
    /// PEM.
    pub(crate) certificate: Vec<u8>,
}

impl Signer {
    /// The signer whose certificate the tests' nodes trust.
    pub(crate) fn ours() -> &'static Self {
        static OURS: OnceLock<Signer> = OnceLock::new();
        OURS.get_or_init(|| Self::make("ours"))
    }

    /// Somebody else.
    pub(crate) fn other() -> &'static Self {
        static OTHER: OnceLock<Signer> = OnceLock::new();
        OTHER.get_or_init(|| Self::make("other"))
    }

    pub(crate) fn key(&self) -> SigningKey {
        SigningKey::from_pem(&self.key, &self.certificate).unwrap()
    }

    fn make(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        sh(&format!(
            "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
             -subj /CN={name} -addext keyUsage=critical,digitalSignature -keyout key.pem -out cert.pem",
            dir.path().display()
        ));
        let read = |name| fs::read(dir.path().join(name)).unwrap();
        Self { key: read("key.pem"), certificate: read("cert.pem") }
    }
}

/// Whether the test runs as root; says so if not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// Whether the kernel has dm-verity; says so if not.
pub(crate) fn has_device_mapper() -> bool {
    let has = hallmark_sys::dm::version().is_ok();
    if !has {
        println!("skipped: needs dm-verity");
    }
    has
}

/// Runs `test` in a thread with a mount namespace and a tmpfs of its own, or says why not.
pub(crate) fn privately(test: impl FnOnce(&Path) + Send + 'static) {
    if !is_root() {
        return;
    }
    let run = move || {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display();
        own_mount_namespace();
        sh("mount --make-rprivate /");
        sh(&format!("mount -t tmpfs tmpfs {shown}"));
        test(dir.path());
        sh(&format!("umount -l {shown}"));
    };
    std::thread::spawn(run).join().unwrap();
}

/// For the calling thread alone; the other tests' threads keep theirs.
fn own_mount_namespace() {
    #[expect(deprecated, reason = "only CLONE_FILES makes it unsound, and it is not asked for")]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
}

/// Runs a shell command in this thread's namespaces.
pub(crate) fn sh(command: &str) {
    let done = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command}: {stderr}");
}

/// A packed layer: image, superblock and hash tree in one file.
pub(crate) struct Layer {
    pub(crate) image: PathBuf,
    pub(crate) mount_point: PathBuf,
    pub(crate) root_hash: RootHash,
    pub(crate) params: VolumeParams,
}

impl Layer {
    /// Packs a directory with `file` (holding `content`) and `sub/inner`.
    pub(crate) fn pack(dir: &Path, file: &str, content: &str) -> Self {
        let tree = dir.join(format!("{file}.tree"));
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join(file), content).unwrap();
        fs::write(tree.join("sub/inner"), "inner").unwrap();
        fs::write(tree.join("large"), file.repeat(1 << 20)).unwrap();
        let image = dir.join(format!("{file}.img"));
        let tar = dir.join(format!("{file}.tar"));
        sh(&format!("tar -cf {} -C {} .", tar.display(), tree.display()));
        let out = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
        let (tar, limits) = (File::open(&tar).unwrap(), Limits::default());
        let packed = hallmark_erofs::pack(tar, Compression::None, &out, &limits).unwrap();
        let params = VolumeParams::new(packed.salt(), packed.data_blocks()).unwrap();
        let mount_point = dir.join(format!("{file}.mnt"));
        fs::create_dir(&mount_point).unwrap();
        Self { image, mount_point, root_hash: packed.root_hash(), params }
    }

    /// Mounts it by a read-only loop device that goes with the mount.
    pub(crate) fn mount(&self) {
        let image = File::open(&self.image).unwrap();
        let device = loopdev::attach_read_only(image.as_fd()).unwrap();
        let (from, to) = (device.path.display(), self.mount_point.display());
        sh(&format!("mount -t erofs -o ro {from} {to}"));
    }

    /// Changes one bit of the file's byte at `offset`, under any mount of it.
    pub(crate) fn flip(&self, offset: u64) {
        let file = File::options().read(true).write(true).open(&self.image).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }
}
