//! The gate: may this stack of layers be launched?
//!
//! [`judge`] does no I/O and trusts no name. Three must agree: the **evidence** of every layer, a
//! **seal** signed by one of the node's keys whose layers are exactly that stack in that order, and
//! the **IPE policy**. The answer is a [`LaunchPermit`], which nothing else makes, or a [`Refusal`].

mod dm_verity;
mod refusal;
#[cfg(test)]
mod tamper;

use hallmark_seal::{SealDigest, SealedLayer, VerifiedSeal};
use hallmark_verity::{ImageDigest, RootHash};

use crate::config::GateConfig;
use crate::evidence::{Evidence, Volume};
use crate::ipe::{Action, Digest, DmVerity, Operation, Properties, Signature};
use crate::levels::{ExecControl, Strength};
use crate::set::{PolicySource, TrustSet, Unpinned};

pub use refusal::{LayerName, Refusal};

/// `EROFS_SUPER_MAGIC_V1` of Linux include/uapi/linux/magic.h.
const EROFS: u64 = 0xE0F5_E1E2;

/// The options a layer's superblock may have, besides a SELinux label of its own. What else EROFS
/// knows (`device=`, `fsoffset=`, `domain_id=`, `inode_share`) shows other bytes than the signed ones.
const OPTIONS: [&str; 8] = [
    "ro",
    "user_xattr",
    "acl",
    "seclabel",
    "cache_strategy=disabled",
    "cache_strategy=readahead",
    "cache_strategy=readaround",
    "dax=never",
];

/// The least that a node accepts of the two axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRequirements {
    /// For every layer.
    pub minimum_evidence: Strength,
    /// For the node.
    pub exec_control: ExecControl,
}

impl From<&GateConfig> for NodeRequirements {
    fn from(gate: &GateConfig) -> Self {
        Self { minimum_evidence: gate.minimum_evidence, exec_control: gate.exec_control }
    }
}

/// The claims found for a stack: those that verified, and why the others did not.
#[derive(Debug, Default)]
pub struct Claims {
    /// Seals signed by a key of the node.
    pub verified: Vec<VerifiedSeal>,
    /// One sentence for each other one, or that there was none.
    pub rejected: Vec<String>,
}

/// What is to be launched.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Evidence of every lower, bottom first.
    pub evidence: &'a [Evidence],
    /// The arguments of the first process.
    pub args: &'a [String],
    /// Its environment, `NAME=value`.
    pub env: &'a [String],
}

/// Leave to mount this stack and start one container from it.
///
/// Only [`judge`] makes one, it cannot be copied, and what mounts the stack consumes it.
#[derive(Debug, PartialEq, Eq)]
pub struct LaunchPermit {
    image: ImageDigest,
    seal: SealDigest,
    evidence: Strength,
    exec_control: ExecControl,
    stack: Vec<RootHash>,
}

impl LaunchPermit {
    /// The image manifest that was sealed.
    pub fn image(&self) -> ImageDigest {
        self.image
    }

    /// The seal that speaks for it.
    pub fn seal(&self) -> SealDigest {
        self.seal
    }

    /// The weakest evidence among the layers.
    pub fn evidence(&self) -> Strength {
        self.evidence
    }

    /// Who controls execution from now on.
    pub fn exec_control(&self) -> ExecControl {
        self.exec_control
    }

    /// The root hashes of the stack, bottom first.
    pub fn stack(&self) -> &[RootHash] {
        &self.stack
    }
}

/// Decides whether a stack may be launched.
///
/// # Errors
/// The first reason against it. Where several seals were claimed, the reason of the first.
pub fn judge(
    trust: &TrustSet,
    node: NodeRequirements,
    claims: &Claims,
    launch: &Launch<'_>,
) -> Result<LaunchPermit, Refusal> {
    node_is_as_required(trust, node)?;
    let name = |position| LayerName::new(position, claims.verified.first());
    for (position, evidence) in launch.evidence.iter().enumerate() {
        is_one_whole_layer(&name(position), evidence)?;
        let found = evidence.strength();
        if found.is_none_or(|found| found < node.minimum_evidence) {
            return Err(Refusal::EvidenceTooWeak {
                layer: name(position),
                found,
                expected: node.minimum_evidence,
            });
        }
    }
    let mut refusal = None;
    for seal in &claims.verified {
        match agrees(trust, seal, launch) {
            Ok(permit) => return Ok(permit),
            Err(why) => refusal = refusal.or(Some(why)),
        }
    }
    Err(refusal.unwrap_or_else(|| Refusal::no_seal(launch.evidence, &claims.rejected)))
}

fn node_is_as_required(trust: &TrustSet, node: NodeRequirements) -> Result<(), Refusal> {
    if trust.exec_control < node.exec_control {
        return Err(Refusal::ExecControl {
            found: trust.exec_control,
            expected: node.exec_control,
            why: trust.weakness.clone().unwrap_or_default(),
        });
    }
    // what is pinned binds whatever the configuration says: it may be the file that was changed
    let binds = |file: &&Unpinned| file.pinned || node.exec_control == ExecControl::Ipe;
    match trust.unpinned.iter().find(binds).cloned() {
        Some(Unpinned { file, found, expected, .. }) => {
            Err(Refusal::Unpinned { file, found, expected })
        }
        None => Ok(()),
    }
}

/// The descriptor is a whole superblock on a block device that says what it holds, and nothing else.
fn is_one_whole_layer(layer: &LayerName, evidence: &Evidence) -> Result<(), Refusal> {
    let layer = || layer.clone();
    if evidence.file_system != EROFS {
        return Err(Refusal::FileSystem { layer: layer(), found: evidence.file_system });
    }
    if !evidence.is_mount_root || evidence.shown_root != "/" {
        let found =
            if evidence.is_mount_root { &evidence.shown_root } else { "a directory inside" };
        return Err(Refusal::NotRoot { layer: layer(), found: found.to_owned() });
    }
    if let Some(found) = evidence.mounted_beneath.clone() {
        return Err(Refusal::MountedBeneath { layer: layer(), found });
    }
    let labelled =
        |option: &str| option.starts_with("context=") || option.starts_with("rootcontext=");
    let mut options = evidence.options.iter().map(String::as_str);
    if let Some(found) = options.find(|option| !OPTIONS.contains(option) && !labelled(option)) {
        return Err(Refusal::SuperblockOption { layer: layer(), found: found.to_owned() });
    }
    match &evidence.volume {
        Volume::DmVerity(volume) => dm_verity::is_strict(&layer(), evidence.device, volume),
        Volume::Rehashed(loop_device) if loop_device.serves_whole_file() => Ok(()),
        Volume::Rehashed(loop_device) => {
            Err(Refusal::LoopDevice { layer: layer(), found: loop_device.window() })
        }
        Volume::Unverified(found) => {
            Err(Refusal::Unverified { layer: layer(), found: found.clone() })
        }
    }
}

/// The stack is the seal's, and the policy lets every layer of it run.
fn agrees(
    trust: &TrustSet,
    seal: &VerifiedSeal,
    launch: &Launch<'_>,
) -> Result<LaunchPermit, Refusal> {
    let name = |position| LayerName::new(position, Some(seal));
    let mut weakest: Option<Strength> = None;
    for (position, evidence) in launch.evidence.iter().enumerate() {
        let found = evidence.root_hash();
        let Some((index, sealed)) = sealed_at(seal, position) else {
            return Err(Refusal::LayerExtra { layer: name(position), found });
        };
        is_as_sealed(&name(position), evidence, sealed)?;
        policy_allows(trust, &name(position), &properties(trust, evidence, seal, index))?;
        weakest = weakest.into_iter().chain(evidence.strength()).min();
    }
    if let Some((_, missing)) = sealed_at(seal, launch.evidence.len()) {
        let layer = name(launch.evidence.len());
        return Err(Refusal::LayerMissing { layer, expected: missing.root_hash });
    }
    process_is_as_pinned(seal, launch)?;
    let Some(evidence) = weakest else {
        return Err(Refusal::no_seal(launch.evidence, &[]));
    };
    Ok(LaunchPermit {
        image: seal.seal().subject.digest,
        seal: seal.digest(),
        evidence,
        exec_control: trust.exec_control,
        stack: seal.stack().to_vec(),
    })
}

/// The sealed layer at a position of the stack, and its place in the image's layer list: the
/// topmost copy of its root hash.
fn sealed_at(seal: &VerifiedSeal, position: usize) -> Option<(usize, &SealedLayer)> {
    let root_hash = seal.stack().get(position)?;
    let layers = seal.seal().layers.iter().enumerate();
    layers.rev().find(|(_, layer)| layer.root_hash == *root_hash)
}

fn is_as_sealed(
    layer: &LayerName,
    evidence: &Evidence,
    sealed: &SealedLayer,
) -> Result<(), Refusal> {
    let layer = || layer.clone();
    let found = evidence.root_hash();
    if found != Some(sealed.root_hash) {
        return Err(Refusal::RootHash { layer: layer(), found, expected: sealed.root_hash });
    }
    let (salt, data_blocks) = match &evidence.volume {
        Volume::DmVerity(volume) => (volume.target.salt.as_slice(), volume.target.data_blocks),
        Volume::Rehashed(volume) => (volume.params.salt.as_bytes(), volume.params.data_blocks.0),
        Volume::Unverified(found) => {
            return Err(Refusal::Unverified { layer: layer(), found: found.clone() });
        }
    };
    if salt != sealed.salt.as_bytes() {
        let (found, expected) = (hex::encode(salt), sealed.salt.to_string());
        return Err(Refusal::Salt { layer: layer(), found, expected });
    }
    if data_blocks != sealed.data_blocks.0 {
        let expected = sealed.data_blocks.0;
        return Err(Refusal::DataBlocks { layer: layer(), found: data_blocks, expected });
    }
    Ok(())
}

/// What IPE knows of the layer's files, or would know if this kernel had IPE.
fn properties(
    trust: &TrustSet,
    evidence: &Evidence,
    seal: &VerifiedSeal,
    index: usize,
) -> Properties {
    let source = trust.policy.as_ref().map(|policy| policy.source);
    let signed = match (source, &evidence.volume) {
        // the kernel does not know what we hashed, nor a signature that it was not given
        (Some(PolicySource::Kernel), Volume::DmVerity(volume)) => volume.target.signed,
        (Some(PolicySource::Kernel), _) | (_, Volume::Unverified(_)) => {
            return Properties::default();
        }
        _ => seal.layer_signed(index),
    };
    let signature = if signed { Signature::Signed } else { Signature::Unsigned };
    let root_hash = evidence.root_hash().map(|root_hash| Digest::sha256(*root_hash.as_bytes()));
    let dm_verity = root_hash.map(|root_hash| DmVerity { root_hash, signature });
    Properties { dm_verity, ..Properties::default() }
}

fn policy_allows(
    trust: &TrustSet,
    layer: &LayerName,
    properties: &Properties,
) -> Result<(), Refusal> {
    let Some(trusted) = &trust.policy else {
        return Err(Refusal::NoPolicy);
    };
    let decision = trusted.policy.evaluate(Operation::Execute, properties);
    match decision.action {
        Action::Allow => Ok(()),
        Action::Deny => {
            Err(Refusal::PolicyDenies { layer: layer.clone(), found: decision.to_string() })
        }
    }
}

fn process_is_as_pinned(seal: &VerifiedSeal, launch: &Launch<'_>) -> Result<(), Refusal> {
    let Some(pins) = &seal.seal().pins else { return Ok(()) };
    let entrypoint = pins.entrypoint.as_deref().unwrap_or_default();
    if !launch.args.starts_with(entrypoint) {
        let (found, expected) = (launch.args.to_vec(), entrypoint.to_vec());
        return Err(Refusal::Entrypoint { found, expected });
    }
    for pinned in pins.env.iter().flatten() {
        let name = pinned.split('=').next().unwrap_or_default();
        let same = |variable: &&String| variable.split('=').next() == Some(name);
        let found: Vec<String> = launch.env.iter().filter(same).cloned().collect();
        if found.is_empty() || found.iter().any(|variable| variable != pinned) {
            return Err(Refusal::Environment { found, expected: pinned.clone() });
        }
    }
    Ok(())
}
