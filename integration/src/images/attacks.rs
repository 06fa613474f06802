//! Images that a node must not run: put together from layers of sealed ones, or never sealed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::layers::Hand;
use super::oci::{Image, Layer};
use super::{Images, ONE, TWO, file_name, small};
use crate::run::Run;

/// Never sealed by anybody.
pub(crate) const UNSEALED: &str = "example.test/unsealed:1";
/// Sealed by somebody whom the node does not trust.
pub(crate) const STRANGER: &str = "example.test/stranger:1";
/// The lower layers of one sealed image under the top layer of another.
pub(crate) const STACKED: &str = "example.test/stacked:1";
/// A sealed image's layers, the upper two exchanged.
pub(crate) const REORDERED: &str = "example.test/reordered:1";
/// A sealed image without its top layer.
pub(crate) const SHORTENED: &str = "example.test/shortened:1";
/// A sealed image and one more layer, itself sealed elsewhere.
pub(crate) const EXTENDED: &str = "example.test/extended:1";

/// Sealed by us: a program that tries every way to run machine code that no signed file holds.
pub(crate) const PROBER: &str = "example.test/prober:1";
/// What [`PROBER`] is compiled from.
pub(crate) const PROBER_SOURCE: &str = include_str!("prober.c");

/// The image of [`PROBER`]; `dir` is for the compiler.
pub(crate) fn prober(dir: &Path) -> Result<Image> {
    let (source, program) = (dir.join("prober.c"), dir.join("prober"));
    fs::write(&source, PROBER_SOURCE)?;
    let mut compiler = Command::new("musl-gcc");
    compiler.args(["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]);
    compiler.arg(&program).arg(&source).good()?;
    let mut layer = Hand::new();
    layer.file("bin/prober", 0o755, &fs::read(&program)?)?;
    fs::remove_file(source)?;
    fs::remove_file(program)?;
    let mut image = small(PROBER, "prober")?;
    image.layers.push(Layer::from_tar(&layer.finish()?)?);
    Ok(image)
}

/// Writes the archive of each into `dir`.
pub(crate) fn make(images: &Images, dir: &Path) -> Result<()> {
    let one = Image::read(&images.archive(ONE))?;
    let two = Image::read(&images.archive(TWO))?;
    let write = |name: &str, layers: &[&Layer]| {
        let layers = layers.iter().map(|layer| (*layer).clone()).collect();
        Image { name: name.into(), layers, run: one.run.clone() }.write(&dir.join(file_name(name)))
    };
    let ([a, b, c], [.., z]) = (one.layers.as_slice(), two.layers.as_slice()) else {
        anyhow::bail!("{ONE} has {} layers, expected 3", one.layers.len());
    };
    write(STACKED, &[a, b, z])?;
    write(REORDERED, &[a, c, b])?;
    write(SHORTENED, &[a, b])?;
    write(EXTENDED, &[a, b, c, z])?;
    for (name, mark) in [(UNSEALED, "unsealed"), (STRANGER, "stranger")] {
        small(name, mark)?.write(&dir.join(file_name(name)))?;
    }
    Ok(())
}
