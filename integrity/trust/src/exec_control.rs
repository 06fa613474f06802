//! Who controls execution on this node, read from the kernel itself.
//!
//! The answer is `ipe` only if all of this holds, else `launch-only` with the reason:
//! `/sys/kernel/security` is securityfs (by its magic number, not by its name) and has `ipe`,
//! `ipe/enforce` is 1, exactly one of `ipe/policies/*` is active, its text parses, and it denies
//! EXECUTE to everything unverified, be it by a rule or by default
//! ([`Policy::unverified_execute`]), and the kernel was started with
//! `proc_mem.force_override=never`, without which a process may write over its own signed code.
//!
//! Everything is read below one directory descriptor, without links and mount points: a file
//! bound over `enforce` is not asked. Nothing is mounted here; a node without securityfs is
//! `launch-only`.
//!
//! Source: Linux `security/ipe/fs.c` and `policy_fs.c` (`enforce` and `active` read as one digit).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hallmark_sys::procfs::{Procfs, file_system_magic};
use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::ipe::{ParseError, Pins, PinsError, Policy};
use crate::levels::ExecControl;
use crate::proc_mem;

const SECURITYFS: &str = "/sys/kernel/security";
/// `SECURITYFS_MAGIC` of Linux include/uapi/linux/magic.h.
const SECURITYFS_MAGIC: u64 = 0x7363_6673;
/// More than the kernel accepts (`memdup_user` ends at 4 MiB).
const LIMIT: u64 = 8 << 20;

/// The policy that the kernel has active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivePolicy {
    /// What its text means.
    pub policy: Policy,
    /// What its comment lines pin.
    pub pins: Pins,
}

/// What the kernel says of its own enforcement.
#[derive(Debug)]
pub struct Kernel {
    active: Option<ActivePolicy>,
    weakness: Option<LaunchOnly>,
}

impl Kernel {
    /// What its command line adds.
    fn started_with(mut self, command_line: hallmark_sys::Result<Vec<u8>>) -> Self {
        let writable = || match command_line.map(|line| proc_mem::force_override(&line)) {
            Ok(Some("never")) => None,
            Ok(found) => Some(LaunchOnly::CodeWritable(found)),
            Err(error) => Some(LaunchOnly::NoCommandLine(error)),
        };
        self.weakness = self.weakness.or_else(writable);
        self
    }

    /// What this node has.
    pub fn exec_control(&self) -> ExecControl {
        match (&self.active, &self.weakness) {
            (Some(_), None) => ExecControl::Ipe,
            _ => ExecControl::LaunchOnly,
        }
    }

    /// Why nobody can say what the kernel enforces, though it has IPE, or may have: then nothing that only a pin of the
    /// active policy would forbid may count, and nothing is launched.
    pub fn doubt(&self) -> Option<&LaunchOnly> {
        self.weakness.as_ref().filter(|weakness| self.active.is_none() && weakness.is_doubt())
    }

    /// Why the node has no better exec control, if it has none.
    pub fn weakness(&self) -> Option<&LaunchOnly> {
        self.weakness.as_ref()
    }

    /// The active policy, also when it is not enforced or lets unverified code run.
    pub fn active(&self) -> Option<&ActivePolicy> {
        self.active.as_ref()
    }

    /// What the active policy pins; nothing without one.
    pub fn pins(&self) -> Pins {
        self.active.as_ref().map(|active| active.pins).unwrap_or_default()
    }

    /// Gives the active policy away.
    pub fn into_active(self) -> Option<ActivePolicy> {
        self.active
    }
}

/// Why a node is `launch-only`.
#[derive(Debug, thiserror::Error)]
pub enum LaunchOnly {
    /// IPE only logs.
    #[error("IPE is permissive: ipe/enforce is \"{0}\", expected 1")]
    Permissive(String),
    /// The policy lets code run that nobody verified.
    #[error("policy {name} lets unverified code run: \"{found}\", expected DENY")]
    ExecuteAllowed {
        /// The policy's name.
        name: String,
        /// The rule or default that allows it.
        found: String,
    },
    /// No policy is active, so everything is allowed.
    #[error("IPE has no active policy")]
    NoActivePolicy,
    /// A process may write over signed code through its own `mem` file.
    #[error(
        "code can be written over through /proc/self/mem: proc_mem.force_override is {}, expected never on the kernel command line",
        .0.unwrap_or("not given")
    )]
    CodeWritable(Option<&'static str>),
    /// The kernel was built or started without IPE.
    #[error("the kernel has no IPE: no ipe directory in securityfs")]
    NoIpe,
    /// The kernel's command line could not be read.
    #[error("the kernel's command line")]
    NoCommandLine(#[source] hallmark_sys::Error),
    /// There is no securityfs where it belongs.
    #[error("{SECURITYFS} is not securityfs: file system type is {0:#x}")]
    NotSecurityfs(u64),
    /// The active policy's pins are in doubt.
    #[error("policy {name}: {source}")]
    Pins {
        /// The policy's name.
        name: String,
        /// The pin.
        source: PinsError,
    },
    /// More than one policy says that it is active.
    #[error("policies {0} and {1} are both active")]
    SeveralActive(String, String),
    /// The active policy is none that we can read, so we cannot tell what the kernel allows.
    #[error("policy {name}: {source}")]
    Unknown {
        /// The policy's name.
        name: String,
        /// What we cannot read.
        source: ParseError,
    },
    /// Something could not be opened or read.
    #[error("{SECURITYFS}/{name}: {source}")]
    Unreadable {
        /// What, below securityfs.
        name: String,
        /// The answer.
        source: std::io::Error,
    },
}

impl LaunchOnly {
    /// Whether IPE may be there all the same.
    fn is_doubt(&self) -> bool {
        /// `SYSFS_MAGIC` of Linux include/uapi/linux/magic.h: securityfs is just not mounted.
        const SYSFS_MAGIC: u64 = 0x6265_6572;
        match self {
            Self::NoActivePolicy
            | Self::NoIpe
            | Self::Permissive(_)
            | Self::ExecuteAllowed { .. }
            | Self::CodeWritable(_)
            | Self::NoCommandLine(_) => false,
            Self::NotSecurityfs(found) => *found != SYSFS_MAGIC,
            Self::Unreadable { name, source } => {
                !(name.is_empty() && source.kind() == std::io::ErrorKind::NotFound)
            }
            Self::Pins { .. } | Self::SeveralActive(..) | Self::Unknown { .. } => true,
        }
    }
}

/// Asks the kernel.
pub fn read() -> Kernel {
    match open_ipe().and_then(|ipe| examine(ipe.as_fd())) {
        Ok(kernel) => kernel.started_with(Procfs::open().and_then(|proc| proc.read("cmdline"))),
        Err(weakness) => Kernel { active: None, weakness: Some(weakness) },
    }
}

/// The `ipe` directory of a verified securityfs.
fn open_ipe() -> Result<OwnedFd, LaunchOnly> {
    let unreadable =
        |name: &str, e: Errno| LaunchOnly::Unreadable { name: name.to_owned(), source: e.into() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root =
        rustix::fs::openat2(CWD, SECURITYFS, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
            .map_err(|e| unreadable("", e))?;
    let magic = file_system_magic(root.as_fd()).map_err(|e| unreadable("", e))?;
    if magic != SECURITYFS_MAGIC {
        return Err(LaunchOnly::NotSecurityfs(magic));
    }
    below(root.as_fd(), "ipe", flags).map_err(|e| match e {
        Errno::NOENT => LaunchOnly::NoIpe,
        e => unreadable("ipe", e),
    })
}

/// What a directory laid out as IPE's says.
pub(crate) fn examine(ipe: BorrowedFd<'_>) -> Result<Kernel, LaunchOnly> {
    let Some(name) = active_name(ipe)? else {
        return Err(LaunchOnly::NoActivePolicy);
    };
    let text = contents(ipe, &format!("policies/{name}/policy"))?;
    let policy = Policy::parse(&text)
        .map_err(|source| LaunchOnly::Unknown { name: name.clone(), source })?;
    let pins =
        Pins::parse(&text).map_err(|source| LaunchOnly::Pins { name: name.clone(), source })?;
    let enforce = digit(&contents(ipe, "enforce")?);
    let weakness = if enforce != "1" {
        Some(LaunchOnly::Permissive(enforce))
    } else {
        let allowed = policy.unverified_execute().map(|decision| decision.to_string());
        allowed.map(|found| LaunchOnly::ExecuteAllowed { name, found })
    };
    Ok(Kernel { active: Some(ActivePolicy { policy, pins }), weakness })
}

fn active_name(ipe: BorrowedFd<'_>) -> Result<Option<String>, LaunchOnly> {
    let unreadable =
        |e: Errno| LaunchOnly::Unreadable { name: "ipe/policies".to_owned(), source: e.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let policies = below(ipe, "policies", flags).map_err(unreadable)?;
    let mut found: Option<String> = None;
    for entry in Dir::read_from(&policies).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        if name == "." || name == ".." {
            continue;
        }
        if digit(&contents(ipe, &format!("policies/{name}/active"))?) != "1" {
            continue;
        }
        if let Some(first) = found.replace(name.clone()) {
            return Err(LaunchOnly::SeveralActive(first, name));
        }
    }
    Ok(found)
}

fn digit(contents: &[u8]) -> String {
    String::from_utf8_lossy(contents).trim_end().to_owned()
}

fn contents(ipe: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, LaunchOnly> {
    let unreadable =
        |source: std::io::Error| LaunchOnly::Unreadable { name: format!("ipe/{name}"), source };
    let fd =
        below(ipe, name, OFlags::RDONLY | OFlags::CLOEXEC).map_err(|e| unreadable(e.into()))?;
    let mut bytes = Vec::new();
    File::from(fd).take(LIMIT).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn below(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const DENY: &str = "policy_name=p policy_version=0.0.1\nDEFAULT action=ALLOW\n\
                        DEFAULT op=EXECUTE action=DENY\n";

    fn policy(root: &Path, name: &str, active: &str, text: &str) {
        let dir = root.join("policies").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("active"), active).unwrap();
        fs::write(dir.join("policy"), text).unwrap();
    }

    fn tree(enforce: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("policies")).unwrap();
        fs::write(root.path().join("enforce"), enforce).unwrap();
        root
    }

    fn look(root: &Path) -> Result<Kernel, LaunchOnly> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty()).unwrap();
        examine(fd.as_fd())
    }

    #[test]
    fn ipe_counts_when_it_enforces_a_policy_that_denies() {
        let root = tree("1");
        policy(root.path(), "old", "0", "not even a policy");
        policy(root.path(), "p", "1", DENY);
        let kernel = look(root.path()).unwrap();
        assert_eq!(kernel.exec_control(), ExecControl::Ipe);
        assert!(kernel.weakness().is_none());
        assert_eq!(kernel.into_active().unwrap().policy.name.as_str(), "p");

        fs::write(root.path().join("enforce"), "0").unwrap();
        let permissive = look(root.path()).unwrap();
        assert_eq!(permissive.exec_control(), ExecControl::LaunchOnly);
        assert!(matches!(permissive.weakness(), Some(LaunchOnly::Permissive(_))));
        assert!(permissive.active().is_some());
    }

    #[test]
    fn a_kernel_that_lets_code_be_written_over_is_launch_only() {
        let root = tree("1");
        policy(root.path(), "p", "1", DENY);
        let started = |line: &str| look(root.path()).unwrap().started_with(Ok(line.into()));
        let good = started("quiet proc_mem.force_override=never");
        assert_eq!(good.exec_control(), ExecControl::Ipe);
        for (line, found) in [("quiet", "not given"), ("proc_mem.force_override=ptrace", "ptrace")]
        {
            let kernel = started(line);
            assert_eq!(kernel.exec_control(), ExecControl::LaunchOnly);
            let weakness = kernel.weakness().unwrap().to_string();
            assert!(weakness.contains(found) && weakness.contains("expected never"), "{weakness}");
        }
        let unread = Procfs::open().unwrap().read("no such file").unwrap_err();
        let kernel = look(root.path()).unwrap().started_with(Err(unread));
        assert!(matches!(kernel.weakness(), Some(LaunchOnly::NoCommandLine(_))));
        // what is worse is said first
        fs::write(root.path().join("enforce"), "0").unwrap();
        assert!(matches!(started("").weakness(), Some(LaunchOnly::Permissive(_))));
    }

    #[test]
    fn everything_else_is_launch_only() {
        let global_deny = "policy_name=p policy_version=0.0.1\nDEFAULT action=DENY\n";
        let allow = format!("{global_deny}DEFAULT op=EXECUTE action=ALLOW\n");
        let root = tree("1");
        assert!(matches!(look(root.path()), Err(LaunchOnly::NoActivePolicy)));
        policy(root.path(), "p", "0", DENY);
        assert!(matches!(look(root.path()), Err(LaunchOnly::NoActivePolicy)));
        policy(root.path(), "p", "1", global_deny);
        assert_eq!(look(root.path()).unwrap().exec_control(), ExecControl::Ipe);
        for rule in [
            "action=ALLOW",
            "dmverity_signature=FALSE action=ALLOW",
            "boot_verified=TRUE action=ALLOW",
        ] {
            policy(root.path(), "p", "1", &format!("{DENY}op=EXECUTE {rule}\n"));
            let weakness = look(root.path()).unwrap().weakness().unwrap().to_string();
            assert!(weakness.contains(rule), "{weakness}");
        }
        policy(root.path(), "p", "1", &allow);
        let kernel = look(root.path()).unwrap();
        assert_eq!(kernel.exec_control(), ExecControl::LaunchOnly);
        assert!(matches!(kernel.weakness(), Some(LaunchOnly::ExecuteAllowed { .. })));
        policy(root.path(), "p", "1", "op=EXECUTE");
        assert!(matches!(look(root.path()), Err(LaunchOnly::Unknown { .. })));
        policy(root.path(), "p", "1", &format!("# hallmark-keys sha256:0\n{DENY}"));
        assert!(matches!(look(root.path()), Err(LaunchOnly::Pins { .. })));
        policy(root.path(), "p", "1", DENY);
        policy(root.path(), "q", "1", DENY);
        assert!(matches!(look(root.path()), Err(LaunchOnly::SeveralActive(..))));
        fs::remove_dir_all(root.path().join("policies/q")).unwrap();
        assert_eq!(look(root.path()).unwrap().exec_control(), ExecControl::Ipe);
        fs::remove_file(root.path().join("enforce")).unwrap();
        assert!(matches!(look(root.path()), Err(LaunchOnly::Unreadable { .. })));
    }

    #[test]
    fn what_cannot_be_read_is_in_doubt_and_what_is_absent_is_not() {
        let root = tree("1");
        policy(root.path(), "p", "1", "policy_name=p policy_version=0.0.1\nnew grammar\n");
        let doubtful = |result: Result<Kernel, LaunchOnly>| match result {
            Ok(kernel) => kernel.doubt().is_some(),
            Err(weakness) => Kernel { active: None, weakness: Some(weakness) }.doubt().is_some(),
        };
        assert!(doubtful(look(root.path())));
        policy(root.path(), "p", "1", DENY);
        assert!(!doubtful(look(root.path())));
        fs::write(root.path().join("enforce"), "0").unwrap();
        assert!(!doubtful(look(root.path())));
        policy(root.path(), "p", "0", DENY);
        assert!(!doubtful(look(root.path())));
        assert!(doubtful(Err(LaunchOnly::NotSecurityfs(0x0102_1994))));
        for absent in [LaunchOnly::NoIpe, LaunchOnly::NotSecurityfs(0x6265_6572)] {
            assert!(!doubtful(Err(absent)));
        }
        let unreadable = |kind: std::io::ErrorKind| LaunchOnly::Unreadable {
            name: String::new(),
            source: kind.into(),
        };
        assert!(doubtful(Err(unreadable(std::io::ErrorKind::PermissionDenied))));
        assert!(!doubtful(Err(unreadable(std::io::ErrorKind::NotFound))));
    }

    #[test]
    fn a_link_in_the_tree_is_not_followed() {
        let root = tree("1");
        policy(root.path(), "p", "1", DENY);
        fs::write(root.path().join("elsewhere"), "1").unwrap();
        fs::remove_file(root.path().join("enforce")).unwrap();
        std::os::unix::fs::symlink("elsewhere", root.path().join("enforce")).unwrap();
        let error = look(root.path()).unwrap_err();
        assert!(error.to_string().contains("ipe/enforce"), "{error}");
    }

    #[test]
    fn this_machine_is_asked_and_answers() {
        let kernel = read();
        let has_ipe = fs::read_dir("/sys/kernel/security/ipe").is_ok();
        if has_ipe {
            assert!(!matches!(kernel.weakness(), Some(LaunchOnly::NoIpe)));
        } else {
            assert_eq!(kernel.exec_control(), ExecControl::LaunchOnly);
            assert!(kernel.weakness().is_some());
        }
    }
}
