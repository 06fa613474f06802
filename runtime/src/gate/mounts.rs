//! What the specification brings along besides the root file system: mounts, hooks, namespaces.
//!
//! A mount is **verified** if its source is itself a layer that the gate permits (an image volume); it may then hold
//! code. Any other mount must not take the place of the image's code. Where the kernel controls execution it decides
//! about the rest: a host's `tini` on a signed volume may be bound in and started. Where it does not, an unverified
//! bind, and a file system that somebody filled, is made `noexec` and must not hold the program that is started.
//!
//! Code is what lies in the directories of [`CODE`], what is executable, and the program itself. Data of an image
//! may be covered: containers live from configuration and volumes mounted over it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use hallmark_trust::config::GateConfig;
use hallmark_trust::procfs::Procfs;
use hallmark_trust::{Enforcement, ExecControl};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::audit::Findings;
use super::refusal::Refusal;
use super::stack::{Judge, Lower};
use super::{MountDecision, MountKind, MountNamespace, MountRequest, Request};
use crate::error::{Context, Error, Result};

/// Directories that hold programs and libraries, wherever links lead to.
const CODE: [&str; 15] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/local/lib",
];

/// Hooks are root's own programs; a mount namespace must be the container's.
///
/// # Errors
/// Under enforce: the refusal.
pub(super) fn weigh_specification(
    findings: &mut Findings,
    gate: &GateConfig,
    request: &Request<'_>,
) -> Result<()> {
    let namespace = match &request.mount_namespace {
        MountNamespace::New => Ok(()),
        MountNamespace::Joined(path) => Err(Refusal::MountNamespaceJoined { found: path.clone() }),
        MountNamespace::Inherited => Err(Refusal::MountNamespaceMissing),
    };
    findings.weigh(namespace)?;
    for hook in request.hooks {
        let allowed = if gate.hooks.contains(hook) {
            Ok(())
        } else {
            Err(Refusal::Hook { found: hook.clone(), expected: gate.hooks.clone() })
        };
        findings.weigh(allowed)?;
    }
    Ok(())
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
        let candidates = programs(request.args, request.env);
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
            let verified = self.verified(judge, mount)?;
            let exec_control = findings.case.exec_control;
            if verified.is_none() {
                findings.weigh(self.may_be_unverified(mount, exec_control)?)?;
            }
            decisions.push(match mount.kind {
                MountKind::Bind | MountKind::Filled
                    if verified.is_none()
                        && exec_control == ExecControl::LaunchOnly
                        && findings.mode() == Enforcement::Enforce =>
                {
                    MountDecision::NoExec
                }
                _ => MountDecision::Keep,
            });
            volumes.push(verified);
        }
        Ok((decisions, volumes))
    }

    /// The source, if it is a layer that may be launched by itself.
    fn verified(&self, judge: &Judge<'_>, mount: &MountRequest) -> Result<Option<OwnedFd>> {
        let (MountKind::Bind, Some(source)) = (mount.kind, &mount.source) else {
            return Ok(None);
        };
        let Ok(lower) = Lower::open(source) else { return Ok(None) };
        if !is_erofs(lower.fd.as_fd())? {
            return Ok(None);
        }
        let volume = [lower];
        let permitted = judge.judge(self.proc, &volume, &[], &[])?.result.is_ok();
        let [lower] = volume;
        Ok(permitted.then_some(lower.fd))
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
        let in_code = CODE.iter().any(|code| path.starts_with(code));
        Ok(match FileType::from_raw_mode(mode) {
            FileType::Directory => {
                let above = CODE.iter().any(|code| Path::new(code).starts_with(path));
                (in_code || above) && !self.is_empty(path)?
            }
            FileType::RegularFile => in_code || mode & 0o111 != 0,
            _ => false,
        })
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

/// The places where the program is looked for, as `execvpe` does.
fn programs(args: &[String], env: &[String]) -> Vec<PathBuf> {
    let Some(program) = args.first().map(Path::new) else { return Vec::new() };
    if program.is_absolute() {
        return vec![plain(program)];
    }
    // the last of several counts
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    let directories = path.unwrap_or_default().split(':').map(Path::new);
    let absolute = directories.filter(|directory| directory.is_absolute());
    absolute.map(|directory| plain(&directory.join(program))).collect()
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

fn is_erofs(fd: BorrowedFd<'_>) -> Result<bool> {
    const EROFS: u64 = 0xE0F5_E1E2;
    let statfs = rustix::fs::fstatfs(fd).context(|| "fstatfs")?;
    Ok(u64::try_from(statfs.f_type) == Ok(EROFS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::world::{World, privately};

    #[test]
    fn a_program_is_looked_for_as_execvpe_does() {
        let text = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let env = text(&["A=b", "PATH=/opt", "PATH=/usr/bin::relative:/bin/../sbin"]);
        let path = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(programs(&text(&["/a//b/../c", "x"]), &env), path(&["/a/c"]));
        assert_eq!(programs(&text(&["app"]), &env), path(&["/usr/bin/app", "/sbin/app"]));
        assert_eq!(programs(&text(&["app"]), &[]), path(&[]));
        assert_eq!(programs(&[], &env), path(&[]));
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
