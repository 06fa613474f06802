//! Loop devices: made read-only from an open descriptor, asked what backs them.
//!
//! `struct loop_info64` (232 bytes, native byte order), the fields used here:
//!
//! | offset | bytes | field        |                                              |
//! |-------:|------:|--------------|----------------------------------------------|
//! |      0 |     8 | lo_device    | `st_dev` of the backing file, kernel's form  |
//! |      8 |     8 | lo_inode     | its inode number                             |
//! |     24 |     8 | lo_offset    | bytes                                        |
//! |     32 |     8 | lo_sizelimit | bytes, 0: to the end                         |
//! |     40 |     4 | lo_number    | N of `/dev/loopN`                            |
//! |     52 |     4 | lo_flags     | `LO_FLAGS_*`                                 |
//!
//! `struct loop_config` (304 bytes): fd (4), block_size (4), the above, 64 reserved bytes.
//!
//! Source: linux/loop.h, kernel `drivers/block/loop.c`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Dev, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::dm::{decode_dev, parse_device};
use crate::ioctl;
use crate::{Error, Result};

const CONTROL: &str = "/dev/loop-control";
const LOOP_GET_STATUS64: u32 = 0x4c05;
const LOOP_CONFIGURE: u32 = 0x4c0a;
const LOOP_CTL_GET_FREE: u32 = 0x4c82;

/// Bytes of `struct loop_info64` and `struct loop_config`.
const INFO: usize = 232;
const CONFIG: usize = 304;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;

/// The block size that layer images have and dm-verity asks of the device beneath.
const BLOCK_SIZE: u32 = 4096;

/// How often another process may take the free device before us.
const RACES: u32 = 64;

/// A loop device of ours. It lives until this descriptor and every other user (a mount, a
/// device-mapper table) are gone, and clears itself then.
#[derive(Debug)]
pub struct LoopDevice {
    file: OwnedFd,
    /// Block major.
    pub major: u32,
    /// Block minor.
    pub minor: u32,
    /// `/dev/loopN`.
    pub path: PathBuf,
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What a loop device reads from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// `st_dev` of the backing file.
    pub dev: Dev,
    /// Inode number of the backing file on that device.
    pub ino: u64,
    /// Where the device begins in the file, in bytes.
    pub offset: u64,
    /// How many bytes of the file it serves; 0: to the end.
    pub size_limit: u64,
    /// `LO_FLAGS_*` of linux/loop.h.
    pub flags: u32,
    /// The file's name when the device was made, as sysfs tells it. A hint: names move.
    pub path: Option<PathBuf>,
}

impl Backing {
    /// Whether the device refuses writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags & FLAG_READ_ONLY != 0
    }
}

/// Makes a read-only loop device over the whole of `backing`, with blocks of 4096 bytes, no
/// partition scan, cleared when its last user goes.
///
/// # Errors
/// `NotFound` where the kernel has no loop devices; `Busy` when others took the free device 64
/// times in a row; whatever else the kernel says of the file.
pub fn attach_read_only(backing: BorrowedFd<'_>) -> Result<LoopDevice> {
    let control = rustix::fs::open(CONTROL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::call(format!("open({CONTROL})"), errno))?;
    let mut races = 0;
    loop {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument.
        let free = unsafe { ioctl::with_number(control.as_fd(), LOOP_CTL_GET_FREE, 0) };
        let call = || format!("ioctl({CONTROL}, LOOP_CTL_GET_FREE)");
        let number = free.map_err(|errno| Error::call(call(), errno))?;
        match configure(number, backing) {
            Err(error) if error.errno() == Some(Errno::BUSY) && races < RACES => races += 1,
            made => return made,
        }
    }
}

fn configure(number: i32, backing: BorrowedFd<'_>) -> Result<LoopDevice> {
    let name = format!("loop{number}");
    let (major, minor) = number_of(&name)?;
    let path = PathBuf::from("/dev").join(&name);
    let file = open_block(major, minor)?;
    let mut config = [0u8; CONFIG];
    put(&mut config, 0, backing.as_raw_fd().to_ne_bytes());
    put(&mut config, 4, BLOCK_SIZE.to_ne_bytes());
    put(&mut config, 8 + 52, (FLAG_READ_ONLY | FLAG_AUTOCLEAR).to_ne_bytes());
    // SAFETY: LOOP_CONFIGURE reads one struct loop_config, 304 bytes, and writes nothing.
    let made = unsafe { ioctl::with_buffer(file.as_fd(), LOOP_CONFIGURE, &mut config) };
    made.map_err(|errno| {
        let fd = backing.as_raw_fd();
        Error::call(
            format!("ioctl({}, LOOP_CONFIGURE, fd {fd}, block 4096)", path.display()),
            errno,
        )
    })?;
    Ok(LoopDevice { file, major, minor, path })
}

/// What backs the loop device of that number.
///
/// # Errors
/// `NotFound` for a loop device without a backing file, or for no device at all; `Unsupported`
/// for a device that is not a loop device.
pub fn backing(major: u32, minor: u32) -> Result<Backing> {
    let device = open_block(major, minor)?;
    let mut info = [0u8; INFO];
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64, 232 bytes. A block driver that is
    // not loop does not know the number and answers ENOTTY or EINVAL.
    let asked = unsafe { ioctl::with_buffer(device.as_fd(), LOOP_GET_STATUS64, &mut info) };
    let call = || format!("ioctl({major}:{minor}, LOOP_GET_STATUS64)");
    asked.map_err(|errno| Error::call(call(), errno))?;
    let (file_major, file_minor) = decode_dev(u64_at(&info, 0));
    Ok(Backing {
        dev: rustix::fs::makedev(file_major, file_minor),
        ino: u64_at(&info, 8),
        offset: u64_at(&info, 24),
        size_limit: u64_at(&info, 32),
        flags: u32_at(&info, 52),
        path: backing_path(major, minor),
    })
}

fn backing_path(major: u32, minor: u32) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file"));
    text.ok().map(|text| PathBuf::from(text.trim_end_matches('\n')))
}

/// Opens the block device of that number for reading, by the name the kernel gives it in `/dev`.
/// Where devtmpfs lacks the node it is made (mode 0600); a node of another number is refused.
///
/// # Errors
/// `NotFound`: the kernel has no such device; `Malformed`: the node in `/dev` is another device.
pub fn open_block(major: u32, minor: u32) -> Result<OwnedFd> {
    let path = block_node(major, minor)?;
    let shown = path.display();
    let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::call(format!("open({shown})"), errno))?;
    let stat =
        rustix::fs::fstat(&file).map_err(|errno| Error::call(format!("fstat({shown})"), errno))?;
    if !is_block(&stat, major, minor) {
        return Err(Error::malformed(
            format!("open({shown})"),
            format!("the node is not block device {major}:{minor}"),
        ));
    }
    Ok(file)
}

/// The path of the node in `/dev` of the block device of that number, made (mode 0600) where
/// devtmpfs lacks it.
///
/// # Errors
/// `NotFound`: the kernel has no such device; `Malformed`: the node in `/dev` is another device.
pub fn block_node(major: u32, minor: u32) -> Result<PathBuf> {
    let uevent = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = std::fs::read_to_string(&uevent)
        .map_err(|error| Error::io(format!("read({uevent})"), &error))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| Error::malformed(uevent, "no DEVNAME"))?;
    let path = PathBuf::from("/dev").join(name);
    let shown = path.display();
    match rustix::fs::stat(&path) {
        Ok(stat) if is_block(&stat, major, minor) => return Ok(path),
        Ok(_) => {
            let why = format!("the node is not block device {major}:{minor}");
            return Err(Error::malformed(format!("stat({shown})"), why));
        }
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(Error::call(format!("stat({shown})"), errno)),
    }
    let mode = Mode::RUSR | Mode::WUSR;
    let dev = rustix::fs::makedev(major, minor);
    match rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::BlockDevice, mode, dev) {
        // another process may have been first; open_block compares the number again
        Ok(()) | Err(Errno::EXIST) => Ok(path),
        Err(errno) => Err(Error::call(format!("mknod({shown}, b {major}:{minor})"), errno)),
    }
}

fn is_block(stat: &rustix::fs::Stat, major: u32, minor: u32) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
        && stat.st_rdev == rustix::fs::makedev(major, minor)
}

/// The number of a block device by its name in sysfs.
fn number_of(name: &str) -> Result<(u32, u32)> {
    let path = format!("/sys/class/block/{name}/dev");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Error::io(format!("read({path})"), &error))?;
    parse_device(text.trim_end()).ok_or_else(|| Error::malformed(path, format!("{text:?}")))
}

fn put(buffer: &mut [u8], at: usize, bytes: [u8; 4]) {
    for (to, from) in buffer.iter_mut().skip(at).zip(bytes) {
        *to = from;
    }
}

fn u32_at(info: &[u8; INFO], at: usize) -> u32 {
    info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(info: &[u8; INFO], at: usize) -> u64 {
    info.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Reaches the kernel: needs root and loop devices, as every machine that builds this has.
    #[test]
    fn a_loop_device_reads_its_file_and_goes_with_its_last_user() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7u8; 8192]).unwrap();
        let reader = std::fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let device = attach_read_only(reader.as_fd()).unwrap();

        let found = backing(device.major, device.minor).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((found.dev, found.ino), (meta.dev(), meta.ino()));
        assert_eq!((found.offset, found.size_limit), (0, 0));
        assert!(found.is_read_only());
        assert_eq!(found.flags, FLAG_READ_ONLY | FLAG_AUTOCLEAR);
        assert!(found.path.is_some());

        let mut bytes = Vec::new();
        std::fs::File::open(&device.path).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [7u8; 8192]);
        let size =
            format!("/sys/dev/block/{}:{}/queue/logical_block_size", device.major, device.minor);
        assert_eq!(std::fs::read_to_string(size).unwrap().trim(), "4096");

        let (major, minor) = (device.major, device.minor);
        drop(device);
        // a child that a test next door forked may hold the descriptor a moment longer
        let ours = Some((meta.dev(), meta.ino()));
        let cleared = (0..200).any(|_| {
            let now = backing(major, minor).ok().map(|now| (now.dev, now.ino));
            if now == ours {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            now != ours
        });
        assert!(cleared, "{major}:{minor} still reads the file");
    }

    #[test]
    fn a_device_that_is_not_there_is_not_found() {
        assert_eq!(backing(7, 1_000_000).unwrap_err().kind(), crate::ErrorKind::NotFound);
        assert_eq!(open_block(4094, 1).unwrap_err().kind(), crate::ErrorKind::NotFound);
    }
}
