//! The gate: may this stack of layers be launched?
//!
//! [`judge`] does no I/O and trusts no name. Three must agree: the **evidence** of every layer, a
//! **seal** signed by one of the node's keys whose layers are exactly that stack in that order, and
//! the **IPE policy**. The answer is a [`LaunchPermit`], which nothing else makes, or a [`Refusal`].

mod dm_verity;
mod layer;
mod policy;
mod process;
mod refusal;
#[cfg(test)]
mod tamper;

use hallmark_seal::{SealDigest, SealedLayer, VerifiedSeal};
use hallmark_verity::{ImageDigest, RootHash};

use crate::config::GateConfig;
use crate::evidence::Evidence;
use crate::levels::{ExecControl, Strength};
use crate::set::{TrustSet, Unpinned};

pub use refusal::{LayerName, Refusal};

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
        layer::is_one_whole_layer(&name(position), evidence)?;
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
        layer::is_as_sealed(&name(position), evidence, sealed)?;
        policy::allows(trust, &name(position), &policy::properties(trust, evidence, seal, index))?;
        weakest = weakest.into_iter().chain(evidence.strength()).min();
    }
    if let Some((_, missing)) = sealed_at(seal, launch.evidence.len()) {
        let layer = name(launch.evidence.len());
        return Err(Refusal::LayerMissing { layer, expected: missing.root_hash });
    }
    process::is_as_pinned(seal, launch)?;
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
