//! One boot of the guest: what it is given, what it prints, how it ended.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::parts::{Parts, Volume};
use crate::cache::{is_there, remove_tree};
use crate::kit::Kit;
use crate::run::{Run, tail};
use crate::sandbox::Daemon;

/// The guest's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Init {
    /// This program, with SELinux.
    Own,
    /// systemd, with a unit that starts this program, and without SELinux: its policy is for a whole Debian.
    Systemd,
}

impl Init {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Systemd => "systemd",
        }
    }
}

/// How a boot ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: u8,
    pub(crate) seconds: u64,
}

/// A guest whose kit is sealed and whose directory is ready.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    parts: &'a Parts,
    kit: Volume,
    dir: PathBuf,
    init: Init,
}

impl<'a> Guest<'a> {
    /// Makes the signed kit volume, in `dir`.
    pub(crate) fn new(parts: &'a Parts, kit: &Kit, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let kit = Volume::make(&parts.tools, &parts.key, "kit", kit.root(), dir)?;
        Ok(Self { parts, kit, dir: dir.to_owned(), init: Init::Own })
    }

    /// The same with another first process.
    pub(crate) fn starting(self, init: Init) -> Self {
        Self { init, ..self }
    }

    /// Boots with an empty disk, runs `integration ARGUMENTS` from the kit as root, and passes on each line it prints.
    ///
    /// QEMU's emulation of several processors can break the guest kernel's patching of its own
    /// code; that crash is known by its words and tried once more. Every other end counts.
    pub(crate) fn run(&self, arguments: &[&str], each: &mut dyn FnMut(&str)) -> Result<Ended> {
        let fresh = || {
            let data = self.data();
            File::create(&data)?.set_len(6 << 30)?;
            Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-m", "0"]).arg(&data).good()
        };
        fresh()?;
        match self.attempt(arguments, each) {
            Err(_) if self.console().contains("Oops: int3") => {
                each("guest: crashed in self-modifying code under emulation; once more");
                fresh()?;
                self.attempt(arguments, each)
            }
            result => result,
        }
    }

    /// The same over the disk as the last boot left it.
    pub(crate) fn run_again(
        &self,
        arguments: &[&str],
        each: &mut dyn FnMut(&str),
    ) -> Result<Ended> {
        self.attempt(arguments, each)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data.img")
    }

    fn console(&self) -> String {
        fs::read_to_string(self.dir.join("console.log")).unwrap_or_default()
    }

    fn attempt(&self, arguments: &[&str], each: &mut dyn FnMut(&str)) -> Result<Ended> {
        let share = self.dir.join("share");
        remove_tree(&share)?;
        fs::create_dir_all(&share)?;
        fs::write(share.join("arguments"), arguments.join("\0"))?;
        fs::copy(&self.parts.root.signature, share.join("root.p7s"))?;
        fs::copy(&self.kit.signature, share.join("kit.p7s"))?;
        fs::copy(&self.parts.variables, self.dir.join("variables.fd"))?;
        let started = Instant::now();
        let mut machine =
            Daemon::start(self.qemu(&share, &self.data()), &self.dir.join("qemu.log"))?;
        let mut reader = Lines::new(share.join("out.log"));
        while machine.ended()?.is_none() {
            reader.pass_on(each)?;
            if started.elapsed() > Duration::from_secs(1800) {
                machine.kill()?;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        reader.pass_on(each)?;
        let result = share.join("rc");
        if !is_there(&result) {
            let said = fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
            let error = fs::read_to_string(share.join("error.log")).unwrap_or_default();
            bail!("the guest ended without a result\n{said}{error}{}", tail(&self.console(), 30));
        }
        if is_there(&share.join("error.log")) {
            bail!("in the guest: {}", crate::files::text(&share.join("error.log"))?);
        }
        let code = crate::files::text(&result)?.trim().parse().context("the guest's exit code")?;
        Ok(Ended { code, seconds: started.elapsed().as_secs() })
    }

    fn qemu(&self, share: &Path, data: &Path) -> Command {
        let parts = self.parts;
        let pflash = |unit: u8, file: &Path, more: &str| {
            format!("if=pflash,format=raw,unit={unit},file={}{more}", file.display())
        };
        let disk =
            |file: &Path, more: &str| format!("file={},if=virtio,format=raw{more}", file.display());
        let code = parts.tools.firmware("OVMF_CODE_4M.fd");
        let mut qemu = parts.tools.command("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "3072"])
            .args(["-accel", "tcg,thread=multi"])
            .args(["-nographic", "-no-reboot", "-nodefaults"])
            .arg("-serial")
            .arg(format!("file:{}", self.dir.join("console.log").display()))
            .args(["-drive", &pflash(0, &code, ",readonly=on")])
            .args(["-drive", &pflash(1, &self.dir.join("variables.fd"), "")])
            .args(["-drive", &disk(&parts.root.image, ",readonly=on")])
            .args(["-drive", &disk(&self.kit.image, ",readonly=on")])
            .args(["-drive", &disk(data, ",cache=unsafe")])
            .arg("-virtfs")
            .arg(format!(
                "local,path={},mount_tag=host,security_model=none,multidevs=remap",
                share.display()
            ))
            .arg("-kernel")
            .arg(&parts.kernel)
            .arg("-initrd")
            .arg(&parts.initramfs)
            .args(["-append", &self.command_line()]);
        qemu
    }

    fn command_line(&self) -> String {
        let (root, kit) = (&self.parts.root, &self.kit);
        let init = match self.init {
            Init::Own => "first=own selinux=1 enforcing=1",
            Init::Systemd => "first=systemd selinux=0 systemd.unit=hallmark.service",
        };
        format!(
            "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable random.trust_cpu=on \
             lsm=landlock,lockdown,yama,integrity,selinux,bpf,ipe {init} proc_mem.force_override=never \
             root_hash={} root_offset={} kit_hash={} kit_offset={}",
            root.root_hash, root.offset, kit.root_hash, kit.offset
        )
    }
}

/// Whole lines of a file that grows.
struct Lines {
    path: PathBuf,
    at: u64,
    partial: String,
}

impl Lines {
    fn new(path: PathBuf) -> Self {
        Self { path, at: 0, partial: String::new() }
    }

    fn pass_on(&mut self, each: &mut dyn FnMut(&str)) -> Result<()> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(()) };
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        self.at += u64::try_from(file.read_to_end(&mut bytes)?)?;
        self.partial.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((line, rest)) = self.partial.split_once('\n') {
            each(line);
            self.partial = rest.to_owned();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_once() {
        let path = std::env::temp_dir().join(format!("hallmark-lines-{}", std::process::id()));
        let mut seen = Vec::new();
        let mut lines = Lines::new(path.clone());
        lines.pass_on(&mut |line| seen.push(line.to_owned())).unwrap();
        fs::write(&path, "one\ntw").unwrap();
        lines.pass_on(&mut |line| seen.push(line.to_owned())).unwrap();
        fs::write(&path, "one\ntwo\n").unwrap();
        lines.pass_on(&mut |line| seen.push(line.to_owned())).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(seen, ["one", "two"]);
    }
}
