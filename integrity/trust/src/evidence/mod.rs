//! Evidence: what the kernel says of an open descriptor of a lower.
//!
//! Nothing is decided here. [`Collector::collect`] asks the kernel about *that* descriptor, which
//! is the one the overlay is then built from: its file system, whether it is the root of its
//! superblock, the superblock's options, what is mounted beneath, and what the block device is.
//! [`judge`](crate::gate::judge) decides.
//!
//! The one thing that is not the kernel's word is the activation record (see [`ActivationRecord`]).

pub mod mountinfo;
mod record;
mod volume;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use hallmark_sys::procfs::{Procfs, file_system_magic};
use hallmark_verity::RootHash;
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

use crate::levels::Strength;
use mountinfo::Mount;

pub use record::{ActivationRecord, DeviceKind, Record, Signed};
pub(crate) use volume::{DmVerity, Rehashed, Volume};

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] pub(crate) ErrorKind);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ErrorKind {
    #[error("{path}", path = path.display())]
    Backing { path: PathBuf, source: std::io::Error },
    #[error("device-mapper")]
    DeviceMapper(#[source] hallmark_sys::Error),
    #[error("{0}")]
    Call(&'static str, #[source] std::io::Error),
    #[error("the kernel says no mount id and no mount root: Linux 5.8 or later is needed")]
    NoMountRoot,
    #[error("mount {0} is not in this thread's mount namespace")]
    NotMounted(u64),
    #[error("/proc/thread-self/mountinfo: \"{0}\" is no mount")]
    MountTable(String),
    #[error(transparent)]
    Procfs(hallmark_sys::Error),
}

/// What the kernel says of one lower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What the lower is called in messages.
    pub(crate) lower: PathBuf,
    /// `f_type` of its file system.
    pub(crate) file_system: u64,
    /// Whether the descriptor is the root of its mount.
    pub(crate) is_mount_root: bool,
    /// What of the file system the mount shows, `/` for all of it.
    pub(crate) shown_root: String,
    /// A mount point beneath it, if there is one.
    pub(crate) mounted_beneath: Option<String>,
    /// The superblock's options.
    pub(crate) options: Vec<String>,
    /// The superblock's device, (major, minor).
    pub(crate) device: (u32, u32),
    /// What that device is.
    pub(crate) volume: Volume,
}

impl Evidence {
    /// How strong this evidence is; `None` for none at all.
    pub fn strength(&self) -> Option<Strength> {
        match &self.volume {
            Volume::DmVerity(dm) if dm.target.signed => Some(Strength::DmVeritySigned),
            Volume::DmVerity(_) => Some(Strength::DmVerity),
            Volume::Rehashed(_) => Some(Strength::Rehashed),
            Volume::Unverified(_) => None,
        }
    }

    /// The root hash found: the table's, or the one just computed.
    pub fn root_hash(&self) -> Option<RootHash> {
        match &self.volume {
            Volume::DmVerity(dm) => {
                dm.target.root_hash.as_slice().try_into().ok().map(RootHash::from_bytes)
            }
            Volume::Rehashed(rehashed) => Some(rehashed.root_hash),
            Volume::Unverified(_) => None,
        }
    }

    /// The root hash under which a claim is looked for: the table's, or what the file's own hash
    /// tree states. A name and no proof.
    pub fn stated_root_hash(&self) -> Option<RootHash> {
        match &self.volume {
            Volume::Rehashed(rehashed) => rehashed.stated,
            Volume::DmVerity(_) | Volume::Unverified(_) => self.root_hash(),
        }
    }

    /// What the lower is called.
    pub fn lower(&self) -> &Path {
        &self.lower
    }
}

/// Asks the kernel about lowers, against one reading of the mount table.
#[derive(Debug)]
pub struct Collector {
    mounts: Vec<Mount>,
    devices: PathBuf,
}

impl Collector {
    /// Reads the mount table. Open the lowers first: a mount made later is not in it.
    ///
    /// `devices` is the directory of the activation records.
    ///
    /// # Errors
    /// The mount table cannot be read or is not understood.
    pub fn new(proc: &Procfs, devices: &Path) -> Result<Self, Error> {
        let table = proc.read("thread-self/mountinfo").map_err(ErrorKind::Procfs)?;
        let mounts = mountinfo::parse(&table).map_err(ErrorKind::MountTable)?;
        Ok(Self { mounts, devices: devices.to_owned() })
    }

    /// Asks the kernel about one lower; `name` is only for messages.
    ///
    /// A loop device's file is read and hashed here: about a second for each gigabyte or two.
    ///
    /// # Errors
    /// The kernel could not be asked, or the descriptor's mount is not in this mount namespace.
    pub fn collect(&self, lower: BorrowedFd<'_>, name: &Path) -> Result<Evidence, Error> {
        let call = |call, e: rustix::io::Errno| Error::from(ErrorKind::Call(call, e.into()));
        let file_system = file_system_magic(lower).map_err(|e| call("fstatfs", e))?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let statx = rustix::fs::statx(lower, "", AtFlags::EMPTY_PATH, wanted)
            .map_err(|e| call("statx", e))?;
        let has_id = StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::MNT_ID);
        if !has_id || !statx.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(ErrorKind::NoMountRoot.into());
        }
        let id = statx.stx_mnt_id;
        let mount = self.mounts.iter().find(|mount| mount.id == id);
        let mount = mount.ok_or(ErrorKind::NotMounted(id))?;
        let device = (statx.stx_dev_major, statx.stx_dev_minor);
        let volume = if mount.device == device {
            volume::of(device, &self.devices)?
        } else {
            let (major, minor) = mount.device;
            Volume::Unverified(format!(
                "the file is on another device than its mount, {major}:{minor}"
            ))
        };
        let beneath = self.mounts.iter().find(|other| other.parent == id && other.id != id);
        Ok(Evidence {
            lower: name.to_owned(),
            file_system,
            is_mount_root: statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            shown_root: mount.root.clone(),
            mounted_beneath: beneath.map(|mount| mount.mount_point.clone()),
            options: mount.super_options.clone(),
            device,
            volume,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Layer, privately, sh};
    use std::fs::File;
    use std::os::fd::AsFd;

    fn look(path: &Path) -> Evidence {
        let lower = File::open(path).unwrap();
        let collector =
            Collector::new(&Procfs::open().unwrap(), Path::new("/nonexistent")).unwrap();
        collector.collect(lower.as_fd(), path).unwrap()
    }

    #[test]
    fn a_loop_mounted_layer_is_rehashed() {
        privately(|dir| {
            let layer = Layer::pack(dir, "a", "hello");
            layer.mount();
            let found = look(&layer.mount_point);
            assert_eq!(found.strength(), Some(Strength::Rehashed));
            assert_eq!(found.root_hash(), Some(layer.root_hash));
            assert_eq!(found.file_system, 0xE0F5_E1E2);
            assert!(found.is_mount_root && found.shown_root == "/");
            assert_eq!(found.mounted_beneath, None);
            assert!(found.options.iter().any(|option| option == "ro"), "{:?}", found.options);
            let Volume::Rehashed(rehashed) = &found.volume else { panic!() };
            assert_eq!(rehashed.params, layer.params);
            assert_eq!((rehashed.offset, rehashed.size_limit), (0, 0));
            assert!(rehashed.read_only);

            let inside = look(&layer.mount_point.join("sub"));
            assert!(!inside.is_mount_root);
            let bind = dir.join("bind");
            sh(&format!(
                "mkdir {0} && mount --bind {1}/sub {0}",
                bind.display(),
                layer.mount_point.display()
            ));
            let bound = look(&bind);
            assert!(bound.is_mount_root);
            assert_eq!(bound.shown_root, "/sub");

            sh(&format!("mount -t tmpfs tmpfs {}/sub", layer.mount_point.display()));
            let covered = look(&layer.mount_point).mounted_beneath.unwrap();
            assert!(covered.ends_with("/sub"), "{covered}");
        });
    }

    #[test]
    fn changed_and_swapped_files_are_seen() {
        privately(|dir| {
            let layer = Layer::pack(dir, "a", "hello");
            layer.mount();
            layer.flip(2048);
            let flipped = look(&layer.mount_point);
            assert_ne!(flipped.root_hash(), Some(layer.root_hash));
            assert_eq!(flipped.stated_root_hash(), Some(layer.root_hash));
            assert_eq!(flipped.strength(), Some(Strength::Rehashed));
            layer.flip(2048);
            assert_eq!(look(&layer.mount_point).root_hash(), Some(layer.root_hash));

            let other = Layer::pack(dir, "b", "other");
            let image = layer.image.display();
            sh(&format!("mount --bind {} {image}", other.image.display()));
            let Volume::Unverified(why) = look(&layer.mount_point).volume else { panic!() };
            assert!(why.contains("not the file that the loop device reads"), "{why}");
            sh(&format!("umount {image} && mv {image} {image}.moved"));
            assert_eq!(look(&layer.mount_point).root_hash(), Some(layer.root_hash));
            sh(&format!("rm {image}.moved"));
            assert!(matches!(look(&layer.mount_point).volume, Volume::Unverified(_)));
            other.mount();
            assert_eq!(look(&other.mount_point).root_hash(), Some(other.root_hash));
        });
    }

    #[test]
    fn what_is_no_layer_has_no_strength() {
        privately(|dir| {
            let tmpfs = look(dir);
            assert_ne!(tmpfs.file_system, 0xE0F5_E1E2);
            assert_eq!(tmpfs.strength(), None);
            // an EROFS without a hash tree
            let layer = Layer::pack(dir, "a", "hello");
            let len = layer.params.data_len();
            std::fs::OpenOptions::new()
                .write(true)
                .open(&layer.image)
                .unwrap()
                .set_len(len)
                .unwrap();
            layer.mount();
            let Volume::Unverified(why) = look(&layer.mount_point).volume else { panic!() };
            assert!(why.contains("no hash tree"), "{why}");
        });
    }
}
