//! Activation: a layer's image becomes a mount point that every snapshot on it shares.
//!
//! ```text
//! <layer>.erofs ─► loop, read-only ─► dm-verity, read-only ─► EROFS, read-only, nodev ─► <state>/l/<name>
//!                                  └── where the kernel has no device-mapper ──┘
//! ```
//! A device is made here, with verity as its first table, and its superblock is made here
//! (`FSCONFIG_CMD_CREATE_EXCL`): pages that were cached before the table was loaded would otherwise be served as
//! verified. The record in `<state>/devices` says so to the gate, which asks the kernel for the rest.
//! Devices are keyed by root hash and by whether the kernel checked a signature; one made without never serves for
//! one with.

use std::collections::{BTreeMap, HashSet};
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind as IoErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use hallmark_sys::dm::{self, Removal, VerityTable};
use hallmark_sys::loopdev::{self, LoopDevice};
use hallmark_sys::{Error as SysError, ErrorKind as SysErrorKind};
use hallmark_trust::config::LayerSignature;
use hallmark_trust::evidence::{ActivationRecord, DeviceKind, Signed};
use hallmark_verity::RootHash;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_create_exclusive, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    unmount,
};

use crate::error::{Error, Result};
use crate::layout::{self, Layout};
use crate::store::Layer;

/// Signatures tried for one layer: claims are anybody's, and each costs the kernel a verification.
const SIGNATURES_TRIED: usize = 8;

/// Names of mount points: six characters, so that 500 of them fit one page of mount options.
const NAMES: u64 = 36u64.pow(6);

/// The activated layers.
#[derive(Debug)]
pub(crate) struct Activations {
    layout: Layout,
    kind: DeviceKind,
    policy: LayerSignature,
    /// By the record's file name, which is root hash and signedness.
    active: BTreeMap<String, ActivationRecord>,
    /// The number of the next mount point: begun somewhere, so that a name does not soon mean another layer.
    next_name: u64,
}

impl Activations {
    /// Those that a former daemon left in order: see `reclaim`.
    pub(crate) fn adopt(
        layout: Layout,
        kind: DeviceKind,
        policy: LayerSignature,
        records: Vec<ActivationRecord>,
    ) -> Result<Self> {
        let active = records.into_iter().map(|record| (file_name(&record), record)).collect();
        let next_name = u64::from_ne_bytes(random()?);
        Ok(Self { layout, kind, policy, active, next_name })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.active.len()
    }

    /// Asks differently for signatures from now on; what is active stays as it is.
    pub(crate) fn set_policy(&mut self, policy: LayerSignature) {
        self.policy = policy;
    }

    /// The mount point of a layer, activated if it is not yet. `signatures` are claims of detached PKCS#7 over the
    /// root hash; the kernel decides about them.
    pub(crate) fn activate(&mut self, layer: &Layer, signatures: &[Vec<u8>]) -> Result<PathBuf> {
        let verdict = match (self.kind, self.policy) {
            (_, LayerSignature::Never) => None,
            (DeviceKind::Loop, LayerSignature::WhenPresent) => None,
            (DeviceKind::Loop, LayerSignature::Required) => {
                return Err(Error::LayerSignature { root_hash: layer.root_hash, source: None });
            }
            (DeviceKind::DmVerity, _) => match self.activate_signed(layer, signatures)? {
                Attempt::Active(lower) => return Ok(lower),
                Attempt::Refused(error) => error,
            },
        };
        if self.policy == LayerSignature::Required {
            return Err(Error::LayerSignature { root_hash: layer.root_hash, source: verdict });
        }
        match self.active(&layer.root_hash, Signed::No)? {
            Some(lower) => Ok(lower),
            None => self.make(layer, None),
        }
    }

    /// The mount point of an active layer. One that somebody took away by hand is taken down to the rest.
    fn active(&mut self, root_hash: &RootHash, signed: Signed) -> Result<Option<PathBuf>> {
        let name = ActivationRecord::file_name(root_hash, signed);
        let Some(record) = self.active.get(&name) else { return Ok(None) };
        if is_mounted(record) {
            return Ok(Some(record.lower.clone()));
        }
        tracing::warn!("layer {root_hash}: {} is not mounted any more", record.lower.display());
        deactivate(&self.layout.devices().join(&name), record)?;
        self.active.remove(&name);
        Ok(None)
    }

    fn activate_signed(&mut self, layer: &Layer, signatures: &[Vec<u8>]) -> Result<Attempt> {
        if let Some(lower) = self.active(&layer.root_hash, Signed::Yes)? {
            return Ok(Attempt::Active(lower));
        }
        let mut refused = None;
        for signature in signatures.iter().take(SIGNATURES_TRIED) {
            match self.make(layer, Some(signature)) {
                Err(Error::Sys(error)) if is_about_signature(&error) => {
                    let root_hash = layer.root_hash;
                    tracing::warn!(
                        "layer {root_hash}: the kernel refuses a claimed signature: {error}"
                    );
                    refused = Some(error);
                }
                made => return made.map(Attempt::Active),
            }
        }
        Ok(Attempt::Refused(refused))
    }

    /// Loop, verity, mount, record; all of it or, on error, nothing.
    fn make(&mut self, layer: &Layer, signature: Option<&[u8]>) -> Result<PathBuf> {
        let image = self.layout.layer(&layer.diff_id);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let image = rustix::fs::open(&image, flags, Mode::empty())
            .map_err(Error::errno(format!("open {}", image.display())))?;
        let backing = loopdev::attach_read_only(image.as_fd())?;
        let mut undo = Undo::default();
        let device = match self.kind {
            DeviceKind::DmVerity => verity(layer, &backing, signature, &mut undo)?,
            DeviceKind::Loop => Device::of_loop(&backing),
        };
        let lower = self.mount_point(&mut undo)?;
        mount(self.kind, &device, &lower)?;
        undo.mounted = true;
        let signed = if signature.is_some() { Signed::Yes } else { Signed::No };
        let record = device.record(self.kind, layer, signed, &lower);
        let name = file_name(&record);
        let bytes = serde_json::to_vec(&record)
            .map_err(|source| Error::Record { what: name.clone(), source })?;
        layout::write_file(&self.layout.devices(), &name, &bytes)?;
        undo.commit();
        tracing::info!(
            "layer {} is active at {}: {}",
            layer.root_hash,
            lower.display(),
            record.name
        );
        self.active.insert(name, record);
        Ok(lower)
    }

    fn mount_point(&mut self, undo: &mut Undo) -> Result<PathBuf> {
        loop {
            let lower = self.layout.lowers().join(short_name(self.next_name));
            self.next_name = self.next_name.wrapping_add(1);
            match DirBuilder::new().mode(0o700).create(&lower) {
                // in use since 36^6 names ago, or since before we started
                Err(error) if error.kind() == IoErrorKind::AlreadyExists => {}
                made => {
                    made.map_err(Error::io(format!("mkdir {}", lower.display())))?;
                    undo.directory = Some(lower.clone());
                    return Ok(lower);
                }
            }
        }
    }

    /// Deactivates every layer whose root hash is not in `used`. One that turns out to be busy stays, for the next
    /// time: what cannot be undone now must not spoil the removal that asked for it.
    pub(crate) fn deactivate_unused(&mut self, used: &HashSet<RootHash>) {
        let devices = self.layout.devices();
        self.active.retain(|name, record| {
            if used.contains(&record.root_hash) {
                return true;
            }
            match deactivate(&devices.join(name), record) {
                Ok(()) => {
                    tracing::info!("layer {} is no longer active", record.root_hash);
                    false
                }
                Err(error) => {
                    let error = crate::error::chain(&error);
                    tracing::warn!("layer {} stays active: {error}", record.root_hash);
                    true
                }
            }
        });
    }
}

/// What came of trying signatures.
#[derive(Debug)]
enum Attempt {
    /// The kernel took one.
    Active(PathBuf),
    /// There is none, or none that the kernel takes: its last answer.
    Refused(Option<SysError>),
}

/// The block device that a layer is mounted from.
#[derive(Debug)]
struct Device {
    name: String,
    uuid: String,
    major: u32,
    minor: u32,
}

impl Device {
    fn of_loop(backing: &LoopDevice) -> Self {
        let name = backing.path.file_name().map(|name| name.to_string_lossy().into_owned());
        Self {
            name: name.unwrap_or_default(),
            uuid: String::new(),
            major: backing.major,
            minor: backing.minor,
        }
    }

    fn record(
        self,
        kind: DeviceKind,
        layer: &Layer,
        signed: Signed,
        lower: &Path,
    ) -> ActivationRecord {
        ActivationRecord {
            schema_version: 1,
            root_hash: layer.root_hash,
            signed: signed == Signed::Yes,
            salt: layer.params.salt.clone(),
            data_blocks: layer.params.data_blocks,
            dev: format!("{}:{}", self.major, self.minor),
            name: self.name,
            uuid: self.uuid,
            lower: lower.to_owned(),
            kind,
        }
    }
}

/// The file name of a record, which says what the device is: root hash and signedness.
pub(crate) fn file_name(record: &ActivationRecord) -> String {
    let signed = if record.signed { Signed::Yes } else { Signed::No };
    ActivationRecord::file_name(&record.root_hash, signed)
}

/// Whether the kernel's refusal is about the signature: no key, rejected, not DER, unknown algorithm.
fn is_about_signature(error: &SysError) -> bool {
    error.kind() == SysErrorKind::KeyRejected
        || matches!(error.errno(), Some(Errno::BADMSG | Errno::NOPKG))
}

fn verity(
    layer: &Layer,
    backing: &LoopDevice,
    signature: Option<&[u8]>,
    undo: &mut Undo,
) -> Result<Device> {
    let letter = if signature.is_some() { Signed::Yes } else { Signed::No }.letter();
    let root_hash = layer.root_hash.to_hex();
    let start = root_hash.get(..16).unwrap_or_default();
    let name = format!("hallmark-{start}-{letter}-{}", random_hex::<4>()?);
    let uuid = format!("HALLMARK-{root_hash}-{letter}-{}", random_hex::<8>()?);
    let loop_device = (backing.major, backing.minor);
    let table = VerityTable {
        data: loop_device,
        hash: loop_device,
        hash_start_block: layer.params.hash_start_block(),
        data_blocks: layer.params.data_blocks.0,
        root_hash: layer.root_hash.as_bytes(),
        salt: layer.params.salt.as_bytes(),
        signature,
    };
    let made = dm::create_verity(&name, &uuid, &table)?;
    undo.device = Some(name.clone());
    Ok(Device { name, uuid, major: made.major, minor: made.minor })
}

fn random<const N: usize>() -> Result<[u8; N]> {
    const SOURCE: &str = "/dev/urandom";
    let mut random = [0; N];
    let read = File::open(SOURCE).and_then(|mut source| source.read_exact(&mut random));
    read.map_err(Error::io(format!("read {SOURCE}")))?;
    Ok(random)
}

fn random_hex<const N: usize>() -> Result<String> {
    Ok(random::<N>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn mount(kind: DeviceKind, device: &Device, lower: &Path) -> Result<()> {
    let node = loopdev::block_node(device.major, device.minor)?;
    let call = |call: &str| Error::errno(format!("{call} of erofs from {}", node.display()));
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(call("fsopen"))?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", node.as_os_str()).map_err(call("fsconfig source"))?;
    fsconfig_set_flag(context, "ro").map_err(call("fsconfig ro"))?;
    match fsconfig_create_exclusive(context) {
        // Linux before 6.6. A loop device is evidence of nothing but its backing file, which the gate hashes; for
        // a verity device there is no way around.
        Err(Errno::OPNOTSUPP | Errno::INVAL) if kind == DeviceKind::Loop => {
            fsconfig_create(context)
        }
        created => created,
    }
    .map_err(call("fsconfig create"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mounted =
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(call("fsmount"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mounted.as_fd(), "", rustix::fs::CWD, lower, flags)
        .map_err(Error::errno(format!("move_mount to {}", lower.display())))
}

/// Whether the record's device is what its mount point shows.
fn is_mounted(record: &ActivationRecord) -> bool {
    rustix::fs::stat(&record.lower).is_ok_and(|stat| {
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        record.dev == format!("{major}:{minor}")
    })
}

/// Undoes an activation in reverse. The record goes between the mount and the device: while the mount is there, so
/// is what it is.
fn deactivate(record_path: &Path, record: &ActivationRecord) -> Result<()> {
    unmount_lower(&record.lower)?;
    layout::remove_file(record_path)?;
    if record.kind == DeviceKind::DmVerity {
        remove_device(&record.name)?;
    }
    remove_mount_point(&record.lower)
}

/// Takes a layer's mount away; one that is not there is fine.
pub(crate) fn unmount_lower(lower: &Path) -> Result<()> {
    match unmount(lower, UnmountFlags::NOFOLLOW) {
        Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        unmounted => unmounted.map_err(Error::errno(format!("umount {}", lower.display()))),
    }
}

/// Removes a verity device: at once, or when the last overlay that was built on it goes.
pub(crate) fn remove_device(name: &str) -> Result<()> {
    match dm::remove(name, Removal::Now) {
        Err(error) if error.kind() == SysErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == SysErrorKind::Busy => {
            Ok(dm::remove(name, Removal::Deferred)?)
        }
        removed => Ok(removed?),
    }
}

/// Removes an empty mount point; one that is not there is fine.
pub(crate) fn remove_mount_point(lower: &Path) -> Result<()> {
    match std::fs::remove_dir(lower) {
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io(format!("rmdir {}", lower.display()))),
    }
}

/// What [`Activations::make`] has done so far; dropped, it is undone in reverse.
#[derive(Debug, Default)]
struct Undo {
    device: Option<String>,
    directory: Option<PathBuf>,
    /// Whether something is mounted on `directory`.
    mounted: bool,
}

impl Undo {
    fn commit(mut self) {
        self.device = None;
        self.directory = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let report = |undone: Result<()>| {
            if let Err(error) = undone {
                tracing::warn!("undo of an activation: {}", crate::error::chain(&error));
            }
        };
        if let Some(directory) = self.directory.take() {
            if self.mounted {
                report(unmount_lower(&directory));
            }
            report(remove_mount_point(&directory));
        }
        if let Some(device) = self.device.take() {
            report(remove_device(&device));
        }
    }
}

/// A number as at most six characters of `[0-9a-z]`.
fn short_name(number: u64) -> String {
    let mut rest = number % NAMES;
    let mut name = Vec::new();
    loop {
        let digit = u32::try_from(rest % 36).unwrap_or(0);
        name.extend(char::from_digit(digit, 36));
        rest /= 36;
        if rest == 0 {
            return name.iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mount_points_are_short() {
        for (number, name) in [(0, "0"), (35, "z"), (36, "10"), (NAMES - 1, "zzzzzz"), (NAMES, "0")]
        {
            assert_eq!(short_name(number), name);
        }
        assert!(short_name(u64::MAX).len() <= 6);
    }

    #[test]
    fn random_parts_differ() {
        let (one, two) = (random_hex::<8>().unwrap(), random_hex::<8>().unwrap());
        assert_eq!(one.len(), 16);
        assert_ne!(one, two);
    }
}
