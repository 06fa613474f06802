//! busybox as its authors configure it, from the sources that Debian keeps.
//!
//! Debian's own build is no stand-in where the kernel is asked by name: its shell runs an applet
//! without looking at the file of that name, and it lacks `ipcs` and `pgrep`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::cache::{Cache, remove_tree, sha256};
use crate::debian;
use crate::run::Run;

const VERSION: &str = "1.37.0";
const SUM: &str = "3311dff32e746499f4df0d5df04d7eb396382d7e108bb9250e7b519b837043a4";

/// The built program, and `applets`: the path of each of its names.
#[derive(Debug)]
pub(crate) struct Busybox {
    dir: PathBuf,
}

impl Busybox {
    /// Builds it if it is missing.
    pub(crate) fn build(cache: &Cache) -> Result<Self> {
        let dir = cache.once(&format!("busybox-{VERSION}"), |dir| build(cache, dir))?;
        Ok(Self { dir })
    }

    pub(crate) fn program(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.dir.join("busybox"))?)
    }

    /// `bin/sh`, `usr/bin/id`, …
    pub(crate) fn applets(&self) -> Result<Vec<String>> {
        let text = crate::files::text(&self.dir.join("applets"))?;
        Ok(text.lines().map(str::to_owned).filter(|name| name != "bin/busybox").collect())
    }
}

fn build(cache: &Cache, dir: &Path) -> Result<()> {
    let log = cache.log("busybox");
    let work = cache.root().join("source-busybox");
    remove_tree(&work)?;
    debian::download_source("busybox", &work, &log)?;
    let archive = work.join(format!("busybox_{VERSION}.orig.tar.bz2"));
    let found = sha256(fs::read(&archive)?);
    ensure!(found == SUM, "{}: digest {found}, pinned {SUM}", archive.display());
    Command::new("tar").arg("-xjf").arg(&archive).arg("-C").arg(&work).good()?;
    let source = work.join(format!("busybox-{VERSION}"));
    make(&source).arg("defconfig").logged(&log)?;
    let config = source.join(".config");
    let text = crate::files::text(&config)?
        .replace("# CONFIG_STATIC is not set", "CONFIG_STATIC=y")
        // does not build with the headers of Linux 6.8 and later
        .replace("CONFIG_TC=y", "# CONFIG_TC is not set");
    fs::write(&config, text)?;
    // the options that a switched-off one leaves undecided keep their defaults
    let settle = "yes '' | make --silent oldconfig";
    Command::new("sh").args(["-c", settle]).current_dir(&source).logged(&log)?;
    make(&source).arg("--jobs=2").logged(&log)?;
    let built = source.join("busybox");
    let applets = Command::new(&built).arg("--list-full").good()?;
    fs::write(dir.join("applets"), applets)?;
    fs::copy(&built, dir.join("busybox"))?;
    remove_tree(&work)
}

fn make(source: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("--directory").arg(source).arg("--silent");
    make
}
