//! From names to a judged stack: open, ask the kernel, find the claim, judge.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hallmark_seal::{StackId, Timestamp};
use hallmark_sys::procfs::Procfs;
use hallmark_trust::Strength;
use hallmark_trust::evidence::{Collector, Evidence};
use hallmark_trust::gate::{Claims, Launch, LaunchPermit, NodeRequirements, Refusal, judge};
use hallmark_trust::set::TrustSet;
use hallmark_verity::{ImageDigest, RootHash};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::claims;
use crate::error::{Context, Error, Result};

/// A lower that is open: what is judged and what is mounted are this descriptor.
#[derive(Debug)]
pub(super) struct Lower {
    pub(super) name: PathBuf,
    pub(super) fd: OwnedFd,
}

impl Lower {
    /// Opens a lower by its name, without following a link at its end.
    pub(super) fn open(name: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(CWD, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
            .context(|| format!("open lower {}", name.display()))?;
        Ok(Self { name: name.to_owned(), fd })
    }

    /// Whether it is on an EROFS at all.
    pub(super) fn is_erofs(&self) -> Result<bool> {
        /// `EROFS_SUPER_MAGIC_V1` of <linux/magic.h>.
        const EROFS: u64 = 0xe0f5_e1e2;
        let statfs = rustix::fs::fstatfs(&self.fd).context(|| "fstatfs")?;
        Ok(u64::try_from(statfs.f_type) == Ok(EROFS))
    }
}

/// What was found of a stack, and what the gate says of it.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) result: std::result::Result<LaunchPermit, Refusal>,
    /// The weakest evidence of its layers, `None` if one has none.
    pub(super) evidence: Option<Strength>,
    /// The image, if a seal of it verified.
    pub(super) image: Option<ImageDigest>,
    /// The root hashes found, bottom first.
    pub(super) stack: Vec<RootHash>,
}

impl Judged {
    fn without_evidence(refusal: Refusal) -> Self {
        Self { result: Err(refusal), evidence: None, image: None, stack: Vec::new() }
    }
}

/// What every stack of one launch is judged by.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    pub(super) trust: std::result::Result<&'a TrustSet, Refusal>,
    pub(super) node: NodeRequirements,
    pub(super) claims: &'a Path,
    pub(super) devices: &'a Path,
    pub(super) now: Timestamp,
}

impl Judge<'_> {
    /// Judges lowers, top first, and what is to be started from them.
    ///
    /// # Errors
    /// Only where the kernel cannot be asked for the mount table; all else is an answer.
    pub(super) fn judge(
        &self,
        proc: &Procfs,
        lowers: &[Lower],
        args: &[String],
        env: &[String],
    ) -> Result<Judged> {
        let collector =
            Collector::new(proc, self.devices).map_err(|e| Error::system(super::chain(&e)))?;
        let mut evidence = Vec::with_capacity(lowers.len());
        for (position, lower) in lowers.iter().rev().enumerate() {
            match collector.collect(lower.fd.as_fd(), &lower.name) {
                Ok(found) => evidence.push(found),
                Err(error) => {
                    let refusal = Refusal::no_evidence(position, &lower.name, &error);
                    return Ok(Judged::without_evidence(refusal));
                }
            }
        }
        let trust = match &self.trust {
            Ok(trust) => *trust,
            Err(refusal) => return Ok(Judged::without_evidence(refusal.clone())),
        };
        let claims = self.claims(trust, &evidence);
        let launch = Launch { evidence: &evidence, args, env };
        let strengths = evidence.iter().map(Evidence::strength);
        let result = judge(trust, self.node, &claims, &launch);
        let image = match &result {
            Ok(permit) => Some(permit.image()),
            Err(_) => claims.verified.first().map(|seal| seal.seal().subject.digest),
        };
        Ok(Judged {
            result,
            evidence: strengths.min().flatten(),
            image,
            stack: evidence.iter().filter_map(Evidence::root_hash).collect(),
        })
    }

    fn claims(&self, trust: &TrustSet, evidence: &[Evidence]) -> Claims {
        let name = |root_hash: fn(&Evidence) -> Option<RootHash>| {
            let stack: Option<Vec<RootHash>> = evidence.iter().map(root_hash).collect();
            stack.map(|stack| StackId::of(&stack))
        };
        let found = name(Evidence::root_hash);
        let stated = name(|evidence| evidence.stated_root_hash().or(evidence.root_hash()));
        let stacks: Vec<StackId> = found.into_iter().chain(stated).collect();
        claims::find(self.claims, &stacks, trust, self.now)
    }
}
