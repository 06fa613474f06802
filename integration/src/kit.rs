//! The kit: one tree with every program, image and setting that a node needs, for both sites.
//!
//! ```text
//! bin/      our programs, containerd, ctr, nerdctl, runc, the shims, this program
//! cni/      CNI plugins
//! config/   the shipped containerd snippet
//! images/   OCI archives
//! trust/    keys, policies, node configurations
//! cri/      OCI archives of critest's images, their claims: only where critest runs
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, is_there, source_root};
use crate::components::{self, Components};
use crate::images::attacks::{self, UNSEALED};
use crate::images::{Images, SETTINGS, cri, file_name, settings_image};
use crate::run::Run;
use crate::sandbox;
use crate::seals;
use crate::signing::Key;
use crate::table::Site;
use crate::trust;

/// The four programs of the product.
pub(crate) const PROGRAMS: [&str; 4] =
    ["hallmark", "hallmark-snapshotter", "hallmark-runtime", SHIM];

const SHIM: &str = "containerd-shim-hallmark-v1";

/// The shim's second name, under which nerdctl hands it the options it has for runc.
const SHIM_AS_RUNC: &str = "containerd-shim-runc-hallmark";

/// Where a kit is.
#[derive(Clone, Debug)]
pub(crate) struct Kit {
    root: PathBuf,
}

impl Kit {
    /// A kit that is there already.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Puts components, images and freshly built programs together.
    pub(crate) fn assemble(cache: &Cache, programs: &[&str]) -> Result<Self> {
        let (parts, images) = (Components::build(cache)?, Images::build(cache)?);
        let kit = Self { root: sandbox::own_directory(cache).join("kit") };
        for dir in ["bin", "cni", "config", "images", "trust", "sealed", "attacks"] {
            fs::create_dir_all(kit.root.join(dir))?;
        }
        for dir in [&parts.containerd, &parts.runc, &parts.nerdctl] {
            link_all(dir, &kit.root.join("bin"))?;
        }
        // what `nerdctl run --init` puts first; the image has no libraries for another
        fs::copy("/usr/bin/tini-static", kit.bin("tini")).context("copy tini")?;
        link_all(&parts.cni, &kit.root.join("cni"))?;
        link_all(&source_root().join("config"), &kit.root.join("config"))?;
        let built = std::env::current_exe()?;
        let built = built.parent().context("this program has no directory")?;
        for program in programs.iter().chain(&["integration"]) {
            let from = built.join(program);
            fs::copy(&from, kit.bin(program))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        if programs.contains(&SHIM) {
            fs::hard_link(kit.bin(SHIM), kit.bin(SHIM_AS_RUNC))?;
        }
        for name in Images::names() {
            fs::hard_link(images.archive(name), kit.root.join("images").join(file_name(name)))?;
        }
        let key = Key::of_the_guest(cache)?;
        if programs.is_empty() {
            settings_image()?.write(&kit.root.join("images").join(file_name(SETTINGS)))?;
            attacks::make(&images, &kit.root.join("attacks"))?;
        } else {
            let seals = seals::make(cache, &kit.bin("hallmark"), &images, &key)?;
            for dir in ["sealed", "attacks"] {
                link_all(&seals.join(dir), &kit.root.join(dir))?;
            }
        }
        let here = kit.root.clone();
        trust::make(&kit, &key, &|site| match site {
            Site::Host => here.clone(),
            Site::Guest => PathBuf::from(crate::guest::init::KIT),
        })?;
        Ok(kit)
    }

    /// Adds critest, crictl and their images; the images sealed where our programs are.
    pub(crate) fn add_cri(&self, cache: &Cache) -> Result<()> {
        link_all(&components::cri_tools(cache)?, &self.root.join("bin"))?;
        let images = cri::build(cache, &self.images())?;
        let hallmark = self.bin("hallmark");
        let dir = if is_there(&hallmark) {
            seals::of_cri(cache, &hallmark, &images, &Key::of_the_guest(cache)?)?
        } else {
            images
        };
        fs::create_dir_all(self.root.join("cri"))?;
        link_all(&dir, &self.root.join("cri"))
    }

    /// The archives of critest's images, and one that nobody sealed.
    pub(crate) fn cri_images(&self) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for dir in ["cri", "attacks"] {
            for entry in fs::read_dir(self.root.join(dir))? {
                let path = entry?.path();
                let is_wanted = dir == "cri" || path == self.attack(UNSEALED);
                if is_wanted && path.extension().is_some_and(|end| end == "tar") {
                    all.push(path);
                }
            }
        }
        Ok(all)
    }

    /// The claims of critest's images, if they were sealed.
    pub(crate) fn cri_claims(&self) -> PathBuf {
        self.root.join("cri/claims")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn bin(&self, program: &str) -> PathBuf {
        self.root.join("bin").join(program)
    }

    pub(crate) fn cni(&self) -> PathBuf {
        self.root.join("cni")
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.root.join("config").join(name)
    }

    pub(crate) fn trust(&self, name: &str) -> PathBuf {
        self.root.join("trust").join(name)
    }

    pub(crate) fn images(&self) -> Images {
        Images::at(&self.root.join("images"))
    }

    /// One archive with every image of the demonstration.
    pub(crate) fn demo(&self) -> PathBuf {
        self.root.join("attacks/demo.tar")
    }

    /// A claims directory with the seal of one image.
    pub(crate) fn claims(&self) -> PathBuf {
        self.root.join("attacks/claims")
    }

    /// The archive of an image that must not run.
    pub(crate) fn attack(&self, image: &str) -> PathBuf {
        self.root.join("attacks").join(file_name(image))
    }

    /// The archive of an image with its seal; without one in a kit of other people's parts only.
    pub(crate) fn sealed(&self, image: &str) -> PathBuf {
        let sealed = self.root.join("sealed").join(file_name(image));
        if is_there(&sealed) { sealed } else { self.images().archive(image) }
    }

    /// `PATH` with the kit's programs first.
    pub(crate) fn path(&self) -> String {
        let rest = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        format!("{}:{rest}", self.root.join("bin").display())
    }
}

/// Builds the four programs, as they are shipped, beside this one.
pub(crate) fn build_programs() -> Result<()> {
    let status = Command::new("cargo")
        .current_dir(source_root())
        .args(["build", "--quiet", "--release", "--bins"])
        // not this program: cargo would replace it while it runs
        .args(["--workspace", "--exclude", env!("CARGO_PKG_NAME")])
        .status()
        .context("cargo build")?;
    anyhow::ensure!(status.success(), "cargo build: {status}");
    Ok(())
}

/// The size of each program, for the record.
pub(crate) fn sizes(kit: &Kit) -> Result<String> {
    let mut lines = Vec::new();
    for program in PROGRAMS {
        let bytes = fs::metadata(kit.bin(program))?.len();
        lines.push(format!("{program} {}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10));
    }
    Ok(lines.join(", "))
}

fn link_all(from: &Path, to: &Path) -> Result<()> {
    Command::new("cp")
        .args(["--recursive", "--link"])
        .arg(format!("{}/.", from.display()))
        .arg(to)
        .good()?;
    Ok(())
}
