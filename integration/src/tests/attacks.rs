//! Attacks on an image, each beside its untouched twin: a gate that refuses everything fails too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::files;
use crate::images::attacks::{EXTENDED, REORDERED, SHORTENED, STACKED, STRANGER, UNSEALED};
use crate::images::oci::Image;
use crate::images::{ONE, TWO};
use crate::leaks::Picture;
use crate::node::Node;
use crate::run::Run;
use crate::table::{Bench, Site, Test};
use crate::trust::Setting;

pub(super) const TESTS: &[Test] = &[
    Test { name: "attack: an image that nobody sealed", needs: &[], run: unsealed },
    Test { name: "attack: a seal of a stranger", needs: &[], run: stranger },
    Test { name: "attack: layers of two sealed images stacked", needs: &[], run: stacked },
    Test { name: "attack: the order of the layers changed", needs: &[], run: reordered },
    Test { name: "attack: the top layer left out", needs: &[], run: shortened },
    Test { name: "attack: a layer added", needs: &[], run: extended },
    Test { name: "attack: one byte of a stored layer changed", needs: &[], run: flipped },
    Test {
        name: "attack: files put into the upper before the first start",
        needs: &[],
        run: upper,
    },
    Test { name: "claim: counts while it is in the claims directory", needs: &[], run: claim },
    Test { name: "attack: a foreign bind over the image's programs", needs: &[], run: bind_over },
    Test { name: "attack: a bind led over the programs by a link", needs: &[], run: led_over },
    Test { name: "audit: runs, and says what enforce would refuse", needs: &[], run: audit },
    Test { name: "commit: the new image is refused until it is sealed", needs: &[], run: commit },
];

/// Runs a sealed image, then an attack on it, and proves that it can be run again after.
fn beside_its_twin(bench: &mut Bench, attack: &str, expected: &[&str]) -> Result<String> {
    let archives: Vec<PathBuf> = [ONE, TWO].map(|image| bench.sealed(image)).into();
    let attacked = bench.kit.attack(attack);
    let node = bench.node()?;
    for archive in archives.iter().chain([&attacked]) {
        node.load(archive)?;
    }
    twin(node)?;
    let reason = refused(node, attack)?;
    for word in expected {
        ensure!(reason.contains(word), "the refusal does not say {word:?}: {reason}");
    }
    twin(node)?;
    Ok(reason)
}

/// The untouched image runs.
pub(crate) fn twin(node: &Node) -> Result<()> {
    let said = node.once(&[ONE]).good().context("the untouched image")?;
    ensure!(said == "hello from one", "the untouched image says {said:?}");
    Ok(())
}

/// The refusal of an image.
pub(crate) fn refused(node: &Node, image: &str) -> Result<String> {
    refusal(node.once(&[image]))
}

/// The whole line that a refused launch shows; it must leave nothing behind.
pub(crate) fn refusal(mut launch: Command) -> Result<String> {
    let before = Picture::take()?.without_layers();
    let said = launch.bad()?;
    let reason = said
        .lines()
        .find_map(|line| line.find("hallmark: refused:").and_then(|at| line.get(at..)))
        .with_context(|| format!("failed, but not by a refusal: {said}"))?
        .to_owned();
    before.expect_again_but_for(&|now| now.without_layers()).context("after the refusal")?;
    Ok(reason)
}

fn unsealed(bench: &mut Bench) -> Result<()> {
    beside_its_twin(bench, UNSEALED, &["seal"]).map(drop)
}

fn stranger(bench: &mut Bench) -> Result<()> {
    beside_its_twin(bench, STRANGER, &["seal"]).map(drop)
}

fn stacked(bench: &mut Bench) -> Result<()> {
    beside_its_twin(bench, STACKED, &["seal"]).map(drop)
}

fn reordered(bench: &mut Bench) -> Result<()> {
    beside_its_twin(bench, REORDERED, &["seal"]).map(drop)
}

fn shortened(bench: &mut Bench) -> Result<()> {
    beside_its_twin(bench, SHORTENED, &["seal"]).map(drop)
}

fn extended(bench: &mut Bench) -> Result<()> {
    beside_its_twin(bench, EXTENDED, &["seal"]).map(drop)
}

/// Where the node keeps a layer of a sealed image, and a byte of a file in it.
pub(crate) fn stored_byte(archive: &std::path::Path, text: &str) -> Result<(PathBuf, u64)> {
    let image = Image::read(archive)?;
    for layer in &image.layers {
        let name = layer.diff_id.trim_start_matches("sha256:");
        let file = PathBuf::from(format!("/var/lib/hallmark/layers/{name}.erofs"));
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let found = bytes.windows(text.len()).position(|window| window == text.as_bytes());
        if let Some(position) = found {
            return Ok((file, u64::try_from(position)?));
        }
    }
    anyhow::bail!("no stored layer of {} holds {text:?}", archive.display())
}

fn flipped(bench: &mut Bench) -> Result<()> {
    let (one, two) = (bench.sealed(ONE), bench.sealed(TWO));
    let site = bench.site;
    let node = bench.node()?;
    node.load(&one)?;
    node.load(&two)?;
    twin(node)?;
    let (file, offset) = stored_byte(&one, "echo hello from one")?;
    files::flip_byte(&file, offset)?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    match site {
        Site::Host => {
            let reason = refused(node, ONE)?;
            ensure!(reason.contains("root hash"), "{reason}");
        }
        // the kernel refuses the block, and the gate the device that met one
        Site::Guest => {
            let said = node.once(&[ONE]).bad()?;
            let known = ["hallmark: refused:", "nput/output error"];
            ensure!(known.iter().any(|words| said.contains(words)), "{said}");
            let reason = refused(node, ONE)?;
            ensure!(reason.contains("corrupt") || reason.contains("status"), "{reason}");
        }
    }
    let said = node.once(&[TWO]).good().context("another image")?;
    ensure!(said == "hello from two", "another image says {said:?}");
    files::flip_byte(&file, offset)?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    node.empty()?;
    node.load(&one)?;
    twin(node).context("loaded anew")
}

fn upper(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    twin(node)?;
    let create = ["create", "--name", "prepared", "--net", "none", "--runtime"];
    node.nerdctl(&create).args([node.runtime_name(), ONE]).good()?;
    let upper = newest_upper()?;
    fs::create_dir_all(upper.join("bin"))?;
    fs::write(upper.join("bin/hello"), "#!/bin/sh\necho evil\n")?;
    files::set_mode(&upper.join("bin/hello"), 0o755)?;
    let said = node.nerdctl(&["start", "-a", "prepared"]).bad()?;
    ensure!(said.contains("hallmark: refused:") && said.contains("upper"), "{said}");
    node.nerdctl(&["rm", "-f", "prepared"]).good()?;
    twin(node)
}

/// The upper directory of the snapshot made last.
fn newest_upper() -> Result<PathBuf> {
    let mut newest = 0_u64;
    for entry in fs::read_dir("/var/lib/hallmark/snapshots")? {
        newest = newest.max(entry?.file_name().to_string_lossy().parse().unwrap_or(0));
    }
    let upper = PathBuf::from(format!("/var/lib/hallmark/snapshots/{newest}/fs"));
    ensure!(upper.is_dir(), "{} is no directory", upper.display());
    Ok(upper)
}

/// A claim that somebody drops into the claims directory counts; without it the image is unsealed.
fn claim(bench: &mut Bench) -> Result<()> {
    let (archive, dropped) = (bench.kit.images().archive(ONE), bench.kit.claims());
    let node = bench.node()?;
    // claims may outlive their images
    for entry in fs::read_dir("/var/lib/hallmark/claims")? {
        fs::remove_file(entry?.path())?;
    }
    node.load(&archive)?;
    let reason = refused(node, ONE)?;
    ensure!(reason.contains("no seal"), "{reason}");
    let mut placed = Vec::new();
    for entry in fs::read_dir(dropped)? {
        let entry = entry?;
        let place = Path::new("/var/lib/hallmark/claims").join(entry.file_name());
        fs::copy(entry.path(), &place)?;
        placed.push(place);
    }
    ensure!(!placed.is_empty(), "the kit has no claim");
    twin(node)?;
    for place in placed {
        fs::remove_file(place)?;
    }
    refused(node, ONE).map(drop)
}

fn bind_over(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    twin(node)?;
    fs::create_dir_all("/tmp/evil")?;
    fs::copy(bench.kit.bin("runc"), "/tmp/evil/hello")?;
    let node = bench.node()?;
    let reason = refusal(node.run(&["--rm", "-v", "/tmp/evil:/bin:ro", ONE]))?;
    ensure!(reason.contains("/bin") || reason.contains("/tmp/evil"), "{reason}");
    twin(node)
}

/// The first bind brings a link along, and the second is mounted on that.
fn led_over(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let evil = Path::new("/tmp/led");
    fs::create_dir_all(evil.join("first"))?;
    fs::create_dir_all(evil.join("second"))?;
    fs::copy(bench.kit.bin("runc"), evil.join("second/hello"))?;
    std::os::unix::fs::symlink("/bin", evil.join("first/programs"))?;
    let node = bench.node()?;
    node.load(&archive)?;
    let binds = ["--rm", "-v", "/tmp/led/first:/data", "-v"];
    let run = |bind: &str| node.run(&[&binds[..], &[bind, ONE]].concat());
    let reason = refusal(run("/tmp/led/second:/data/programs:ro"))?;
    ensure!(reason.contains("leads to /bin"), "{reason}");
    fs::create_dir(evil.join("first/plain"))?;
    let said = run("/tmp/led/second:/data/plain:ro").good()?;
    ensure!(said == "hello from one", "{said}");
    fs::remove_dir_all(evil)?;
    twin(node)
}

fn audit(bench: &mut Bench) -> Result<()> {
    let attack = bench.kit.attack(UNSEALED);
    let archive = bench.sealed(ONE);
    let site = bench.site;
    let node = bench.set(Setting::Audit)?;
    node.load(&archive)?;
    node.load(&attack)?;
    twin(node)?;
    let ran = node.once(&[UNSEALED]).ran()?;
    match site {
        Site::Host => ensure!(ran.stdout.trim() == "hello from unsealed", "{}", ran.all()),
        // the gate lets it pass, the kernel does not
        Site::Guest => {
            ensure!(ran.all().to_lowercase().contains("permission denied"), "{}", ran.all())
        }
    }
    let log = files::text(std::path::Path::new("/var/log/hallmark/audit.log"))?;
    let last = log.lines().last().context("the audit log is empty")?;
    ensure!(last.contains("seal"), "the audit log says {last}");
    let node = bench.set(Setting::Enforce)?;
    refused(node, UNSEALED)?;
    twin(node)
}

fn commit(bench: &mut Bench) -> Result<()> {
    let archive = bench.sealed(ONE);
    let node = bench.node()?;
    node.load(&archive)?;
    twin(node)?;
    node.run(&["--name", "base", ONE, "sh", "-c", "echo more > /etc/more"]).good()?;
    node.nerdctl(&["commit", "base", "example.test/committed:1"]).good()?;
    let reason = refused(node, "example.test/committed:1")?;
    ensure!(reason.contains("seal"), "{reason}");
    twin(node)
}
