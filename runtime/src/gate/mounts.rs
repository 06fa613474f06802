//! What the specification brings along besides the root file system: mounts, hooks, namespaces.
//!
//! A mount is **verified** if its source is itself a stack that the gate permits (an image volume); it may then hold
//! code. Any other mount must not take the place of the image's code. Where the kernel controls execution it decides
//! about the rest: a host's `tini` on a signed volume may be bound in and started. Where it does not, an unverified
//! bind, and a file system that somebody filled, is made `noexec` and must not hold the program that is started.
//!
//! Code is what lies in the directories of [`code`], what is executable, and the program itself. Data of an image
//! may be covered: containers live from configuration and volumes mounted over it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use hallmark_sys::procfs::Procfs;
use hallmark_trust::config::GateConfig;
use hallmark_trust::{Enforcement, ExecControl};
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::audit::Findings;
use super::code;
use super::refusal::Refusal;
use super::stack::Judge;
use super::{MountDecision, MountKind, MountNamespace, MountRequest, Request, Runs, volume};
use crate::error::{Context, Error, Result};

/// Hooks are root's own programs, run as root allows them; a mount namespace must be the container's. Answers with the
/// environment of each hook.
///
/// # Errors
/// Under enforce: the refusal.
pub(super) fn weigh_specification(
    findings: &mut Findings,
    gate: &GateConfig,
    request: &Request<'_>,
) -> Result<Vec<Option<Vec<String>>>> {
    let namespace = match &request.mount_namespace {
        MountNamespace::New => Ok(()),
        MountNamespace::Joined(path) => Err(Refusal::MountNamespaceJoined { found: path.clone() }),
        MountNamespace::Inherited => Err(Refusal::MountNamespaceMissing),
    };
    findings.weigh(namespace)?;
    let hooks = request.hooks.iter().map(|hook| {
        // the name of root's program is another's file there
        let ours = hook.runs == Runs::Outside;
        let rule = gate.hooks.iter().find(|rule| ours && rule.allows(&hook.path, &hook.args));
        let allowed = rule.ok_or_else(|| Refusal::Hook {
            found: hook.path.clone(),
            args: hook.args.clone(),
            expected: gate.hooks.iter().map(|rule| rule.path.clone()).collect(),
        });
        let rule = findings.weigh(allowed)?;
        Ok(match findings.mode() {
            Enforcement::Enforce => rule.map(|rule| rule.environment(&hook.env)),
            Enforcement::Audit => None,
        })
    });
    hooks.collect()
}

/// The image's files and what is started from them.
#[derive(Debug)]
pub(super) struct Image<'a> {
    proc: &'a Procfs,
    root: BorrowedFd<'a>,
    /// The program, as asked for and as the links of the image lead to it.
    program: Option<(PathBuf, PathBuf)>,
}

impl<'a> Image<'a> {
    /// Looks for the program.
    ///
    /// # Errors
    /// A place that the kernel does not tell us about.
    pub(super) fn new(
        proc: &'a Procfs,
        root: BorrowedFd<'a>,
        request: &Request<'_>,
    ) -> Result<Self> {
        let mut image = Self { proc, root, program: None };
        let candidates = programs(request.args, request.env, request.cwd);
        for path in &candidates {
            if let Some(resolved) = image.resolve(path)? {
                image.program = Some((path.clone(), resolved));
                return Ok(image);
            }
        }
        // the image has none: a mount may bring it
        image.program = candidates.into_iter().next().map(|path| (path.clone(), path));
        Ok(image)
    }

    /// Decides on every mount, in the specification's order, and keeps the volumes that were found verified.
    ///
    /// # Errors
    /// Under enforce: the refusal of the first that is not acceptable.
    pub(super) fn weigh_mounts(
        &self,
        findings: &mut Findings,
        judge: &Judge<'_>,
        request: &Request<'_>,
    ) -> Result<(Vec<MountDecision>, Vec<Option<OwnedFd>>)> {
        let mut decisions = Vec::with_capacity(request.mounts.len());
        let mut volumes = Vec::with_capacity(request.mounts.len());
        for mount in request.mounts {
            let verified = volume::verified(self.proc, judge, mount, request.mount_label)?;
            let exec_control = findings.case.exec_control;
            if verified.is_none() {
                findings.weigh(self.may_be_unverified(mount, exec_control)?)?;
            }
            let filled = matches!(mount.kind, MountKind::Bind | MountKind::Filled);
            let ours = filled && verified.is_none() && exec_control == ExecControl::LaunchOnly;
            decisions.push(if ours && findings.mode() == Enforcement::Enforce {
                MountDecision::NoExec
            } else {
                MountDecision::Keep
            });
            volumes.push(verified);
        }
        Ok((decisions, volumes))
    }

    fn may_be_unverified(
        &self,
        mount: &MountRequest,
        exec_control: ExecControl,
    ) -> Result<std::result::Result<(), Refusal>> {
        let destination = plain(&mount.destination);
        let source_path = mount.source.clone().unwrap_or_else(|| PathBuf::from("none"));
        let covered = self.resolve(&destination)?;
        if let Some(covered) = &covered
            && self.holds_code(covered)?
        {
            return Ok(Err(Refusal::MountHidesCode { destination, source_path }));
        }
        let covered = covered.unwrap_or_else(|| destination.clone());
        Ok(match &self.program {
            Some((asked, resolved))
                if exec_control == ExecControl::LaunchOnly
                    && (asked.starts_with(&destination) || resolved.starts_with(&covered)) =>
            {
                let program = asked.clone();
                Err(Refusal::ProgramUnverified { program, destination, source_path })
            }
            _ => Ok(()),
        })
    }

    /// Whether there is code of the image at this place.
    fn holds_code(&self, path: &Path) -> Result<bool> {
        let Some(fd) = self.open(path, OFlags::PATH)? else { return Ok(false) };
        let mode = rustix::fs::fstat(&fd).context(|| path.display().to_string())?.st_mode;
        code::is_at(path, mode, || self.is_empty(path))
    }

    /// Where a path of the container leads, if the image has it.
    fn resolve(&self, path: &Path) -> Result<Option<PathBuf>> {
        let Some(fd) = self.open(path, OFlags::PATH)? else { return Ok(None) };
        // the mount is attached nowhere, so the kernel names its files from its root
        let resolved = std::fs::read_link(self.proc.path_of(fd.as_fd()))
            .context(|| path.display().to_string())?;
        if resolved.is_absolute() {
            return Ok(Some(resolved));
        }
        let (path, found) = (path.display(), resolved.display());
        Err(Error::system(format!("{path}: leads to {found}, expected an absolute path")))
    }

    fn is_empty(&self, path: &Path) -> Result<bool> {
        let Some(fd) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)? else {
            return Ok(true);
        };
        for entry in Dir::read_from(&fd).context(|| path.display().to_string())? {
            let entry = entry.context(|| path.display().to_string())?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `None` where the image has nothing.
    fn open(&self, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(self.root, path, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok(Some(fd)),
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                // a rename anywhere raced with "..": the kernel asks to try again
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| path.display().to_string()),
            }
        }
    }
}

/// The places where the program is looked for, as the container's first process does: one with a slash, and directories
/// of PATH that are no absolute paths, from the working directory.
fn programs(args: &[String], env: &[String], cwd: &Path) -> Vec<PathBuf> {
    let Some(program) = args.first() else { return Vec::new() };
    if program.contains('/') {
        return vec![plain(&cwd.join(program))];
    }
    // the last of several counts
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    let directories = path.unwrap_or_default().split(':');
    directories.map(|directory| plain(&cwd.join(directory).join(program))).collect()
}

/// The path without `.`, `..` and doubled slashes, as far as its text tells.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Access;
    use crate::gate::world::{World, privately};

    #[test]
    fn a_program_is_looked_for_as_execvpe_does() {
        let text = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let env = text(&["A=b", "PATH=/opt", "PATH=/usr/bin::relative:/bin/../sbin"]);
        let path = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        let cwd = Path::new("/data/d");
        let found = |args: &[&str], env: &[String]| programs(&text(args), env, cwd);
        assert_eq!(found(&["/a//b/../c", "x"], &env), path(&["/a/c"]));
        let everywhere = ["/usr/bin/app", "/data/d/app", "/data/d/relative/app", "/sbin/app"];
        assert_eq!(found(&["app"], &env), path(&everywhere));
        assert_eq!(found(&["./evil"], &env), path(&["/data/d/evil"]));
        assert_eq!(found(&["../bin/evil"], &[]), path(&["/data/bin/evil"]));
        assert_eq!(found(&["app"], &[]), path(&["/data/d/app"]));
        assert_eq!(found(&[], &env), path(&[]));
    }

    /// What the kernel's exec control leaves to us, and what we leave to it.
    #[test]
    fn a_program_from_a_bind_is_the_kernels_business_where_it_controls_execution() {
        privately(|dir| {
            let world = World::new(dir);
            let tree = dir.join("a.tree");
            let proc = Procfs::open().unwrap();
            let root = std::fs::File::open(&tree).unwrap();
            let program = Some(("/sbin/tini".into(), "/sbin/tini".into()));
            let image = Image { proc: &proc, root: root.as_fd(), program };
            let mount = |destination: &str| MountRequest {
                destination: destination.into(),
                source: Some(world.dir.join("b.tree")),
                kind: MountKind::Bind,
                access: Access::ReadWrite,
            };
            let judged = |destination: &str, exec_control| {
                image.may_be_unverified(&mount(destination), exec_control).unwrap()
            };
            let (ipe, launch_only) = (ExecControl::Ipe, ExecControl::LaunchOnly);
            for destination in ["/sbin/tini", "/sbin"] {
                assert_eq!(judged(destination, ipe), Ok(()));
                let refused = judged(destination, launch_only);
                assert!(matches!(refused, Err(Refusal::ProgramUnverified { .. })), "{refused:?}");
            }
            assert_eq!(judged("/sbin/other", launch_only), Ok(()));
        });
    }
}
