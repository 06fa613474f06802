//! The guest's first process, started from the signed kit by the initramfs.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::boot::Init;
use super::selinux;
use crate::cgroups;
use crate::run::Run;
use crate::sandbox::{adopt, bind, mount};

/// Where the initramfs puts the kit and the share with the host.
pub(crate) const KIT: &str = "/kit";
pub(crate) const SHARE: &str = "/host";

/// Does what the host left in the share, writes the result there, and ends the machine.
pub(crate) fn run(init: Init) -> Result<()> {
    let code = match work(init) {
        Ok(code) => code,
        Err(error) => {
            fs::write(share("error.log"), format!("{error:#}\n"))?;
            1
        }
    };
    let dmesg = Command::new("dmesg").ran()?.stdout;
    fs::write(share("dmesg.log"), dmesg)?;
    fs::write(share("rc"), code.to_string())?;
    rustix::fs::sync();
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("power off")
}

fn share(name: &str) -> std::path::PathBuf {
    Path::new(SHARE).join(name)
}

fn work(init: Init) -> Result<u8> {
    let program = std::env::current_exe()?;
    let mut work = match init {
        Init::Own => {
            prepare()?;
            let mut work = Command::new("runcon");
            work.arg(selinux::NODE).arg(program);
            work
        }
        Init::Systemd => Command::new(program),
    };
    prepare_data()?;
    let out = File::create(share("out.log"))?;
    work.args(crate::files::text(&share("arguments"))?.split('\0'))
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .stdin(std::process::Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out);
    adopt(&mut work)
}

fn prepare() -> Result<()> {
    // before anything else is mounted, so that it is labelled as the policy says
    selinux::load()?;
    mount(&["--make-rshared", "/"])?;
    for dir in ["/dev/pts", "/dev/shm"] {
        fs::create_dir_all(dir)?;
    }
    mount(&["-t", "devpts", "-o", "ptmxmode=666", "devpts", "/dev/pts"])?;
    mount(&["-t", "tmpfs", "shm", "/dev/shm"])?;
    mount(&["-t", "tmpfs", "-o", "mode=1777", "tmp", "/tmp"])?;
    mount(&["-t", "securityfs", "securityfs", "/sys/kernel/security"])?;
    mount(&["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])?;
    cgroups::mount_own()?;
    // audit records are evidence here: none may be dropped
    fs::write("/proc/sys/kernel/printk_ratelimit", "0")?;
    fs::write("/proc/sys/kernel/hostname", "guest")?;
    Command::new("ip").args(["link", "set", "lo", "up"]).good().map(drop)
}

/// The disk that a boot starts with, empty.
fn prepare_data() -> Result<()> {
    fs::create_dir_all("/data")?;
    mount(&["-t", "ext4", "/dev/vdc", "/data"])?;
    for name in ["containerd", "hallmark", "nerdctl"] {
        let source = Path::new("/data").join(name);
        fs::create_dir_all(&source)?;
        bind(&source, &Path::new("/var/lib").join(name))?;
    }
    Ok(())
}
