//! What is measured on, made once: a layer of 1 GB of Debian packages in both compressions, one of very many entries, and
//! peers that the components do not have.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use hallmark_verity::{Salt, TreeBuilder};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::cache::{Cache, fingerprint};
use crate::debian::{self, Variant};
use crate::files;
use crate::guest::parts::Tools;
use crate::images::layers::{Hand, until};
use crate::images::oci::{Image, Layer};
use crate::run::Run;

/// Changed when the recipes below change.
const RECIPE: &str = "1";

/// Compilers and a virtual machine: what heavy images are made of. Cut at [`BYTES`].
const PACKAGES: &[&str] =
    &["golang-go", "clang", "openjdk-21-jdk-headless", "nodejs", "git", "gcc"];

/// Of the tar.
const BYTES: usize = 1_000_000_000;

/// Entries of the layer of many.
const ENTRIES: usize = 100_000;

/// Bytes read at once where a stage is measured alone, as where it is one of many.
const READ: usize = 256 << 10;

/// Image names.
pub(super) const GZIP: &str = "example.test/gzip:1";
pub(super) const ZSTD: &str = "example.test/zstd:1";
pub(super) const MANY: &str = "example.test/many:1";

/// Builds what is missing; the directory has `gzip.tar`, `zstd.tar`, `many.tar` and `peers/bin`.
pub(super) fn build(cache: &Cache, tools: &Tools) -> Result<PathBuf> {
    let tool = |name: &str| tools.bin().join(name).display().to_string();
    let entry = format!("bench-{}", fingerprint(&[RECIPE, debian::SUITE, &tool("")]));
    cache.once(&entry, |dir| {
        let whole = dir.join("whole.tar");
        debian::bootstrap(Variant::Extract, PACKAGES, &whole, &cache.log("bench-layer"))?;
        let tar = until(&whole, BYTES)?;
        fs::remove_file(&whole)?;
        image(dir, GZIP, Layer::from_tar(&tar)?)?;
        image(dir, ZSTD, Layer::zstd(&tar)?)?;
        drop(tar);
        image(dir, MANY, Layer::from_tar(&many()?)?)?;
        let peers = dir.join("peers");
        fs::create_dir(&peers)?;
        let log = cache.log("bench-peers");
        debian::bootstrap(Variant::Extract, &["libc6", "crun"], &peers.join("root"), &log)?;
        debian::wrap(&peers, &[("crun", "usr/bin/crun")])?;
        let script = peers.join("bin/mkfs.erofs");
        files::write(&script, format!("#!/bin/sh\nexec {} \"$@\"\n", tool("mkfs.erofs")))?;
        files::set_mode(&script, 0o755)
    })
}

fn image(dir: &Path, name: &str, layer: Layer) -> Result<()> {
    let run = json!({"Cmd": ["true"], "WorkingDir": "/"});
    let image = Image { name: name.to_owned(), layers: vec![layer], run };
    image.write(&dir.join(crate::images::file_name(name)))
}

/// Many small files in few directories.
fn many() -> Result<Vec<u8>> {
    let mut hand = Hand::new();
    for directory in 0..ENTRIES / 1000 {
        hand.directory(&format!("d{directory}"), 0o755)?;
        for file in 1..1000 {
            hand.file(&format!("d{directory}/f{file}"), 0o644, format!("{file}\n").as_bytes())?;
        }
    }
    hand.finish()
}

/// Reads a file and decompresses it to nowhere: the library that packing uses, and nothing else.
pub(crate) fn inflate(file: &Path, compression: &str) -> Result<()> {
    let blob = BufReader::with_capacity(READ, File::open(file)?);
    let mut tar: Box<dyn Read> = match compression {
        "gzip" => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        "zstd" => Box::new(zstd::Decoder::with_buffer(blob)?),
        other => bail!("compression {other} is not known"),
    };
    let mut buffer = vec![0; READ];
    while tar.read(&mut buffer).with_context(|| format!("read {}", file.display()))? > 0 {}
    Ok(())
}

/// Does to a tar what one stage of packing does, and nothing else.
pub(crate) fn stage(name: &str, tar: &Path) -> Result<()> {
    let mut tar = File::open(tar)?;
    let (mut digest, mut tree) = (Sha256::new(), TreeBuilder::new(&Salt::default()));
    let mut buffer = vec![0; READ];
    loop {
        let count = tar.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if name != "tree" {
            digest.update(&buffer[..count]);
        }
        if name != "digest" {
            tree.extend(buffer[..count].as_chunks().0);
        }
    }
    std::hint::black_box((digest.finalize(), tree.data_blocks()));
    Ok(())
}

/// A command that runs this program's own decompression.
pub(super) fn bare(blob: &Path, compression: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("inflate").arg(blob).arg(compression);
    Ok(command)
}

/// The digest of an image's manifest, as containerd knows it.
pub(super) fn manifest(ctr: &mut Command, image: &str) -> Result<String> {
    let listed = ctr.args(["images", "list", &format!("name=={image}")]).good()?;
    let word = listed.split_whitespace().find(|word| word.starts_with("sha256:"));
    Ok(word.with_context(|| format!("{image}: not in {listed:?}"))?.to_owned())
}
