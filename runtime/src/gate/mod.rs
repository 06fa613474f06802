//! The gate's caller: what happens between `create` and the first process of a container.
//!
//! [`launch`] reads the node's configuration and the hand-over file, opens the lowers, asks the kernel about those
//! descriptors, finds the claim, has [`hallmark_trust::gate::judge`] decide, and builds the overlay from the same
//! descriptors. It runs in the host's mount and user namespaces, before the container's process exists.
//!
//! | module | is |
//! |---|---|
//! | `handover` | names of lowers, upper and work, from the shim |
//! | `stack`, `claims` | open, evidence, claim, judge |
//! | `upper` | the upper is empty at first start, or belongs to this stack |
//! | `overlay`, `aside` | the detached mount |
//! | `code` | what no unverified mount may cover |
//! | `mounts` | the specification's mounts, hooks and namespaces |
//! | `volume` | a mount whose source is sealed itself |
//! | `hardening` | what enforce adds |
//! | `audit` | refuse, or write down and go on |

mod aside;
mod audit;
mod claims;
pub(crate) mod code;
mod handover;
#[cfg(fuzzing)]
pub(crate) use handover::parse as hand_over;
mod hardening;
mod mounts;
mod overlay;
mod refusal;
mod stack;
#[cfg(test)]
mod tamper;
mod upper;
mod volume;
#[cfg(test)]
mod world;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hallmark_seal::{StackId, Timestamp};
use hallmark_sys::procfs::Procfs;
use hallmark_trust::config::{LoadedConfig, NodeConfig};
use hallmark_trust::gate::NodeRequirements;
use hallmark_trust::set::TrustSet;
use hallmark_trust::{Enforcement, ExecControl, Strength, exec_control};
use hallmark_verity::{ImageDigest, RootHash};
use serde::Serialize;

#[cfg(test)]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
use audit::Findings;
use handover::{Rootfs, Upper};
use overlay::{Parts, Warrant};
use refusal::Case;
use stack::{Judge, Lower};
use upper::{Start, Writable};

pub use hallmark_trust::config::PATH as CONFIG_PATH;
pub use handover::Access;
pub use hardening::{CgroupNamespace, Hardening, Memory, Pokes, Processes};
pub use refusal::Refusal;

/// What is to be launched, as far as the gate asks.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The container's ID.
    pub container: &'a str,
    /// The node's configuration, [`CONFIG_PATH`].
    pub config: &'a Path,
    /// The file that the shim handed over.
    pub rootfs_mounts: Option<&'a Path>,
    /// `root.path`: without a file handed over, a verified volume may be mounted there.
    pub root: &'a Path,
    /// `process.args`
    pub args: &'a [String],
    /// `process.cwd`
    pub cwd: &'a Path,
    /// `process.env`
    pub env: &'a [String],
    /// `linux.mountLabel`
    pub mount_label: Option<&'a str>,
    /// `linux.namespaces`, the one of type `mount`.
    pub mount_namespace: MountNamespace,
    /// Whose processes it sees.
    pub processes: Processes,
    /// `mounts`, in order.
    pub mounts: &'a [MountRequest],
    /// All hooks, in the order of a container's life.
    pub hooks: &'a [HookRequest],
}

/// A hook of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRequest {
    /// Its program.
    pub path: PathBuf,
    /// Its arguments, the program's own name first.
    pub args: Vec<String>,
    /// The variables it would have.
    pub env: Vec<String>,
    /// Where its program is found.
    pub runs: Runs,
}

/// In whose root a hook's program is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// The host's.
    Outside,
    /// The container's: `startContainer`.
    Inside,
}

/// Whose mounts the container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountNamespace {
    /// Its own.
    New,
    /// Those of the namespace at this path.
    Joined(PathBuf),
    /// The runtime's.
    Inherited,
}

/// A mount of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// Where, in the container.
    pub destination: PathBuf,
    /// What, on the host.
    pub source: Option<PathBuf>,
    /// Of which kind.
    pub kind: MountKind,
    /// Whether it is asked to be written to.
    pub access: Access,
}

/// The kinds of mount that the gate tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the host.
    Bind,
    /// A file system by its type, which brings the files that somebody put into it: a disk's, an overlay's, a server's.
    Filled,
    /// A file system that begins with nothing, or with what the kernel shows.
    Other,
}

/// What becomes of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountDecision {
    /// It is made as the specification asks for.
    Keep,
    /// It is made, `noexec` with all beneath it. Asked to show what the host mounts there later, it does; else not.
    NoExec,
}

/// What an unverified mount may cover: asked again where it is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unverified {
    /// Data only: enforce.
    CoversData,
    /// Anything, which is written down: audit.
    CoversAnything,
}

impl Unverified {
    fn of(mode: Enforcement) -> Self {
        match mode {
            Enforcement::Enforce => Self::CoversData,
            Enforcement::Audit => Self::CoversAnything,
        }
    }
}

/// A container that may be started, and how.
#[derive(Debug)]
pub struct Launch {
    /// The root file system as a detached mount, for the container's process to attach. `None` if the caller
    /// mounted one, which only audit mode accepts.
    pub rootfs: Option<OwnedFd>,
    /// For state.json.
    pub verdict: Verdict,
    /// For log.json, `level=warning`.
    pub warnings: Vec<String>,
    /// One for each mount of the request, in order.
    pub mounts: Vec<MountDecision>,
    /// For each hook of the request, the whole environment it gets; `None`: as asked.
    pub hook_environments: Vec<Option<Vec<String>>>,
    /// What a mount that nobody vouches for may cover.
    pub unverified: Unverified,
    /// For each mount, the volume that was judged and found verified, as a detached mount: to be attached, not what
    /// its name leads to by now.
    pub volumes: Vec<Option<OwnedFd>>,
    /// To be applied, all of it.
    pub hardening: Hardening,
}

/// What the gate found, as state.json keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// In short.
    pub outcome: Outcome,
    /// The weakest evidence of the layers.
    pub evidence: Option<Strength>,
    /// Who controls execution on the node.
    pub exec_control: ExecControl,
    /// The sealed image manifest, where a seal verified.
    pub image: Option<ImageDigest>,
    /// The root hashes of the stack, bottom first.
    pub layers: Vec<RootHash>,
}

/// The gate's answer in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything was as it should be.
    Permitted,
    /// Something would be refused under enforce; it is in the audit log.
    Audit,
    /// There was no stack to judge.
    NotJudged,
}

/// Judges a launch and builds its root file system.
///
/// # Errors
/// `Refused`: the gate's answer under enforce, a whole line for log.json and stderr. Any other kind: the node's
/// configuration, the hand-over file or the kernel; nothing is launched then either.
pub fn launch(request: &Request<'_>) -> Result<Launch> {
    let loaded = NodeConfig::load(request.config).map_err(|e| Error::system(chain(&e)))?;
    let now = Timestamp::from(std::time::SystemTime::now());
    let kernel = exec_control::read();
    let case = Case {
        container: request.container.to_owned(),
        image: None,
        evidence: None,
        exec_control: kernel.exec_control(),
    };
    let gate = &loaded.config.gate;
    // a configuration other than the pinned one cannot ask for audit, nor one of which nobody can say whether it is
    let unpinned = loaded.contradicts(&kernel.pins()) || kernel.doubt().is_some();
    let mode = if unpinned { Enforcement::Enforce } else { gate.mode };
    let findings = Findings::new(mode, &gate.audit_log, case);
    let devices = loaded.config.snapshotter.state.join("devices");
    let trust = TrustSet::under(kernel, &loaded, now);
    let trust = trust.and_then(|trust| trust.remember(&loaded.config).map(|()| trust));
    let trust = trust.as_ref().map_err(hallmark_trust::gate::Refusal::no_trust_set);
    let node = NodeRequirements::from(gate);
    let judge = Judge { trust, node, claims: &gate.claims, devices: &devices, now };
    match request.rootfs_mounts {
        Some(file) => judged(request, &loaded, findings, &judge, &handover::read(file)?),
        None => match Rootfs::of_volume(request.root)? {
            Some(volume) => judged(request, &loaded, findings, &judge, &volume),
            None => not_judged(request, &loaded, findings),
        },
    }
}

/// The stack decides first, so that every later message can say what evidence there is.
fn judged(
    request: &Request<'_>,
    loaded: &LoadedConfig,
    mut findings: Findings,
    judge: &Judge<'_>,
    rootfs: &Rootfs,
) -> Result<Launch> {
    same_label(rootfs.context.as_deref(), request.mount_label)?;
    let proc = Procfs::open().map_err(|e| Error::system(chain(&e)))?;
    let built = build(request, &mut findings, judge, rootfs, &proc)?;
    let hook_environments =
        mounts::weigh_specification(&mut findings, &loaded.config.gate, request)?;
    let image = mounts::Image::new(&proc, built.mount.as_fd(), request)?;
    let (mounts, volumes) = image.weigh_mounts(&mut findings, judge, request)?;
    // only now: a launch that was refused is no first start
    if let Some((writable, stack)) = built.first_start {
        writable.note(stack)?;
    }
    let outcome = if findings.is_clean() { Outcome::Permitted } else { Outcome::Audit };
    let exec_control = findings.case.exec_control;
    Ok(Launch {
        rootfs: Some(built.mount),
        verdict: verdict(outcome, &findings.case, built.layers),
        hardening: Hardening::of(findings.mode(), exec_control, request.processes),
        hook_environments,
        unverified: Unverified::of(findings.mode()),
        warnings: findings.into_warnings(),
        mounts,
        volumes,
    })
}

/// A root file system that may be attached.
struct Built {
    mount: OwnedFd,
    layers: Vec<RootHash>,
    /// The upper that has yet to be noted as that of a stack.
    first_start: Option<(Writable, StackId)>,
}

fn build(
    request: &Request<'_>,
    findings: &mut Findings,
    judge: &Judge<'_>,
    rootfs: &Rootfs,
    proc: &Procfs,
) -> Result<Built> {
    let lowers = rootfs.lowers.iter().map(|name| Lower::open(name)).collect::<Result<Vec<_>>>()?;
    let writable = match &rootfs.upper {
        Some(Upper::Plain(directory)) => {
            let pass = findings.pass(Refusal::NoLayers { found: directory.clone() })?;
            let directory = Lower::open(directory)?;
            let mount = overlay::plain(pass, directory.fd.as_fd(), rootfs.access)?;
            return Ok(Built { mount, layers: Vec::new(), first_start: None });
        }
        Some(Upper::Overlay { upper, work }) => Some((upper, work)),
        None => None,
    };
    let judged = judge.judge(proc, &lowers, request.args, request.env)?;
    findings.case.evidence = judged.evidence;
    findings.case.image = judged.image;
    let warrant = match judged.result {
        Ok(permit) => Warrant::Permit(permit),
        Err(refusal) => Warrant::Audit(findings.pass(refusal)?),
    };
    let writable = writable.map(|(upper, work)| Writable::open(upper, work)).transpose()?;
    let mut first = None;
    if let (Warrant::Permit(permit), Some(writable)) = (&warrant, &writable) {
        let stack = StackId::of(permit.stack());
        let start = findings.weigh(writable.belongs_to(stack)?)?;
        first = (start == Some(Start::First)).then_some(stack);
    }
    let parts = Parts {
        lowers: &lowers,
        writable: writable.as_ref(),
        label: request.mount_label,
        durability: rootfs.durability,
        access: rootfs.access,
        id_maps: rootfs.id_maps.as_ref(),
    };
    let mount = overlay::build(warrant, proc, &parts)?;
    Ok(Built { mount, layers: judged.stack, first_start: writable.zip(first) })
}

/// A root file system that the caller mounted: nobody can say what it is made of.
fn not_judged(
    request: &Request<'_>,
    loaded: &LoadedConfig,
    mut findings: Findings,
) -> Result<Launch> {
    let gate = &loaded.config.gate;
    findings.weigh(Err::<(), _>(Refusal::NotHandedOver))?;
    let hook_environments = mounts::weigh_specification(&mut findings, gate, request)?;
    let exec_control = findings.case.exec_control;
    Ok(Launch {
        rootfs: None,
        verdict: verdict(Outcome::NotJudged, &findings.case, Vec::new()),
        hardening: Hardening::of(findings.mode(), exec_control, request.processes),
        hook_environments,
        unverified: Unverified::of(findings.mode()),
        warnings: findings.into_warnings(),
        mounts: vec![MountDecision::Keep; request.mounts.len()],
        volumes: request.mounts.iter().map(|_| None).collect(),
    })
}

fn verdict(outcome: Outcome, case: &Case, layers: Vec<RootHash>) -> Verdict {
    let Case { evidence, exec_control, image, .. } = *case;
    Verdict { outcome, evidence, exec_control, image, layers }
}

/// containerd derives the mount's label from the specification; two labels would be two answers.
fn same_label(handed_over: Option<&str>, asked: Option<&str>) -> Result<()> {
    match handed_over {
        Some(found) if asked != Some(found) => Err(Error::spec(format!(
            "hand-over file: context is {found:?}, the specification's mountLabel {asked:?}"
        ))),
        _ => Ok(()),
    }
}

/// An error and its sources, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line.push_str(": ");
        line.push_str(&source.to_string());
        next = source.source();
    }
    line
}
