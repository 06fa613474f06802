//! What is built once for the guest: QEMU and firmware, keys, kernel, initramfs, signed root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{firmware, selinux};
use crate::cache::{Cache, fingerprint, remove_tree};
use crate::debian::{self, Variant};
use crate::run::Run;
use crate::signing::Key;

/// What is in the guest's root besides the essential packages.
const ROOT_PACKAGES: &[&str] = &[
    "bats",
    "busybox",
    "cryptsetup-bin",
    "dbus",
    "dmsetup",
    "e2fsprogs",
    "gawk",
    "iproute2",
    "iptables",
    "jq",
    "keyutils",
    "kmod",
    "libcap2-bin",
    "linux-image-amd64",
    "mount",
    "policycoreutils",
    "procps",
    "selinux-policy-default",
    "systemd",
];

/// Modules that the initramfs loads: none can be loaded once the policy denies it.
const MODULES: &[&str] = &[
    "virtio_blk",
    "9pnet_virtio",
    "9p",
    "erofs",
    "ext4",
    "overlay",
    "loop",
    "dm-mod",
    "dm-verity",
    // power cuts are replayed from its log
    "dm-log-writes",
    "veth",
    "bridge",
    "br_netfilter",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "xt_MASQUERADE",
    "xt_comment",
    "xt_conntrack",
    "xt_addrtype",
    "xt_nat",
    "xt_multiport",
    "xt_mark",
    // netlink of IPsec, which nerdctl opens for statistics
    "xfrm_user",
];

/// Programs of a newer Debian, usable on this machine: QEMU, OVMF, EROFS tools.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Unpacks them if they are not there.
    pub(crate) fn build(cache: &Cache) -> Result<Self> {
        let packages = ["libc6", "qemu-system-x86", "ovmf", "erofs-utils"];
        let entry = format!("tools-{}", fingerprint(&[debian::SUITE, "1"]));
        let dir = cache.once(&entry, |dir| {
            let log = cache.log("tools");
            debian::bootstrap(Variant::Extract, &packages, &dir.join("root"), &log)?;
            debian::wrap(
                dir,
                &[
                    ("qemu-system-x86_64", "usr/bin/qemu-system-x86_64"),
                    ("mkfs.erofs", "usr/bin/mkfs.erofs"),
                    ("fsck.erofs", "usr/bin/fsck.erofs"),
                    ("dump.erofs", "usr/bin/dump.erofs"),
                ],
            )
        })?;
        Ok(Self { dir })
    }

    /// The directory of start scripts, for `PATH`.
    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    pub(crate) fn command(&self, name: &str) -> Command {
        Command::new(self.bin().join(name))
    }

    pub(crate) fn firmware(&self, name: &str) -> PathBuf {
        self.dir.join("root/usr/share/OVMF").join(name)
    }
}

/// A verity volume: EROFS, its hash tree behind it, and how to open it.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) image: PathBuf,
    pub(crate) root_hash: String,
    /// Where the tree begins, in bytes.
    pub(crate) offset: u64,
    /// The detached PKCS#7 over the root hash.
    pub(crate) signature: PathBuf,
}

impl Volume {
    /// Makes `<dir>/<name>.{img,hash,p7s}` of a directory and signs the root hash.
    pub(crate) fn make(
        tools: &Tools,
        key: &Key,
        name: &str,
        from: &Path,
        dir: &Path,
    ) -> Result<Self> {
        let image = dir.join(format!("{name}.img"));
        if let Err(error) = fs::remove_file(&image) {
            anyhow::ensure!(error.kind() == std::io::ErrorKind::NotFound, "remove {name}: {error}");
        }
        tools.command("mkfs.erofs").args(["--quiet", "-T0"]).arg(&image).arg(from).good()?;
        let offset = fs::metadata(&image)?.len().next_multiple_of(4096);
        let root_hash_file = dir.join(format!("{name}.hash"));
        Command::new("veritysetup")
            .args(["format", "--hash=sha256", "--salt=-", "--data-block-size=4096"])
            .args(["--hash-block-size=4096", "--uuid=11111111-0000-0000-0000-000000000001"])
            .arg(format!("--data-blocks={}", offset / 4096))
            .arg(format!("--hash-offset={offset}"))
            .arg(format!("--root-hash-file={}", root_hash_file.display()))
            .args([&image, &image])
            .good()?;
        fs::write(dir.join(format!("{name}.offset")), offset.to_string())?;
        key.sign_detached(&root_hash_file, &dir.join(format!("{name}.p7s")))?;
        Self::read(name, dir)
    }

    fn read(name: &str, dir: &Path) -> Result<Self> {
        Ok(Self {
            image: dir.join(format!("{name}.img")),
            root_hash: crate::files::text(&dir.join(format!("{name}.hash")))?.trim().to_owned(),
            offset: crate::files::text(&dir.join(format!("{name}.offset")))?.parse()?,
            signature: dir.join(format!("{name}.p7s")),
        })
    }
}

/// All that a boot needs but the kit.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) tools: Tools,
    pub(crate) key: Key,
    pub(crate) root: Volume,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) variables: PathBuf,
}

impl Parts {
    /// Builds what is missing.
    pub(crate) fn build(cache: &Cache) -> Result<Self> {
        let tools = Tools::build(cache)?;
        let key = Key::of_the_guest(cache)?;
        let script = include_str!("initramfs.sh");
        let (packages, modules) = (ROOT_PACKAGES.join(","), MODULES.join(","));
        let recipe = fingerprint(&[script, &packages, &modules, selinux::MODULE, key.id()]);
        let system = cache.once(&format!("guest-system-{}", fingerprint(ROOT_PACKAGES)), |at| {
            let log = cache.log("guest-system");
            debian::bootstrap(Variant::Minimal, ROOT_PACKAGES, &at.join("root"), &log)
        })?;
        let dir = cache.once(&format!("guest-{recipe}"), |dir| {
            build(&tools, &key, &system.join("root"), dir)
        })?;
        Ok(Self {
            tools,
            key,
            root: Volume::read("root", &dir)?,
            kernel: dir.join("vmlinuz"),
            initramfs: dir.join("initramfs"),
            variables: dir.join("variables.fd"),
        })
    }
}

fn build(tools: &Tools, key: &Key, system: &Path, dir: &Path) -> Result<()> {
    selinux::prepare(system)?;
    Volume::make(tools, key, "root", system, dir)?;
    let version = only_entry(&system.join("usr/lib/modules"))?;
    fs::copy(system.join(format!("boot/vmlinuz-{version}")), dir.join("vmlinuz"))?;
    let template = fs::read(tools.firmware("OVMF_VARS_4M.fd")).context("read OVMF's variables")?;
    let certificate = key.certificate_der()?;
    fs::write(dir.join("variables.fd"), firmware::with_certificate(&template, &certificate)?)?;
    initramfs(system, &version, &dir.join("initramfs"))
}

fn only_entry(dir: &Path) -> Result<String> {
    let mut names = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let name = names.next().with_context(|| format!("nothing in {}", dir.display()))??;
    Ok(name.file_name().to_string_lossy().into_owned())
}

/// busybox, veritysetup and their libraries, the modules decompressed, and the script.
fn initramfs(system: &Path, version: &str, target: &Path) -> Result<()> {
    let tree = target.with_extension("tree");
    remove_tree(&tree)?;
    for dir in ["bin", "sbin", "proc", "sys", "dev", "newroot"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    for (program, place) in [
        ("/usr/bin/busybox", "bin/busybox"),
        ("/usr/sbin/veritysetup", "sbin/veritysetup"),
        ("/usr/sbin/dmsetup", "sbin/dmsetup"),
    ] {
        fs::copy(below(system, program), tree.join(place))
            .with_context(|| format!("copy {program}"))?;
        copy_libraries(system, program, &tree)?;
    }
    for applet in
        ["sh", "cat", "cp", "echo", "mkdir", "modprobe", "mount", "poweroff", "switch_root"]
    {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet))?;
    }
    copy_modules(system, version, &tree)?;
    let script = include_str!("initramfs.sh").replace("MODULES", &MODULES.join(" "));
    fs::write(tree.join("init"), script)?;
    crate::files::set_mode(&tree.join("init"), 0o755)?;
    let pack = "find . | cpio --create --format=newc --owner=0:0 --quiet > \"$0\"";
    Command::new("sh").current_dir(&tree).args(["-c", pack]).arg(target).good()?;
    remove_tree(&tree)
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn copy_libraries(system: &Path, program: &str, tree: &Path) -> Result<()> {
    let listed = Command::new("chroot").arg(system).args(["ldd", program]).good()?;
    for word in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let target = below(tree, word);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(below(system, word), &target).with_context(|| format!("copy {word}"))?;
    }
    Ok(())
}

/// The modules with all they depend on, where `modprobe` looks for them.
fn copy_modules(system: &Path, version: &str, tree: &Path) -> Result<()> {
    let mut files = Vec::new();
    for module in MODULES.iter().chain(&["crc32c_generic", "crc32c_intel"]) {
        let shown = Command::new("chroot")
            .arg(system)
            .args(["modprobe", "-S", version, "--show-depends", module])
            .ran()?;
        for line in shown.stdout.lines() {
            if let Some(file) = line.strip_prefix("insmod ") {
                let file = file.trim().trim_start_matches("/usr").to_owned();
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
    }
    for file in files {
        let target = below(tree, file.trim_end_matches(".xz"));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let from = below(system, &format!("/usr{file}"));
        let how = if file.ends_with(".xz") { "xz -dc" } else { "cat" };
        let script = format!("{how} \"$0\" > \"$1\"");
        Command::new("sh").args(["-c", &script]).arg(from).arg(target).good()?;
    }
    let names = ["modules.order", "modules.builtin", "modules.builtin.modinfo"];
    for name in names {
        let from = system.join("usr/lib/modules").join(version).join(name);
        fs::copy(from, tree.join("lib/modules").join(version).join(name))?;
    }
    Command::new("chroot").arg(system).args(["mkdir", "-p", "/tmp/m"]).good()?;
    Command::new("mount").arg("--bind").arg(tree).arg(system.join("tmp/m")).good()?;
    let made = Command::new("chroot").arg(system).args(["depmod", "-b", "/tmp/m", version]).good();
    Command::new("umount").arg(system.join("tmp/m")).good()?;
    made?;
    fs::remove_dir(system.join("tmp/m")).context("remove the mount point")
}
