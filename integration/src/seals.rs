//! Sealing the test images with our own command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::cache::{Cache, fingerprint, remove_tree, sha256};
use crate::images::attacks::{self, PROBER, REORDERED, STACKED, STRANGER, UNSEALED};
use crate::images::oci::Archive;
use crate::images::{Images, ONE, SETTINGS, TWO, file_name, settings_image};
use crate::run::Run;
use crate::signing::Key;

/// Changed when what is made below changes.
const RECIPE: &str = "4";

/// Directories `sealed/` and `attacks/`, made anew whenever the command or the images change.
pub(crate) fn make(cache: &Cache, hallmark: &Path, images: &Images, key: &Key) -> Result<PathBuf> {
    let program = sha256(fs::read(hallmark)?);
    let place = images.archive("1").to_string_lossy().into_owned();
    let name = format!(
        "seals-{}",
        fingerprint(&[RECIPE, attacks::PROBER_SOURCE, &program, &place, key.id()])
    );
    remove_others(cache, "seals-", &name)?;
    cache.once(&name, |dir| {
        let (sealed, attacked) = (dir.join("sealed"), dir.join("attacks"));
        fs::create_dir_all(&sealed)?;
        fs::create_dir_all(&attacked)?;
        for image in Images::names() {
            let archive = sealed.join(file_name(image));
            fs::copy(images.archive(image), &archive)?;
            seal(hallmark, key, &archive, None)?;
        }
        let prober = sealed.join(file_name(PROBER));
        attacks::prober(dir)?.write(&prober)?;
        seal(hallmark, key, &prober, None)?;
        let archive = sealed.join(file_name(SETTINGS));
        settings_image()?.write(&archive)?;
        seal(hallmark, key, &archive, None)?;
        let copy = dir.join("copy.tar");
        fs::copy(images.archive(ONE), &copy)?;
        let claims = attacked.join("claims");
        fs::create_dir_all(&claims)?;
        seal(hallmark, key, &copy, Some(&claims))?;
        fs::remove_file(copy)?;
        attacks::make(images, &attacked)?;
        let stranger = Key::make(&dir.join("stranger"))?;
        seal(hallmark, &stranger, &attacked.join(file_name(STRANGER)), None)?;
        let mut demo = Archive::default();
        for image in [ONE, TWO] {
            demo.take_in(Archive::read(&sealed.join(file_name(image)))?)?;
        }
        for image in [UNSEALED, STACKED, REORDERED] {
            demo.take_in(Archive::read(&attacked.join(file_name(image)))?)?;
        }
        demo.write(&attacked.join("demo.tar"))
    })
}

/// critest's images sealed, and `claims/`: what is pulled from a registry brings no seal along.
pub(crate) fn of_cri(cache: &Cache, hallmark: &Path, images: &Path, key: &Key) -> Result<PathBuf> {
    let program = sha256(fs::read(hallmark)?);
    let name =
        format!("cri-seals-{}", fingerprint(&[&program, &images.to_string_lossy(), key.id()]));
    remove_others(cache, "cri-seals-", &name)?;
    cache.once(&name, |dir| {
        let claims = dir.join("claims");
        fs::create_dir_all(&claims)?;
        for entry in fs::read_dir(images)? {
            let entry = entry?;
            let archive = dir.join(entry.file_name());
            fs::copy(entry.path(), &archive)?;
            seal(hallmark, key, &archive, Some(&claims))?;
        }
        Ok(())
    })
}

/// Removes what an older command made.
fn remove_others(cache: &Cache, prefix: &str, name: &str) -> Result<()> {
    for entry in fs::read_dir(cache.root())? {
        let entry = entry?.file_name().to_string_lossy().into_owned();
        if entry.starts_with(prefix) && entry != name {
            remove_tree(&cache.root().join(entry))?;
        }
    }
    Ok(())
}

/// Seals an archive; the claim also goes into a claims directory, if one is given.
fn seal(hallmark: &Path, key: &Key, archive: &Path, claims: Option<&Path>) -> Result<()> {
    let mut command = Command::new(hallmark);
    command.arg("seal").arg(archive).arg("--key").arg(&key.private);
    command.arg("--cert").arg(&key.certificate);
    if let Some(claims) = claims {
        command.arg("--claims-dir").arg(claims);
    }
    command.good()?;
    Ok(())
}
