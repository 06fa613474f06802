//! The mounts of the configuration, in their order, each made detached, given its attributes, and attached by
//! descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hallmark_sys::mount::{self, Attributes, Change, Extent};
use rustix::fs::{Dir, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::attach::{self, Bind, Content, Source};
use super::root::{PointKind, Root};
use super::{Init, bind, cgroups};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gate::code;
use crate::spec::{CopyUp, Covers, MountKind, MountPlan};
use hallmark_sys::procfs;

/// The only files of /proc that something may be mounted on: what lxcfs serves, and two settings.
const COVERABLE: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Makes all mounts; returns those that have to become read-only once everything is in them.
pub(super) fn mount_all(init: &mut Init<'_>, root: &Root) -> Result<Vec<OwnedFd>> {
    let plan = init.plan;
    let label = plan.mount_label.as_deref();
    let mut late = Vec::new();
    let binds = std::mem::take(&mut init.binds);
    for (mount, source) in plan.mounts.iter().zip(binds) {
        let made = one(mount, source, root, init, label).context(|| {
            let source =
                mount.source.as_deref().map_or_else(String::new, |s| s.display().to_string());
            format!("error mounting {source:?} to rootfs at {:?}", mount.destination)
        })?;
        if let Some(made) = made
            && is_late(mount)
        {
            late.push(made);
        }
    }
    Ok(late)
}

/// Files have yet to be made in /dev, and a tmpfs has yet to get its content.
fn is_late(mount: &MountPlan) -> bool {
    mount.set.contains(Attributes::READ_ONLY)
        && (matches!(mount.kind, MountKind::Tmpfs(_)) || mount.destination == "/dev")
}

fn one(
    mount: &MountPlan,
    source: Option<Source>,
    root: &Root,
    init: &Init<'_>,
    label: Option<&str>,
) -> Result<Option<OwnedFd>> {
    let made = match (&mount.kind, source) {
        (MountKind::Bind(_), Some(Source::Host(bind))) => {
            bind::attach(mount, bind, root, init.plan)?
        }
        (MountKind::Bind(_), Some(Source::Container)) => {
            let path = mount.inside.as_deref().unwrap_or("/");
            bind::attach(mount, Bind::inside(mount, path, root, init)?, root, init.plan)?
        }
        (MountKind::Bind(_), None) => return Err(Error::system("bind mount without a source")),
        (MountKind::Cgroup, _) => {
            let shown = init.cgroups.as_ref();
            let shown = shown.ok_or_else(|| Error::system("cgroup mount without cgroups"))?;
            return cgroups::mount(mount, shown, root).map(|()| None);
        }
        (MountKind::Proc, _) => virtual_one(mount, "proc", root)?,
        (MountKind::Sysfs, _) => virtual_one(mount, "sysfs", root)?,
        (MountKind::Mqueue, _) => {
            let made = file_system(mount, "mqueue", root, None)?;
            if let Some(label) = label {
                // the file system takes no context= option, and the mount's own descriptor no attribute
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let root = rustix::fs::openat(&made, ".", flags, Mode::empty())
                    .context(|| "open mqueue")?;
                rustix::fs::fsetxattr(
                    &root,
                    "security.selinux",
                    label.as_bytes(),
                    XattrFlags::empty(),
                )
                .context(|| format!("label {label:?}"))?;
            }
            made
        }
        (MountKind::Tmpfs(copy_up), _) => tmpfs(mount, *copy_up, root, label)?,
        (MountKind::Other(name), _) => file_system(mount, name, root, label)?,
    };
    finish(mount, made.as_fd())?;
    Ok(Some(made))
}

/// Propagation and recursive attributes, on the attached mount: in this order, so that what the attributes are set on
/// is all that will ever be there where nothing is received any more.
pub(super) fn finish(mount: &MountPlan, made: BorrowedFd<'_>) -> Result<()> {
    for (propagation, extent) in &mount.propagation {
        let change = Change { propagation: Some(*propagation), ..Change::default() };
        mount::set_attributes(made, *extent, &change)?;
    }
    let tree = Change {
        set: mount.tree_set,
        clear: atime_aware(mount.tree_set, mount.tree_clear),
        ..Change::default()
    };
    if !tree.is_empty() {
        mount::set_attributes(made, Extent::Tree, &tree)?;
    }
    Ok(())
}

/// The kernel wants the whole access time field cleared when a part of it changes.
fn atime_aware(set: Attributes, clear: Attributes) -> Attributes {
    let touched = set.union(clear);
    if touched.contains(Attributes::NOATIME) || touched.contains(Attributes::STRICTATIME) {
        clear.union(Attributes::ATIME_MODE)
    } else {
        clear
    }
}

/// proc and sysfs: never through a link, and proc nowhere but on /proc or outside of it.
fn virtual_one(mount: &MountPlan, name: &str, root: &Root) -> Result<OwnedFd> {
    let target = root.ordinary_directory(&mount.destination, name)?;
    let content = if name == "proc" { Content::Procfs } else { Content::Other };
    guard(mount, target.as_fd(), content, root)?;
    let made = detached(mount, name, None, &[])?;
    attach::move_to(made.as_fd(), target.as_fd())?;
    Ok(made)
}

pub(super) fn file_system(
    mount: &MountPlan,
    name: &str,
    root: &Root,
    label: Option<&str>,
) -> Result<OwnedFd> {
    let target = root.mount_point(&mount.destination, PointKind::Directory)?;
    guard(mount, target.as_fd(), Content::Other, root)?;
    let made = detached(mount, name, label, &[])?;
    attach::move_to(made.as_fd(), target.as_fd())?;
    Ok(made)
}

/// A tmpfs has the mode of the directory it covers, unless it says otherwise.
///
/// That directory is looked up once: what is copied is what is covered, whoever may rename things in a volume that the
/// path leads through.
fn tmpfs(mount: &MountPlan, copy_up: CopyUp, root: &Root, label: Option<&str>) -> Result<OwnedFd> {
    let existing = root.existing_mount_point(&mount.destination)?;
    let mut first = Vec::new();
    let target = match &existing {
        Some(covered) => {
            let mode = rustix::fs::fstat(covered).context(|| "fstat")?.st_mode & 0o7777;
            first.push(("mode", format!("{mode:04o}")));
            covered
        }
        None => &root.mount_point(&mount.destination, PointKind::Directory)?,
    };
    guard(mount, target.as_fd(), Content::Other, root)?;
    let made = detached(mount, "tmpfs", label, &first)?;
    if let (CopyUp::Yes, Some(covered)) = (copy_up, &existing) {
        let inside = |directory: &OwnedFd| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(directory, ".", flags, Mode::empty()).context(|| "tmpcopyup")
        };
        let (from, to) = (inside(covered)?, inside(&made)?);
        super::copy_up::directory(from.as_fd(), to.as_fd()).context(|| "tmpcopyup")?;
    }
    attach::move_to(made.as_fd(), target.as_fd())?;
    Ok(made)
}

/// A new file system with the mount's options, attached nowhere yet.
fn detached(
    mount: &MountPlan,
    name: &str,
    label: Option<&str>,
    first: &[(&str, String)],
) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)
        .context(|| format!("fsopen({name})"))?;
    let source = mount.source.as_deref().unwrap_or_else(|| std::path::Path::new(name));
    // a virtual file system need not know the word
    match rustix::mount::fsconfig_set_string(&context, "source", source) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(configured(&context, errno, "source")),
    }
    for (key, value) in first {
        set(&context, key, Some(value))?;
    }
    for (key, value) in &mount.data {
        set(&context, key, value.as_deref())?;
    }
    for flag in &mount.superblock {
        set(&context, flag.name(), None)?;
    }
    // a device-backed file system must be told before it writes; a virtual one is shared, and its mount is enough
    if matches!(mount.kind, MountKind::Other(_))
        && mount.set.contains(Attributes::READ_ONLY)
        && mount.destination != "/dev"
    {
        set(&context, "ro", None)?;
    }
    if let Some(label) = label {
        set(&context, "context", Some(label))?;
    }
    rustix::mount::fsconfig_create(&context)
        .map_err(|errno| configured(&context, errno, "CREATE"))?;
    let made =
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, new_attributes(mount));
    made.map_err(|errno| configured(&context, errno, "fsmount"))
}

fn new_attributes(mount: &MountPlan) -> MountAttrFlags {
    let set = mount.set.union(mount.access_time.unwrap_or(Attributes::none()));
    let set = if is_late(mount) { set.without(Attributes::READ_ONLY) } else { set };
    // all attributes are in the lower half
    MountAttrFlags::from_bits_retain(u32::try_from(set.bits()).unwrap_or(0))
}

fn set(context: &OwnedFd, key: &str, value: Option<&str>) -> Result<()> {
    let done = match value {
        Some(value) => rustix::mount::fsconfig_set_string(context, key, value),
        None => rustix::mount::fsconfig_set_flag(context, key),
    };
    done.map_err(|errno| {
        let option = value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}"));
        configured(context, errno, &option)
    })
}

/// The kernel's own words about a refused option, which it leaves to be read from the context.
fn configured(context: &OwnedFd, errno: Errno, what: &str) -> Error {
    let mut buffer = [0; 1024];
    let said = match rustix::io::read(context, &mut buffer) {
        Ok(length) => {
            String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim().to_owned()
        }
        Err(_silent) => String::new(),
    };
    let error = Error::from(errno);
    if said.is_empty() { error.within(what) } else { error.within(said).within(what) }
}

/// Asks of the place where a mount is to be attached, whatever its name is, whether it may be covered.
pub(super) fn guard(
    mount: &MountPlan,
    target: BorrowedFd<'_>,
    content: Content,
    root: &Root,
) -> Result<()> {
    guard_proc(mount, target, content)?;
    match mount.covers {
        Covers::Anything => Ok(()),
        Covers::Data => guard_code(mount, target, root),
    }
}

/// The gate judged the destination by the links of the image. A link that an earlier mount brought along must not lead
/// over the image's code either.
fn guard_code(mount: &MountPlan, target: BorrowedFd<'_>, root: &Root) -> Result<()> {
    // what is not on the root's own mount is no code of the image
    let Some(path) = root.path_of(target)? else { return Ok(()) };
    let mode = rustix::fs::fstat(target).context(|| path.display().to_string())?.st_mode;
    if !code::is_at(&path, mode, || is_empty(target))? {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Refused,
        format!(
            "hallmark: refused: mount at {} leads to {} and hides code of the image, expected a verified volume \
             there; to run it: mount it elsewhere, or build it into the image and seal that",
            mount.destination,
            path.display()
        ),
    ))
}

fn is_empty(directory: BorrowedFd<'_>) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, ".", flags, Mode::empty()).context(|| "open .")?;
    for entry in Dir::read_from(&fd).context(|| "readdir")? {
        let entry = entry.context(|| "readdir")?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Nothing may cover /proc but a procfs, and nothing inside it but a few files (CVE-2019-16884).
///
/// The file system of the target itself is asked, so that a link into /proc is no way around.
fn guard_proc(mount: &MountPlan, target: BorrowedFd<'_>, content: Content) -> Result<()> {
    let destination = mount.destination.as_str();
    if destination == "/proc" {
        return if content == Content::Procfs {
            Ok(())
        } else {
            Err(Error::spec(format!(
                "{destination:?} cannot be mounted because it is not of type proc"
            )))
        };
    }
    let magic = rustix::fs::fstatfs(target).context(|| "fstatfs")?.f_type;
    let inside = destination.starts_with("/proc/") || u64::try_from(magic) == Ok(procfs::MAGIC);
    if inside && !COVERABLE.contains(&destination) {
        return Err(Error::spec(format!(
            "{destination:?} cannot be mounted because it is inside /proc"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::minimal;
    use serde_json::json;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_of_an_earlier_mount_does_not_lead_over_code() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("root");
        std::fs::create_dir_all(image.join("usr/bin")).unwrap();
        std::fs::write(image.join("usr/bin/app"), "").unwrap();
        // what an earlier mount at /data brought along
        std::fs::create_dir(image.join("data")).unwrap();
        symlink("/usr/bin", image.join("data/programs")).unwrap();
        symlink("../usr", image.join("data/above")).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = Root::new(rustix::fs::open(&image, flags, Mode::empty()).unwrap());
        let guarded = |destination: &str, covers| {
            let mount = json!({"destination": destination, "source": "/s", "type": "bind"});
            let mut plan = minimal(|c| c["mounts"] = json!([mount])).unwrap();
            plan.mounts[0].covers = covers;
            let target = root.mount_point(destination, PointKind::Directory).unwrap();
            guard(&plan.mounts[0], target.as_fd(), Content::Other, &root)
        };
        for evil in ["/data/programs", "/data/above", "/usr/bin"] {
            let error = guarded(evil, Covers::Data).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains("hides code of the image"), "{error}");
            guarded(evil, Covers::Anything).unwrap();
        }
        for good in ["/data", "/data/new", "/usr/bin/new"] {
            guarded(good, Covers::Data).unwrap();
        }
    }
}
