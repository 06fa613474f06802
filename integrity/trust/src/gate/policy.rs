//! What the IPE policy says of a layer.

use hallmark_seal::VerifiedSeal;

use super::refusal::{LayerName, Refusal};
use crate::evidence::{Evidence, Volume};
use crate::ipe::{Action, Digest, DmVerity, Operation, Properties, Signature};
use crate::set::{PolicySource, TrustSet};

/// What IPE knows of the layer's files, or would know if this kernel had IPE.
pub(super) fn properties(
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

/// The policy lets files with these properties be executed.
pub(super) fn allows(
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
