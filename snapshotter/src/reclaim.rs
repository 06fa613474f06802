//! Start-up: what a former daemon left is compared with the database and the kernel, and adopted or removed.
//!
//! | left behind | kept when |
//! |---|---|
//! | activation record | the kernel's table, the mount and the backing file are as it says |
//! | mount or directory in `<state>/l` | a kept record names it |
//! | device-mapper device of ours | a kept record names it |
//! | directory in `snapshots/` | the database has a snapshot of that number |
//! | file in `layers/` | the database has a layer of that name |
//!
//! A device that no record names is never adopted, however right its table looks: what it served before is not known.
//! Loop devices need no care: they clear themselves when the mount or device above goes.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hallmark_sys::dm::{self, VerityStatus};
use hallmark_sys::loopdev;
use hallmark_sys::{Error as SysError, ErrorKind as SysErrorKind};
use hallmark_trust::evidence::{ActivationRecord, DeviceKind};

use crate::activate::{file_name, remove_device, remove_mount_point, unmount_lower};
use crate::error::{Error, Result, chain};
use crate::layout::{self, Layout, image_name};
use crate::mountinfo::{self, Mounted};
use crate::removal::remove_tree;
use crate::store::{Layer, Store};

/// The name of every device-mapper device of ours begins so.
const DEVICE_PREFIX: &str = "hallmark-";

/// What this kernel can activate layers on.
pub(crate) fn device_kind() -> Result<DeviceKind> {
    match dm::version() {
        Ok(_) => Ok(DeviceKind::DmVerity),
        Err(error) if is_absent(&error) => Ok(DeviceKind::Loop),
        Err(error) => Err(error.into()),
    }
}

fn is_absent(error: &SysError) -> bool {
    matches!(error.kind(), SysErrorKind::NotFound | SysErrorKind::Unsupported)
}

/// Adopts what is in order, removes what is not, and returns the adopted activations.
pub(crate) fn reclaim(
    layout: &Layout,
    store: &Store,
    kind: DeviceKind,
) -> Result<Vec<ActivationRecord>> {
    let layers = store.layers()?;
    let images: HashSet<String> = layers.iter().map(|layer| image_name(&layer.diff_id)).collect();
    remove_orphans(&layout.snapshots(), &snapshot_names(store)?)?;
    remove_orphans(&layout.layers(), &images)?;
    remove_unfinished(&layout.claims)?;
    remove_unfinished(&layout.devices())?;
    let mounted = mountinfo::read()?;
    let mut adopted = Vec::new();
    for name in layout::names_in(&layout.devices())? {
        let path = layout.devices().join(&name);
        match read_record(&path, &name) {
            Some(record) => match differs(layout, &layers, &mounted, kind, &record) {
                Ok(None) => adopted.push(record),
                Ok(Some(found)) => {
                    tracing::warn!("{}: not adopted: {found}", path.display());
                    discard(&path, &record);
                }
                Err(error) => {
                    tracing::warn!("{}: not adopted: {}", path.display(), chain(&error));
                    discard(&path, &record);
                }
            },
            None => layout::remove_file(&path)?,
        }
    }
    sweep_lowers(layout, &adopted)?;
    if kind == DeviceKind::DmVerity {
        sweep_devices(layout, &adopted)?;
    }
    Ok(adopted)
}

fn read_record(path: &Path, name: &str) -> Option<ActivationRecord> {
    let bytes = std::fs::read(path).ok()?;
    let record: ActivationRecord = serde_json::from_slice(&bytes).ok()?;
    (record.schema_version == 1 && file_name(&record) == name).then_some(record)
}

/// What is not as the record says, if anything.
fn differs(
    layout: &Layout,
    layers: &[Layer],
    mounted: &[Mounted],
    kind: DeviceKind,
    record: &ActivationRecord,
) -> Result<Option<String>> {
    if record.kind != kind {
        return Ok(Some("made on another kind of device than this kernel offers".to_owned()));
    }
    let here = mounted.iter().rfind(|mount| mount.point == record.lower);
    let right = here.is_some_and(|mount| {
        mount.kind == "erofs" && mount.dev == record.dev && mount.root == Path::new("/")
    });
    if !right {
        return Ok(Some(format!("{} is not the mount of {}", record.lower.display(), record.dev)));
    }
    let Some(layer) = layers.iter().find(|layer| layer.root_hash == record.root_hash) else {
        return Ok(Some("the layer is not in the database".to_owned()));
    };
    let Some((major, minor)) = device_number(&record.dev) else {
        return Ok(Some(format!("{:?} is no device number", record.dev)));
    };
    match record.kind {
        DeviceKind::Loop => backs(layout, layer, major, minor),
        DeviceKind::DmVerity => verifies(record, layer, major, minor),
    }
}

fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn backs(layout: &Layout, layer: &Layer, major: u32, minor: u32) -> Result<Option<String>> {
    let backing = loopdev::backing(major, minor)?;
    let path = layout.layer(&layer.diff_id);
    let file =
        std::fs::symlink_metadata(&path).map_err(Error::io(format!("stat {}", path.display())))?;
    let whole = backing.offset == 0 && backing.size_limit == 0 && backing.is_read_only();
    let same = (backing.dev, backing.ino) == (file.dev(), file.ino());
    Ok((!whole || !same)
        .then(|| format!("loop device {major}:{minor} does not read {}", path.display())))
}

fn verifies(
    record: &ActivationRecord,
    layer: &Layer,
    major: u32,
    minor: u32,
) -> Result<Option<String>> {
    let found = |what: &str| Ok(Some(format!("device {major}:{minor}: {what}")));
    if dm::names_of(major, minor)? != (record.name.clone(), record.uuid.clone()) {
        return found("another name or uuid");
    }
    let (table, status) = (dm::table_of(major, minor)?, dm::status_of(major, minor)?);
    let ([target], [status]) = (table.as_slice(), status.as_slice()) else {
        return found("not one target");
    };
    let target = target.verity()?;
    let as_made = target.version == 1
        && target.algorithm == "sha256"
        && target.root_hash == record.root_hash.as_bytes()
        && target.salt == layer.params.salt.as_bytes()
        && target.data_blocks == layer.params.data_blocks.0
        && target.hash_start == layer.params.hash_start_block()
        && target.options.is_empty()
        && target.signed == record.signed;
    if !as_made {
        return found("another table than it was made with");
    }
    if status.verity_status()? == VerityStatus::Corrupted {
        return found("has met a block that is not the layer's");
    }
    Ok(None)
}

/// Takes apart what a record names, in reverse. What cannot be taken apart is told and left to the sweeps.
fn discard(path: &Path, record: &ActivationRecord) {
    let same_device = || {
        let (major, minor) = device_number(&record.dev)?;
        dm::names_of(major, minor)
            .ok()
            .filter(|(name, uuid)| *name == record.name && *uuid == record.uuid)
    };
    let mut undone = unmount_lower(&record.lower).and_then(|()| remove_mount_point(&record.lower));
    if record.kind == DeviceKind::DmVerity && same_device().is_some() {
        undone = undone.and(remove_device(&record.name));
    }
    if let Err(error) = undone.and(layout::remove_file(path)) {
        tracing::warn!("{}: {}", path.display(), chain(&error));
    }
}

/// Mount points that no adopted record names.
fn sweep_lowers(layout: &Layout, adopted: &[ActivationRecord]) -> Result<()> {
    let kept: HashSet<PathBuf> = adopted.iter().map(|record| record.lower.clone()).collect();
    for name in layout::names_in(&layout.lowers())? {
        let lower = layout.lowers().join(name);
        if kept.contains(&lower) {
            continue;
        }
        if let Err(error) = unmount_lower(&lower).and_then(|()| remove_mount_point(&lower)) {
            tracing::warn!("mount point of no record: {}", chain(&error));
        }
    }
    Ok(())
}

/// Devices of ours, over layer images of this root, that no adopted record names. Another root's are not touched.
fn sweep_devices(layout: &Layout, adopted: &[ActivationRecord]) -> Result<()> {
    for device in dm::list()? {
        let known = adopted.iter().any(|record| record.name == device.name);
        if known || !device.name.starts_with(DEVICE_PREFIX) {
            continue;
        }
        if !reads_layer_of(layout, device.major, device.minor) {
            continue;
        }
        match remove_device(&device.name) {
            Ok(()) => tracing::info!("device {} of no record removed", device.name),
            Err(error) => tracing::warn!("device of no record: {}", chain(&error)),
        }
    }
    Ok(())
}

fn reads_layer_of(layout: &Layout, major: u32, minor: u32) -> bool {
    let backing = || {
        let table = dm::table_of(major, minor).ok()?;
        let target = table.first()?.verity().ok()?;
        let (major, minor) = device_number(&target.data_dev)?;
        loopdev::backing(major, minor).ok()?.path
    };
    backing().is_some_and(|path| path.starts_with(layout.layers()))
}

/// The names of the directories in `snapshots/` that belong there.
pub(crate) fn snapshot_names(store: &Store) -> Result<HashSet<String>> {
    Ok(store.snapshots()?.iter().map(|(_, snapshot)| snapshot.id.to_string()).collect())
}

/// Removes everything in a directory that is not one of `names`. What cannot be removed, because a container made it
/// immutable or the disk is damaged there, is told and left: it must not keep every other container from starting.
pub(crate) fn remove_orphans(directory: &Path, names: &HashSet<String>) -> Result<()> {
    for name in layout::names_in(directory)? {
        if names.contains(&name) {
            continue;
        }
        let orphan = directory.join(name);
        tracing::info!("{} is of nothing in the database: it goes", orphan.display());
        let is_directory = std::fs::symlink_metadata(&orphan).is_ok_and(|meta| meta.is_dir());
        let removed =
            if is_directory { remove_tree(&orphan) } else { layout::remove_file(&orphan) };
        if let Err(error) = removed {
            tracing::warn!("{} is left: {}", orphan.display(), chain(&error));
        }
    }
    Ok(())
}

/// Files that were cut off while they were written.
fn remove_unfinished(directory: &Path) -> Result<()> {
    for name in layout::names_in(directory)? {
        if name.starts_with(layout::UNFINISHED) {
            layout::remove_file(&directory.join(name))?;
        }
    }
    Ok(())
}
