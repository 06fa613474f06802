//! Why a stack is not launched: an answer, not a malfunction.
//!
//! Every variant says what was found and what was expected. The enum is exhaustive on purpose: a
//! `match` in the tamper table names every variant, so a new one breaks the build until it has a row.

use std::fmt::{Display, Formatter};
use std::path::Path;

use hallmark_seal::{StackId, VerifiedSeal};
use hallmark_verity::{LayerDigest, RootHash};

use crate::evidence::Evidence;
use crate::levels::{ExecControl, Strength};

/// How a layer is called in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerName {
    /// Its place in the image's layer list, or in the stack if no seal is known; from 1, the
    /// lowest first.
    pub number: usize,
    /// Its digest, if a seal is known.
    pub digest: Option<LayerDigest>,
}

impl LayerName {
    /// The layer at a position of the stack, as the seal calls it.
    pub fn new(position: usize, seal: Option<&VerifiedSeal>) -> Self {
        match seal.and_then(|seal| super::sealed_at(seal, position)) {
            Some((index, layer)) => {
                Self { number: index.saturating_add(1), digest: Some(layer.digest) }
            }
            None => Self { number: position.saturating_add(1), digest: None },
        }
    }
}

impl Display for LayerName {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "layer {}", self.number)?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, " ({digest})"))
    }
}

/// Why a stack is not launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A block of the device did not match its hash tree.
    #[error("{layer}: dm-verity status is C, a block did not match, expected V")]
    Corrupted {
        /// The layer.
        layer: LayerName,
    },
    /// The volume has another length than the sealed one.
    #[error("{layer}: volume has {found} data blocks, the seal says {expected}")]
    DataBlocks {
        /// The layer.
        layer: LayerName,
        /// Blocks of 4096 bytes.
        found: u64,
        /// Blocks of 4096 bytes.
        expected: u64,
    },
    /// An option of the verity table.
    #[error("{layer}: dm-verity option {found}, expected none")]
    DmOption {
        /// The layer.
        layer: LayerName,
        /// The option.
        found: String,
    },
    /// A verity table of another form.
    #[error(
        "{layer}: dm-verity table is {found}, expected version 1, sha256, blocks of 4096 bytes, over the whole device"
    )]
    DmTable {
        /// The layer.
        layer: LayerName,
        /// Its form.
        found: String,
    },
    /// The process starts with other arguments than pinned.
    #[error("arguments are {found:?}, the seal pins {expected:?} as the first")]
    Entrypoint {
        /// The arguments.
        found: Vec<String>,
        /// The pinned ones.
        expected: Vec<String>,
    },
    /// A variable is not as pinned.
    #[error("environment has {found:?}, the seal pins {expected:?}")]
    Environment {
        /// The variables of that name.
        found: Vec<String>,
        /// The pinned one.
        expected: String,
    },
    /// The evidence is weaker than the node asks for.
    #[error("{layer}: evidence is {}, this node asks for {expected}", shown(found.as_ref()))]
    EvidenceTooWeak {
        /// The layer.
        layer: LayerName,
        /// Its strength, if any.
        found: Option<Strength>,
        /// The least accepted.
        expected: Strength,
    },
    /// The kernel does not control execution as the node asks for.
    #[error("exec control is {found}, this node asks for {expected}: {why}")]
    ExecControl {
        /// What the node has.
        found: ExecControl,
        /// The least accepted.
        expected: ExecControl,
        /// Why it has no better.
        why: String,
    },
    /// The lower is not of a layer image.
    #[error("{layer}: file system type is {found:#x}, expected EROFS, 0xe0f5e1e2")]
    FileSystem {
        /// The layer.
        layer: LayerName,
        /// `f_type` of statfs.
        found: u64,
    },
    /// A layer more than were sealed.
    #[error("{layer}: root hash is {}, the seal has no such layer", shown(found.as_ref()))]
    LayerExtra {
        /// The layer.
        layer: LayerName,
        /// Its root hash.
        found: Option<RootHash>,
    },
    /// A layer fewer than were sealed.
    #[error("{layer}: found nothing, the seal says root hash {expected}")]
    LayerMissing {
        /// The layer.
        layer: LayerName,
        /// Its root hash.
        expected: RootHash,
    },
    /// A loop device that may show other bytes than were hashed.
    #[error("{layer}: loop device is {found}, expected read-only over the whole file")]
    LoopDevice {
        /// The layer.
        layer: LayerName,
        /// What it shows.
        found: String,
    },
    /// Something is mounted in the lower.
    #[error("{layer}: something is mounted at {found}, expected nothing beneath a layer")]
    MountedBeneath {
        /// The layer.
        layer: LayerName,
        /// The mount point.
        found: String,
    },
    /// The kernel could not be asked about a lower.
    #[error("{layer}: no evidence of {lower}: {found}, expected the kernel's answer")]
    NoEvidence {
        /// The layer.
        layer: LayerName,
        /// The lower.
        lower: String,
        /// Why.
        found: String,
    },
    /// No policy says what may run.
    #[error(
        "no IPE policy: none is active in the kernel and there is no signed policy file, expected one"
    )]
    NoPolicy,
    /// The lower is not the whole of a layer.
    #[error("{layer}: found {found}, expected the root of its file system")]
    NotRoot {
        /// The layer.
        layer: LayerName,
        /// What part of it.
        found: String,
    },
    /// A verity device that our snapshotter did not create.
    #[error("{layer}: {found}, expected {expected}")]
    NotOurs {
        /// The layer.
        layer: LayerName,
        /// The device, or what is wrong with the record.
        found: String,
        /// What was recorded.
        expected: String,
    },
    /// No seal of this stack verified.
    #[error(
        "no seal for this stack of {layers} layers ({stack}): found {found}, expected one signed by a key of this node"
    )]
    NoSeal {
        /// The stack.
        stack: StackId,
        /// Its length.
        layers: usize,
        /// What was there instead.
        found: String,
    },
    /// Keys, revocations or policy could not be read.
    #[error(
        "no trust set: {found}, expected keys, revocations and policy that only root can write"
    )]
    NoTrustSet {
        /// Why.
        found: String,
    },
    /// The policy does not let a layer run.
    #[error("{layer}: the IPE policy says \"{found}\", expected action=ALLOW")]
    PolicyDenies {
        /// The layer.
        layer: LayerName,
        /// The rule or default that decides.
        found: String,
    },
    /// Another volume than the sealed one.
    #[error("{layer}: root hash is {}, the seal says {expected}", shown(found.as_ref()))]
    RootHash {
        /// The layer.
        layer: LayerName,
        /// The volume's root hash.
        found: Option<RootHash>,
        /// The sealed one.
        expected: RootHash,
    },
    /// The tree was made with another salt.
    #[error("{layer}: salt is {found}, the seal says {expected}")]
    Salt {
        /// The layer.
        layer: LayerName,
        /// Hex.
        found: String,
        /// Hex.
        expected: String,
    },
    /// A mount option that shows other bytes than the signed ones.
    #[error(
        "{layer}: mount option {found}, expected none but ro, user_xattr, acl, cache_strategy, dax=never and SELinux labels"
    )]
    SuperblockOption {
        /// The layer.
        layer: LayerName,
        /// The option.
        found: String,
    },
    /// A trust file that the active policy does not pin as it is.
    #[error("trust file {file} is {found}, expected {expected} in the active IPE policy")]
    Unpinned {
        /// `config`, `keys` or `revocations`.
        file: &'static str,
        /// The file's digest, or that there is none.
        found: String,
        /// The pinned digest, or that there is none.
        expected: String,
    },
    /// Nothing says what the lower's blocks are.
    #[error("{layer}: {found}, expected a dm-verity device or a loop device over a packed layer")]
    Unverified {
        /// The layer.
        layer: LayerName,
        /// What it is.
        found: String,
    },
}

impl Refusal {
    /// The kernel could not be asked about the lower at a position of the stack.
    pub fn no_evidence(position: usize, lower: &Path, error: &crate::evidence::Error) -> Self {
        Self::NoEvidence {
            layer: LayerName::new(position, None),
            lower: lower.display().to_string(),
            found: crate::chain(error),
        }
    }

    /// There is no trust set to judge by.
    pub fn no_trust_set(error: &crate::set::TrustError) -> Self {
        Self::NoTrustSet { found: crate::chain(error) }
    }

    pub(super) fn no_seal(evidence: &[Evidence], rejected: &[String]) -> Self {
        let stack: Vec<RootHash> = evidence.iter().filter_map(Evidence::root_hash).collect();
        let found = if rejected.is_empty() { "no claim".to_owned() } else { rejected.join("; ") };
        Self::NoSeal { stack: StackId::of(&stack), layers: evidence.len(), found }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Corrupted { .. }
            | Self::DataBlocks { .. }
            | Self::RootHash { .. }
            | Self::Salt { .. } => {
                "the stored layer is not the sealed one: remove the image and its snapshots, pull it again"
            }
            Self::LayerExtra { .. } | Self::LayerMissing { .. } => {
                "start the container from the image as it was sealed, or seal the image that this stack is of"
            }
            Self::NoSeal { .. } => {
                "seal the image with `hallmark seal`, and pull it again or put the claim into the claims directory"
            }
            Self::Entrypoint { .. } | Self::Environment { .. } => {
                "start it as pinned, or seal the image without pins"
            }
            Self::EvidenceTooWeak { .. } => {
                "use a kernel with device-mapper (and layer signatures), or lower minimum_evidence in /etc/hallmark/config.toml"
            }
            Self::ExecControl { .. } => {
                "load an IPE policy that denies EXECUTE by default, or set exec_control = \"launch-only\" in /etc/hallmark/config.toml"
            }
            Self::Unpinned { .. } => "restore the file, or sign and activate a policy that pins it",
            Self::NoPolicy => {
                "sign a policy and put it at trust.policy, or load it into the kernel"
            }
            Self::PolicyDenies { .. } => {
                "sign the layers with a key the kernel trusts, or allow their root hashes in the IPE policy"
            }
            Self::NoTrustSet { .. } => "repair the file; `hallmark posture` looks at all of them",
            Self::DmOption { .. }
            | Self::DmTable { .. }
            | Self::FileSystem { .. }
            | Self::LoopDevice { .. }
            | Self::MountedBeneath { .. }
            | Self::NoEvidence { .. }
            | Self::NotOurs { .. }
            | Self::NotRoot { .. }
            | Self::SuperblockOption { .. }
            | Self::Unverified { .. } => {
                "use the hallmark snapshotter, and restart it so that it activates the layer anew"
            }
        }
    }
}

fn shown(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}
