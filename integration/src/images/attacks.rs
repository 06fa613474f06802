//! Images that a node must not run: put together from layers of sealed ones, or never sealed.

use std::path::Path;

use anyhow::Result;

use super::oci::{Image, Layer};
use super::{Images, ONE, TWO, file_name, small};

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
