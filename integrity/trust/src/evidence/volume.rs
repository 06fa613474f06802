//! What lies under a lower's superblock: a device-mapper device, a loop device, or something else.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hallmark_sys::dm::{self, Target, VerityStatus, VerityTarget};
use hallmark_sys::loopdev::{self, Backing};
use hallmark_sys::{Error as SysError, ErrorKind as SysErrorKind};
use hallmark_verity::{BLOCK, DataBlocks, RootHash, SUPERBLOCK_LEN, Superblock, VolumeParams};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::record::{self, Record, Signed};
use super::{Error, ErrorKind};

/// What the blocks of a lower come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Volume {
    /// One dm-verity target.
    DmVerity(Box<DmVerity>),
    /// A loop device whose file was hashed just now.
    Rehashed(Rehashed),
    /// Nothing that says what the blocks are, and why.
    Unverified(String),
}

/// A device-mapper device with exactly one target, verity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DmVerity {
    /// The table as the kernel states it.
    pub(crate) target: VerityTarget,
    /// Where the target starts and ends, in sectors of 512 bytes.
    pub(crate) sectors: std::ops::Range<u64>,
    /// Whether a block did not match since the table was loaded.
    pub(crate) status: VerityStatus,
    /// The device's uuid.
    pub(crate) uuid: String,
    /// What our daemon says it created under this root hash.
    pub(crate) record: Record,
}

/// A loop device and what its backing file hashes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rehashed {
    /// Computed over the file's first `params.data_blocks` blocks.
    pub(crate) root_hash: RootHash,
    /// From the superblock behind the image: hints, which the root hash decides on.
    pub(crate) params: VolumeParams,
    /// The root hash of the tree behind the image, for finding the claim that was made for it; it
    /// says nothing of the data.
    pub(crate) stated: Option<RootHash>,
    /// Where the loop device starts in the file, in bytes.
    pub(crate) offset: u64,
    /// Where it ends, in bytes after `offset`; 0 for the end of the file.
    pub(crate) size_limit: u64,
    /// Whether the device refuses writes.
    pub(crate) read_only: bool,
}

/// Finds out what the block device is.
pub(super) fn of(device: (u32, u32), devices: &Path) -> Result<Volume, Error> {
    let (major, minor) = device;
    match dm::table_of(major, minor) {
        Ok(table) => return dm_volume(device, &table, devices),
        Err(e) if is_no_such_device(&e) => {}
        Err(e) => return Err(ErrorKind::DeviceMapper(e).into()),
    }
    match loopdev::backing(major, minor) {
        Ok(backing) => rehash(&backing),
        Err(e) => Ok(Volume::Unverified(format!(
            "device {major}:{minor} is neither device-mapper's nor a loop device ({e})"
        ))),
    }
}

/// Device-mapper says ENXIO of a device that is not its own; without device-mapper there is no
/// control node.
fn is_no_such_device(error: &SysError) -> bool {
    matches!(error.kind(), SysErrorKind::NotFound | SysErrorKind::Unsupported)
}

fn dm_volume(device: (u32, u32), table: &[Target], devices: &Path) -> Result<Volume, Error> {
    let (major, minor) = device;
    let [target] = table else {
        let kinds: Vec<&str> = table.iter().map(|target| target.kind.as_str()).collect();
        return Ok(Volume::Unverified(format!(
            "device {major}:{minor} has {} targets ({})",
            table.len(),
            kinds.join(", ")
        )));
    };
    if target.kind != "verity" {
        return Ok(Volume::Unverified(format!("device {major}:{minor} is a {}", target.kind)));
    }
    let kernel = |e: SysError| Error::from(ErrorKind::DeviceMapper(e));
    let verity = target.verity().map_err(kernel)?;
    let status = dm::status_of(major, minor).map_err(kernel)?;
    let [status] = status.as_slice() else {
        return Ok(Volume::Unverified(format!("device {major}:{minor} changed while asked")));
    };
    let (_name, uuid) = dm::names_of(major, minor).map_err(kernel)?;
    let record = match <[u8; 32]>::try_from(verity.root_hash.as_slice()) {
        Ok(bytes) => {
            let signed = if verity.signed { Signed::Yes } else { Signed::No };
            record::read(devices, &RootHash::from_bytes(bytes), signed)
        }
        Err(_other_length) => Record::Missing,
    };
    Ok(Volume::DmVerity(Box::new(DmVerity {
        sectors: target.start_sector..target.start_sector.saturating_add(target.sectors),
        target: verity,
        status: status.verity_status().map_err(kernel)?,
        uuid,
        record,
    })))
}

/// Hashes the file that the loop device reads, found by its inode and not by its name.
fn rehash(backing: &Backing) -> Result<Volume, Error> {
    let Some(path) = &backing.path else {
        return Ok(Volume::Unverified("the loop device's backing file has no name".to_owned()));
    };
    let file = match open_backing(path, backing) {
        Ok(file) => file,
        Err(found) => return Ok(Volume::Unverified(found)),
    };
    let io = |source| Error::from(ErrorKind::Backing { path: path.clone(), source });
    let Some(params) = hints(&file).map_err(io)? else {
        return Ok(Volume::Unverified(format!(
            "{}: no hash tree's superblock behind the image",
            path.display()
        )));
    };
    let root_hash = match hallmark_verity::root_of(&file, &params.salt, params.data_blocks) {
        Ok(root_hash) => root_hash,
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Ok(Volume::Unverified(format!(
                "{}: shorter than its {} data blocks",
                path.display(),
                params.data_blocks
            )));
        }
        Err(e) => return Err(io(e)),
    };
    Ok(Volume::Rehashed(Rehashed {
        root_hash,
        stated: stated(&file, &params).map_err(io)?,
        params,
        offset: backing.offset,
        size_limit: backing.size_limit,
        read_only: backing.is_read_only(),
    }))
}

/// The digest of the stored tree's topmost block: what the root hash was when the layer was packed.
fn stated(file: &File, params: &VolumeParams) -> std::io::Result<Option<RootHash>> {
    let mut top = [0; BLOCK];
    let at = params.hash_start_block().saturating_mul(BLOCK as u64);
    if params.tree_blocks() == 0 || !read_at(file, &mut top, at)? {
        return Ok(None);
    }
    hallmark_verity::root_of(top.as_slice(), &params.salt, DataBlocks(1)).map(Some)
}

fn open_backing(path: &PathBuf, backing: &Backing) -> Result<File, String> {
    let shown = path.display();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd: OwnedFd = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| format!("the loop device's backing file {shown}: {e}"))?;
    let stat = rustix::fs::fstat(fd.as_fd()).map_err(|e| format!("{shown}: {e}"))?;
    if (stat.st_dev, stat.st_ino) != (backing.dev, backing.ino) {
        return Err(format!("{shown} is not the file that the loop device reads"));
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(format!("{shown} is not a regular file"));
    }
    Ok(File::from(fd))
}

/// Salt and data blocks as the file itself states them; `None` if it is not of our layout.
///
/// The EROFS superblock is at byte 1024: magic at +0, log2 of the block size at +12, blocks at
/// +36, little endian (Linux `fs/erofs/erofs_fs.h`). Our layout has the verity superblock in the
/// block behind.
fn hints(file: &File) -> std::io::Result<Option<VolumeParams>> {
    const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
    const LOG2_BLOCK: u8 = 12;
    let mut erofs = [0; 40];
    if !read_at(file, &mut erofs, 1024)? {
        return Ok(None);
    }
    let magic = erofs.first_chunk::<4>();
    let blocks = erofs.last_chunk::<4>().copied().map_or(0, u32::from_le_bytes);
    if magic != Some(&EROFS_MAGIC) || erofs.get(12) != Some(&LOG2_BLOCK) {
        return Ok(None);
    }
    let mut superblock = [0; SUPERBLOCK_LEN];
    let at = u64::from(blocks).saturating_mul(BLOCK as u64);
    if !read_at(file, &mut superblock, at)? {
        return Ok(None);
    }
    let params = Superblock::parse(&superblock).ok().map(|superblock| superblock.params);
    Ok(params.filter(|params| params.data_blocks == DataBlocks(u64::from(blocks))))
}

/// `false` if the file ends before the buffer is full.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<bool> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}
