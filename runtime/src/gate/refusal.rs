//! Why a container is not launched: what the layers' gate says, and what only a runtime can see.

use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use hallmark_seal::StackId;
use hallmark_trust::{ExecControl, Strength};
use hallmark_verity::ImageDigest;

/// Why a container is not launched. Exhaustive: the tamper table has a row for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A hook that root did not allow.
    #[error(
        "hook {found} with arguments {args:?}, expected one of gate.hooks: {expected:?}, with the arguments given there, and not in the container",
        found = found.display()
    )]
    Hook {
        /// The program.
        found: PathBuf,
        /// Its arguments.
        args: Vec<String>,
        /// What the node's configuration allows.
        expected: Vec<PathBuf>,
    },
    /// The stack itself.
    #[error(transparent)]
    Layers(#[from] hallmark_trust::gate::Refusal),
    /// A mount that puts unverified files in the place of verified code.
    #[error(
        "mount of {source} at {destination} hides code of the image, expected a verified volume there",
        source = source_path.display(), destination = destination.display()
    )]
    MountHidesCode {
        /// Where it would be mounted.
        destination: PathBuf,
        /// What would be mounted.
        source_path: PathBuf,
    },
    /// The container would see the mounts of another.
    #[error("mount namespace {found}, expected a new one", found = found.display())]
    MountNamespaceJoined {
        /// The namespace's path.
        found: PathBuf,
    },
    /// The container would see the host's mounts.
    #[error("no mount namespace, expected a new one")]
    MountNamespaceMissing,
    /// The root file system has no layer to judge.
    #[error("the root file system is the directory {found}, expected layers", found = found.display())]
    NoLayers {
        /// The directory.
        found: PathBuf,
    },
    /// The root file system was mounted by somebody else.
    #[error(
        "the root file system was mounted by the caller, expected --rootfs-mounts from containerd-shim-hallmark-v1"
    )]
    NotHandedOver,
    /// The program to start lies on an unverified mount.
    #[error(
        "{program} would be started from {source}, mounted at {destination}, expected a program of the image or of a verified volume",
        program = program.display(), source = source_path.display(), destination = destination.display()
    )]
    ProgramUnverified {
        /// The first argument.
        program: PathBuf,
        /// Where its mount is.
        destination: PathBuf,
        /// What is mounted there.
        source_path: PathBuf,
    },
    /// The upper holds files before the container's first start.
    #[error("upper {upper} holds {found} before the first start, expected nothing", upper = upper.display())]
    UpperNotEmpty {
        /// The directory.
        upper: PathBuf,
        /// An entry or extended attribute of it.
        found: String,
    },
    /// The upper belongs to a container of another stack.
    #[error("upper {upper} was written on stack {found}, expected {expected}", upper = upper.display())]
    UpperOfOtherStack {
        /// The directory.
        upper: PathBuf,
        /// The stack that its work directory names.
        found: String,
        /// The stack that is being started.
        expected: StackId,
    },
}

impl Refusal {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Layers(refusal) => refusal.remedy(),
            Self::Hook { .. } => {
                "list the program and its arguments in gate.hooks of /etc/hallmark/config.toml"
            }
            Self::MountHidesCode { .. } | Self::ProgramUnverified { .. } => {
                "mount it elsewhere, or build it into the image and seal that"
            }
            Self::MountNamespaceJoined { .. } | Self::MountNamespaceMissing => {
                "give the container a mount namespace of its own"
            }
            Self::NoLayers { .. } => {
                "start it from an image that the hallmark snapshotter unpacked"
            }
            Self::NotHandedOver => {
                "start it through containerd with runtime io.containerd.hallmark.v1"
            }
            Self::UpperNotEmpty { .. } | Self::UpperOfOtherStack { .. } => {
                "remove the container and create it anew"
            }
        }
    }
}

/// Which container was judged, and what the node and its layers have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) container: String,
    pub(super) image: Option<ImageDigest>,
    pub(super) evidence: Option<Strength>,
    pub(super) exec_control: ExecControl,
}

/// The line a person reads: who, what, what the node has, what to do.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) case: &'a Case,
    pub(super) refusal: &'a Refusal,
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { case, refusal } = self;
        write!(f, "container {}", case.container)?;
        if let Some(image) = &case.image {
            write!(f, ", image {image}")?;
        }
        write!(f, ": {refusal}; evidence ")?;
        match case.evidence {
            Some(evidence) => write!(f, "{evidence}")?,
            None => f.write_str("none")?,
        }
        write!(f, ", exec control {}; to run it: {}", case.exec_control, refusal.remedy())
    }
}
