//! `hallmark push`: put an image's claims into a registry, as referrers of its manifest.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hallmark_registry::{Keychain, Listed, Repository, Settings};
use hallmark_seal::SealDigest;
use hallmark_seal::referrer::Bundle;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::place::Place;
use crate::verify::claims_of;

/// For all that is pushed of one image.
const PATIENCE: Duration = Duration::from_secs(300);

/// Put the seals of an image into the registry that holds it, where nodes find them.
///
/// The image itself must be there already: this pushes its referrers only.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// HOST[:PORT]/REPOSITORY that holds the image
    #[arg(long, value_name = "REPOSITORY")]
    to: String,
    /// also look for claims in this directory [default for containerd: /var/lib/hallmark/claims]
    #[arg(long, value_name = "DIR")]
    claims_dir: Option<PathBuf>,
    /// containerd's certs.d, with a hosts.toml for each registry that needs one
    #[arg(long, value_name = "DIR", default_value = "/etc/containerd/certs.d")]
    hosts: PathBuf,
    /// logins, as Docker keeps them [default: $HOME/.docker/config.json, if there is one]
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
}

/// Runs the command; what it did goes to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<()> {
    let Some((host, name)) = arguments.to.split_once('/') else {
        let found = format!("--to {:?}", arguments.to);
        return Err(Error::Usage { found, expected: "HOST/REPOSITORY".into() });
    };
    let settings = Settings {
        patience: PATIENCE,
        hosts: Some(arguments.hosts.clone()),
        keychain: keychain(arguments)?,
    };
    let repository = Repository::open(host, name, &settings)?;
    let opened = arguments.place.open()?;
    let image = Image::find(opened.store(), &arguments.place.selection())?;
    let claims = claims_of(&opened, &image, arguments.claims_dir.as_deref())?;
    if claims.is_empty() {
        let digest = image.subject.digest;
        return Err(Error::Refused(format!(
            "image {digest}: found no seal to push, expected one beside it or in a claims directory; \
             seal it with `hallmark seal`, or name the directory with --claims-dir"
        )));
    }
    for claim in claims {
        let bundle = Bundle::of(&claim).map_err(Error::signed("seal", ""))?;
        let listed = match repository.push(&bundle)? {
            Listed::ByRegistry => "the registry lists it",
            Listed::ByTag => "listed under the image's tag: the registry has no referrers",
        };
        let (seal, to) = (SealDigest::of(&claim.seal), &arguments.to);
        writeln!(out, "seal {seal}: referrer {} in {to}, {listed}", bundle.digest)
            .map_err(Error::Output)?;
    }
    Ok(())
}

fn keychain(arguments: &Arguments) -> Result<Keychain> {
    let named = arguments.credentials.as_ref();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let default = home.map(|home| home.join(".docker/config.json"));
    let Some(path) = named.or(default.as_ref()) else { return Ok(Keychain::default()) };
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            Ok(Keychain::default())
        }
        read => Ok(Keychain::parse(&read.map_err(Error::file("read", path))?)?),
    }
}
