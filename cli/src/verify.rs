//! `hallmark verify`: is this image what somebody we trust sealed?
//!
//! Cheap first: the claims are found and their signatures checked, then the layers are packed and compared. Every
//! claim is tried; the first that holds ends it, and when none does each one's reason is shown.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use hallmark_seal::referrer::Referrer;
use hallmark_seal::{
    Claim, Keyring, Revocations, SealDigest, SealedLayer, StackId, Timestamp, VerifiedSeal,
};

use crate::claims;
use crate::error::{Error, Result};
use crate::image::{Image, Location, Store, blob};
use crate::packing::pack_layers;
use crate::place::{Opened, Place};

/// Check an image: recompute the root hashes of its layers and compare them with its seal.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// certificates to trust, PEM, CA and leaf
    #[arg(long, value_name = "PEM")]
    keys: PathBuf,
    /// revocation list, TOML
    #[arg(long, value_name = "FILE")]
    revocations: Option<PathBuf>,
    /// also look for claims in this directory [default for containerd: /var/lib/hallmark/claims]
    #[arg(long, value_name = "DIR")]
    claims_dir: Option<PathBuf>,
}

/// Runs the command; the answer goes to `out` or comes back as [`Error::Refused`].
pub(crate) fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<()> {
    verified(arguments, out).map_err(|error| match error {
        // an image that is not what its own digests say is refused, not merely unreadable
        Error::Image { .. } | Error::Json { .. } | Error::Layer { .. } => {
            Error::Refused(crate::chain(&error))
        }
        other => other,
    })
}

fn verified(arguments: &Arguments, out: &mut dyn Write) -> Result<()> {
    let trust = Trust::read(arguments)?;
    let opened = arguments.place.open()?;
    let image = Image::find(opened.store(), &arguments.place.selection())?;
    let mut verdicts = Verdicts::default();
    for claim in referrers(opened.store(), &image, &mut verdicts)? {
        verdicts.add(&claim, trust.verify(&claim, &image));
    }
    let directory = claims_directory(arguments.claims_dir.as_deref(), &opened);
    if verdicts.verified.is_empty() && directory.is_none() {
        return Err(verdicts.refused(&image));
    }
    let layers = pack_layers(opened.store(), &image, &mut |_, _| Ok(()))?;
    if let Some(directory) = directory {
        let root_hashes: Vec<_> = layers.iter().map(|layer| layer.root_hash).collect();
        for claim in claims::of(&directory, StackId::of(&root_hashes))? {
            verdicts.add(&claim, trust.verify(&claim, &image));
        }
    }
    for seal in std::mem::take(&mut verdicts.verified) {
        match compare(&seal, &layers) {
            None => return show(&seal, out),
            Some(difference) => {
                verdicts.reasons.push(format!("seal {}: {difference}", seal.digest()))
            }
        }
    }
    Err(verdicts.refused(&image))
}

struct Trust {
    keyring: Keyring,
    revocations: Revocations,
    now: Timestamp,
}

impl Trust {
    fn read(arguments: &Arguments) -> Result<Self> {
        let read = |path: &Path| std::fs::read(path).map_err(Error::file("read", path));
        let object = arguments.keys.display().to_string();
        let keyring =
            Keyring::from_pem(&read(&arguments.keys)?).map_err(Error::signed(object, ""))?;
        let revocations = match &arguments.revocations {
            Some(path) => Revocations::parse(&read(path)?)
                .map_err(Error::signed(path.display().to_string(), ""))?,
            None => Revocations::default(),
        };
        Ok(Self { keyring, revocations, now: SystemTime::now().into() })
    }

    fn verify(&self, claim: &Claim, image: &Image) -> Result<VerifiedSeal, String> {
        let verified = claim
            .verify(&self.keyring, &self.revocations, self.now)
            .map_err(|error| error.to_string())?;
        let (found, expected) = (verified.seal().subject.digest, image.subject.digest);
        if found == expected {
            Ok(verified)
        } else {
            Err(format!("is for image {found}, this is {expected}"))
        }
    }
}

/// What was said for and against the image.
#[derive(Default)]
struct Verdicts {
    verified: Vec<VerifiedSeal>,
    reasons: Vec<String>,
}

impl Verdicts {
    fn add(&mut self, claim: &Claim, verdict: Result<VerifiedSeal, String>) {
        match verdict {
            Ok(seal) => self.verified.push(seal),
            Err(reason) => {
                self.reasons.push(format!("seal {}: {reason}", SealDigest::of(&claim.seal)))
            }
        }
    }

    fn refused(&self, image: &Image) -> Error {
        let digest = image.subject.digest;
        if self.reasons.is_empty() {
            return Error::Refused(format!(
                "image {digest}: found no seal, expected one beside it or in a claims directory; \
                 seal it with `hallmark seal`, or name the directory with --claims-dir"
            ));
        }
        Error::Refused(format!("image {digest}: {}", self.reasons.join("; ")))
    }
}

/// The claims that the image's own store lists for it. One that cannot be read is a reason, not the end.
fn referrers(store: &dyn Store, image: &Image, verdicts: &mut Verdicts) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for entry in store.candidates()?.iter().filter(|entry| !entry.is_index()) {
        let most = hallmark_seal::referrer::MAX_MANIFEST_BYTES as u64;
        if entry.size > most {
            continue;
        }
        let Ok(manifest) = blob(store, &entry.digest, entry.size, most) else {
            verdicts.reasons.push(format!("manifest {}: cannot be read", entry.digest));
            continue;
        };
        let claim = match Referrer::parse(&manifest) {
            Ok(Some(referrer)) if referrer.subject().digest == image.subject.digest => {
                let blobs = referrer
                    .blobs()
                    .iter()
                    .map(|part| blob(store, &part.digest.to_string(), part.size, part.size));
                let blobs = blobs.collect::<Result<Vec<_>>>();
                blobs.and_then(|blobs| referrer.claim(blobs).map_err(Error::signed("claim", "")))
            }
            Ok(_) => continue,
            // containerd's small blobs are of every kind; the manifests of a layout are manifests
            Err(_) if entry.media_type.is_empty() => continue,
            Err(error) => Err(Error::signed("referrer", "")(error)),
        };
        match claim {
            Ok(claim) => claims.push(claim),
            Err(error) => {
                verdicts.reasons.push(format!(
                    "referrer {}: {}",
                    entry.digest,
                    crate::chain(&error)
                ));
            }
        }
    }
    Ok(claims)
}

/// The claims for an image that lie beside it or in a claims directory, each once. Whether they count is not asked.
pub(crate) fn claims_of(
    opened: &Opened,
    image: &Image,
    directory: Option<&Path>,
) -> Result<Vec<Claim>> {
    let mut found = referrers(opened.store(), image, &mut Verdicts::default())?;
    if let Some(directory) = claims_directory(directory, opened) {
        let layers = pack_layers(opened.store(), image, &mut |_, _| Ok(()))?;
        let root_hashes: Vec<_> = layers.iter().map(|layer| layer.root_hash).collect();
        for claim in claims::of(&directory, StackId::of(&root_hashes))? {
            let of_image =
                claim.alleged().is_ok_and(|seal| seal.subject.digest == image.subject.digest);
            if of_image && !found.contains(&claim) {
                found.push(claim);
            }
        }
    }
    Ok(found)
}

fn claims_directory(named: Option<&Path>, opened: &Opened) -> Option<PathBuf> {
    let in_containerd = matches!(opened.location(), Location::Containerd(_));
    named.map(PathBuf::from).or_else(|| in_containerd.then(|| claims::DIRECTORY.into()))
}

/// The first difference between what was sealed and what is there.
fn compare(seal: &VerifiedSeal, layers: &[SealedLayer]) -> Option<String> {
    let sealed = &seal.seal().layers;
    if sealed.len() != layers.len() {
        return Some(format!("found {} layers, the seal says {}", layers.len(), sealed.len()));
    }
    let pairs = layers.iter().zip(sealed).enumerate();
    let (index, (found, expected)) =
        pairs.into_iter().find(|(_, (found, sealed))| found != sealed)?;
    Some(format!(
        "layer {index}: found {} with root hash {}, the seal says {} with root hash {}",
        found.digest, found.root_hash, expected.digest, expected.root_hash
    ))
}

fn show(verified: &VerifiedSeal, out: &mut dyn Write) -> Result<()> {
    let seal = verified.seal();
    let mut text = format!(
        "verified image {}\nseal {} serial {} issued {}",
        seal.subject.digest,
        verified.digest(),
        seal.serial,
        seal.issued
    );
    if let Some(end) = seal.not_after {
        text.push_str(&format!(" until {end}"));
    }
    let repositories = seal.repositories.iter().map(ToString::to_string).collect::<Vec<_>>();
    text.push_str(&format!("\nfor {}\nsigned by {}\n", repositories.join(", "), verified.signer()));
    for (index, layer) in seal.layers.iter().enumerate() {
        let signed =
            if verified.layer_signed(index) { "signed" } else { "not signed for the kernel" };
        text.push_str(&format!(
            "layer {index} {} root hash {} {signed}\n",
            layer.digest, layer.root_hash
        ));
    }
    out.write_all(text.as_bytes()).map_err(Error::Output)
}
