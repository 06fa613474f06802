//! `hallmark seal`: pack an image's layers, sign what they are, and put the claim beside the image.

use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use hallmark_seal::referrer::Bundle;
use hallmark_seal::{
    Claim, LayerFormat, Pins, RepositoryGlob, SchemaVersion, Seal, SigningKey, Timestamp,
};

use crate::claims;
use crate::error::{Error, Result};
use crate::image::{Image, Location};
use crate::packing::pack_layers;
use crate::place::{Opened, Place};

/// Sign an image: which layers it has, and the root hash of each.
///
/// The seal is put beside the image: into the layout or archive as an OCI referrer, for an image in
/// containerd into the claims directory.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// PKCS#8 private key, PEM (RSA 2048 to 4096, or P-256)
    #[arg(long)]
    key: PathBuf,
    /// its certificate, PEM; certificates that lead to a CA may follow
    #[arg(long)]
    cert: PathBuf,
    /// repository the image is meant for; * stands for a part of a name, ** for any rest
    /// [default: that of the image's name, else **]
    #[arg(long, value_name = "GLOB")]
    repository: Vec<RepositoryGlob>,
    /// number that grows with each seal of the repository [default: seconds since 1970]
    #[arg(long)]
    serial: Option<u64>,
    /// last moment the seal counts, such as 2027-11-24T00:00:00Z
    #[arg(long, value_name = "TIME")]
    not_after: Option<Timestamp>,
    /// what of the image's configuration containers must start with
    #[arg(long, value_enum)]
    pin: Vec<Pin>,
    /// also (containerd: instead of the default) add the claim to this claims directory
    #[arg(long, value_name = "DIR")]
    claims_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pin {
    /// the entrypoint
    Entrypoint,
    /// every environment variable
    Env,
}

/// Runs the command; what it did goes to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<()> {
    let key = signing_key(arguments)?;
    let opened = arguments.place.open()?;
    let image = Image::find(opened.store(), &arguments.place.selection())?;
    let now = SystemTime::now();
    let issued = Timestamp::from(now);
    if let Some(end) = arguments.not_after.filter(|end| *end <= issued) {
        let expected = format!("a time after {issued}");
        return Err(Error::Usage { found: format!("--not-after {end}"), expected });
    }
    writeln!(out, "image {}", image.subject.digest).map_err(Error::Output)?;
    let layers = pack_layers(opened.store(), &image, &mut |index, layer| {
        writeln!(out, "layer {index} {} root hash {}", layer.digest, layer.root_hash)
            .map_err(Error::Output)
    })?;
    let since = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seal = Seal {
        schema_version: SchemaVersion,
        repositories: repositories(arguments, &image, out)?,
        layer_format: LayerFormat::HallmarkErofs1,
        issued,
        not_after: arguments.not_after,
        serial: arguments.serial.unwrap_or(since),
        layers,
        pins: pins(arguments, &image)?,
        subject: image.subject,
    };
    let claim = key.seal(&seal).map_err(Error::signed("seal", ""))?;
    publish(arguments, &opened, &claim, out)
}

fn signing_key(arguments: &Arguments) -> Result<SigningKey> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(Error::file("read", path));
    let object = format!("{} with {}", arguments.key.display(), arguments.cert.display());
    SigningKey::from_pem(&read(&arguments.key)?, &read(&arguments.cert)?)
        .map_err(Error::signed(object, "`hallmark keygen` makes a pair that fits"))
}

fn repositories(
    arguments: &Arguments,
    image: &Image,
    out: &mut dyn Write,
) -> Result<Vec<RepositoryGlob>> {
    if !arguments.repository.is_empty() {
        return Ok(arguments.repository.clone());
    }
    let repository = image.name.as_deref().and_then(repository);
    if repository.is_none() {
        writeln!(
            out,
            "warning: the image has no full name, so the seal is for every repository, and a revocation of the serials \
             of any meets it; name one with --repository"
        )
        .map_err(Error::Output)?;
    }
    let glob = repository.unwrap_or("**");
    Ok(vec![glob.parse().map_err(Error::signed("repository", "name it with --repository"))?])
}

/// The repository of a full image name, without tag and digest; `None` for a bare tag.
fn repository(name: &str) -> Option<&str> {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let slash = name.rfind('/')?;
    match name.rfind(':') {
        Some(colon) if colon > slash => name.get(..colon),
        _ => Some(name),
    }
}

fn pins(arguments: &Arguments, image: &Image) -> Result<Option<Pins>> {
    let pinned = |pin, value: &Option<Vec<String>>, what: &str| {
        if !arguments.pin.contains(&pin) {
            return Ok(None);
        }
        let missing = || {
            let found = format!("no {what} in the image's configuration");
            Error::Usage { found, expected: format!("one to pin with --pin {what}") }
        };
        value.clone().filter(|values| !values.is_empty()).ok_or_else(missing).map(Some)
    };
    let process = &image.config.config;
    let pins = Pins {
        entrypoint: pinned(Pin::Entrypoint, &process.entrypoint, "entrypoint")?,
        env: pinned(Pin::Env, &process.env, "env")?,
    };
    Ok(Some(pins).filter(|pins| *pins != Pins::default()))
}

/// Puts the claim where it will be found; the claims directory first, so that a failure there leaves the image as it is.
fn publish(
    arguments: &Arguments,
    opened: &Opened,
    claim: &Claim,
    out: &mut dyn Write,
) -> Result<()> {
    let in_containerd = matches!(opened.location(), Location::Containerd(_));
    let default = in_containerd.then(|| PathBuf::from(claims::DIRECTORY));
    if let Some(directory) = arguments.claims_dir.clone().or(default) {
        let path = claims::add(&directory, claim)?;
        writeln!(out, "claim in {}", path.display()).map_err(Error::Output)?;
    }
    if !in_containerd {
        let bundle = Bundle::of(claim).map_err(Error::signed("seal", ""))?;
        opened.add(&bundle)?;
        writeln!(out, "referrer {} in {}", bundle.digest, arguments.place.image)
            .map_err(Error::Output)?;
    }
    let digest = hallmark_seal::SealDigest::of(&claim.seal);
    writeln!(out, "sealed {digest}").map_err(Error::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_name_without_tag_and_digest() {
        for (name, expected) in [
            ("docker.io/library/nginx:1", Some("docker.io/library/nginx")),
            ("localhost:5000/app", Some("localhost:5000/app")),
            ("localhost:5000/app:1", Some("localhost:5000/app")),
            ("r.example/a@sha256:00", Some("r.example/a")),
            ("r.example/a:1@sha256:00", Some("r.example/a")),
            ("latest", None),
        ] {
            assert_eq!(repository(name), expected, "{name}");
        }
    }

    #[test]
    fn the_sealed_format_is_the_packers() {
        let name = serde_json::to_value(LayerFormat::HallmarkErofs1).unwrap();
        assert_eq!(name, hallmark_erofs::Format::Erofs1.name());
    }
}
