//! Device-mapper by ioctls: verity devices made, read back and removed, without libdevmapper or udev.
//!
//! Every ioctl takes one buffer that begins with `struct dm_ioctl` (312 bytes, native byte order):
//!
//! | offset | bytes | field        | here                                             |
//! |-------:|------:|--------------|--------------------------------------------------|
//! |      0 |    12 | version      | 4.0.0: the kernel accepts every lower minor      |
//! |     12 |     4 | data_size    | length of the buffer                             |
//! |     16 |     4 | data_start   | 312                                              |
//! |     20 |     4 | target_count |                                                  |
//! |     24 |     4 | open_count   |                                                  |
//! |     28 |     4 | flags        | `DM_*_FLAG`                                      |
//! |     32 |     4 | event_nr     | udev flags in the upper half for resume, remove  |
//! |     40 |     8 | dev          | `new_encode_dev` form                            |
//! |     48 |   128 | name         | NUL-terminated                                   |
//! |    176 |   129 | uuid         | NUL-terminated                                   |
//!
//! then, per target, `struct dm_target_spec` (40 bytes: start, length, status, next, type[16]) and its text.
//!
//! Source: linux/dm-ioctl.h, kernel `drivers/md/dm-ioctl.c`.

mod table;

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::ioctl;
use crate::keyring::ThreadKey;
use crate::{Error, Result};

pub(crate) use table::parse_device;
pub use table::{Target, VerityStatus, VerityTarget};

const CONTROL: &str = "/dev/mapper/control";

/// Bytes of `struct dm_ioctl` and of `struct dm_target_spec`.
const HEADER: usize = 312;
const SPEC: usize = 40;
/// Room for answers at first, and the most we ask for before we give up.
const ANSWER: usize = 16 << 10;
const ANSWER_MAX: usize = 4 << 20;

const FLAG_READONLY: u32 = 1 << 0;
const FLAG_STATUS_TABLE: u32 = 1 << 4;
const FLAG_BUFFER_FULL: u32 = 1 << 8;
const FLAG_NOFLUSH: u32 = 1 << 11;
const FLAG_DEFERRED_REMOVE: u32 = 1 << 17;

/// `DM_UDEV_DISABLE_{DM,SUBSYSTEM,DISK,OTHER}_RULES_FLAG`, in the cookie's upper half: udev neither
/// probes our content nor makes links to it.
const UDEV_DISABLED: u32 = 0x000f << 16;

#[derive(Debug, Clone, Copy)]
enum Command {
    Version = 0,
    ListDevices = 2,
    Create = 3,
    Remove = 4,
    Suspend = 6,
    TableLoad = 9,
    TableStatus = 12,
}

impl Command {
    /// `_IOWR(0xfd, command, struct dm_ioctl)`.
    fn opcode(self) -> u32 {
        const READ_WRITE: u32 = 3 << 30;
        const SIZE: u32 = 312 << 16;
        READ_WRITE | SIZE | (0xfd << 8) | self as u32
    }
}

/// A device-mapper device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its device-mapper name.
    pub name: String,
    /// Block major, as in `/sys/dev/block/MAJOR:MINOR`.
    pub major: u32,
    /// Block minor.
    pub minor: u32,
}

/// The parameters of a verity device to be made: version 1, sha256, blocks of 4096 bytes, no options
/// besides a signature.
#[derive(Debug, Clone, Copy)]
pub struct VerityTable<'a> {
    /// Block device of the data, (major, minor).
    pub data: (u32, u32),
    /// Block device of the hash tree, (major, minor); may be the same.
    pub hash: (u32, u32),
    /// First block of the tree on the hash device, behind any superblock.
    pub hash_start_block: u64,
    /// Blocks of 4096 bytes that the tree covers, which is the size of the new device.
    pub data_blocks: u64,
    /// The tree's root.
    pub root_hash: &'a [u8; 32],
    /// At most 256 bytes; may be empty.
    pub salt: &'a [u8],
    /// Detached PKCS#7 DER over the 64 lowercase hex characters of the root hash.
    pub signature: Option<&'a [u8]>,
}

/// How to remove a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Refused with `Busy` while something has it open.
    Now,
    /// As soon as the last opener has gone; the name stays taken until then.
    Deferred,
}

/// The version of the kernel's device-mapper interface.
///
/// # Errors
/// `NotFound` where the kernel has no device-mapper.
pub fn version() -> Result<(u32, u32, u32)> {
    let answer = Request::new("").send(Command::Version)?;
    Ok((answer.u32_at(0), answer.u32_at(4), answer.u32_at(8)))
}

/// Makes and resumes a read-only verity device whose first table is `table`.
///
/// The signature's key is added, used by the table load and unlinked here, all on the calling
/// thread: the kernel looks it up in the keyrings of the thread that loads the table.
/// On error nothing is left behind.
///
/// # Errors
/// `Exists` or `Busy` for a name or uuid in use, `KeyRejected` for a signature that no key of the
/// kernel's verifies, `NotFound` where the kernel has no device-mapper, and whatever else the kernel says.
pub fn create_verity(name: &str, uuid: &str, table: &VerityTable<'_>) -> Result<Device> {
    let created = Request::new(name).uuid(uuid).send(Command::Create)?;
    let (major, minor) = created.device();
    let device = Device { name: name.to_owned(), major, minor };
    let loaded = load(name, table).and_then(|()| {
        let resume = Request::new(name).flags(FLAG_READONLY).event(UDEV_DISABLED);
        resume.send(Command::Suspend).map(drop)
    });
    if let Err(error) = loaded {
        // the reason is the load's; a device that cannot be removed now goes with its last opener
        drop(remove(name, Removal::Now).or_else(|_| remove(name, Removal::Deferred)));
        return Err(error);
    }
    Ok(device)
}

fn load(name: &str, table: &VerityTable<'_>) -> Result<()> {
    let description = format!("hallmark:{name}");
    let key = table.signature.map(|der| ThreadKey::add(&description, der)).transpose()?;
    let text = table.text(key.as_ref().map(|_| description.as_str()));
    let sectors = table.data_blocks.checked_mul(8).ok_or_else(|| {
        Error::malformed(format!("table of {name}"), "more data blocks than a device can hold")
    })?;
    Request::new(name).flags(FLAG_READONLY).target(sectors, &text).send(Command::TableLoad)?;
    key.map_or(Ok(()), ThreadKey::unlink)
}

impl VerityTable<'_> {
    fn text(&self, key: Option<&str>) -> String {
        let device = |(major, minor): (u32, u32)| format!("{major}:{minor}");
        let salt = match self.salt {
            [] => "-".to_owned(),
            salt => table::encode_hex(salt),
        };
        let mut text = format!(
            "1 {} {} 4096 4096 {} {} sha256 {} {salt}",
            device(self.data),
            device(self.hash),
            self.data_blocks,
            self.hash_start_block,
            table::encode_hex(self.root_hash),
        );
        if let Some(key) = key {
            text.push_str(&format!(" 2 {} {key}", table::SIGNATURE_OPTION));
        }
        text
    }
}

/// Removes a device by name.
///
/// # Errors
/// `NotFound`, or `Busy` for [`Removal::Now`] on an open device.
pub fn remove(name: &str, how: Removal) -> Result<()> {
    let flags = match how {
        Removal::Now => 0,
        Removal::Deferred => FLAG_DEFERRED_REMOVE,
    };
    Request::new(name).flags(flags).event(UDEV_DISABLED).send(Command::Remove).map(drop)
}

/// The active table of a device, one entry a target. Empty for a device without a table.
///
/// # Errors
/// `NotFound` for a device that is not device-mapper's.
pub fn table_of(major: u32, minor: u32) -> Result<Vec<Target>> {
    targets(major, minor, FLAG_STATUS_TABLE)
}

/// The state of the targets of a device's active table.
///
/// # Errors
/// `NotFound` for a device that is not device-mapper's.
pub fn status_of(major: u32, minor: u32) -> Result<Vec<Target>> {
    targets(major, minor, 0)
}

fn targets(major: u32, minor: u32, flags: u32) -> Result<Vec<Target>> {
    let answer =
        Request::of(major, minor).flags(flags | FLAG_NOFLUSH).send(Command::TableStatus)?;
    answer.targets()
}

/// The name and uuid of a device; the uuid is empty for a device without one.
///
/// # Errors
/// `NotFound` for a device that is not device-mapper's.
pub fn names_of(major: u32, minor: u32) -> Result<(String, String)> {
    let answer = Request::of(major, minor).flags(FLAG_NOFLUSH).send(Command::TableStatus)?;
    Ok((answer.text_at(48, 128)?, answer.text_at(176, 129)?))
}

/// Every device-mapper device, in the kernel's order.
///
/// # Errors
/// `NotFound` where the kernel has no device-mapper.
pub fn list() -> Result<Vec<Device>> {
    Request::new("").send(Command::ListDevices)?.devices()
}

fn control() -> Result<OwnedFd> {
    let call = || format!("open({CONTROL})");
    match rustix::fs::open(CONTROL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(control) => Ok(control),
        Err(errno) => Err(Error::call(call(), errno)),
    }
}

/// An ioctl to be made.
#[derive(Debug)]
struct Request {
    buffer: Vec<u8>,
    /// What the device is called in messages.
    object: String,
}

impl Request {
    /// On the device called `name`; on none if empty.
    fn new(name: &str) -> Self {
        let mut request = Self { buffer: vec![0; HEADER], object: name.to_owned() };
        request.put(0, &4u32.to_ne_bytes());
        request.put(16, &312u32.to_ne_bytes());
        request.put(48, name.as_bytes());
        request
    }

    /// On the device of that number.
    fn of(major: u32, minor: u32) -> Self {
        let mut request = Self::new("");
        // new_encode_dev(), 32 bits in a field of 64
        let dev = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        request.put(40, &u64::from(dev).to_ne_bytes());
        request.object = format!("{major}:{minor}");
        request
    }

    fn uuid(mut self, uuid: &str) -> Self {
        self.put(176, uuid.as_bytes());
        self
    }

    fn flags(mut self, flags: u32) -> Self {
        self.put(28, &flags.to_ne_bytes());
        self
    }

    fn event(mut self, event: u32) -> Self {
        self.put(32, &event.to_ne_bytes());
        self
    }

    /// One verity target from sector 0.
    fn target(mut self, sectors: u64, text: &str) -> Self {
        self.put(20, &1u32.to_ne_bytes());
        let mut spec = [0; SPEC];
        for (to, from) in spec.iter_mut().skip(8).zip(sectors.to_ne_bytes()) {
            *to = from;
        }
        for (to, from) in spec.iter_mut().skip(24).zip(*b"verity") {
            *to = from;
        }
        self.buffer.extend_from_slice(&spec);
        self.buffer.extend_from_slice(text.as_bytes());
        // a terminator, and the padding that the kernel expects before a next target
        self.buffer.resize((self.buffer.len() + 8) & !7, 0);
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.buffer.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// Makes the ioctl, again with more room while the kernel says that the answer did not fit.
    fn send(self, command: Command) -> Result<Answer> {
        let call = || format!("ioctl({CONTROL}, {command:?}, {})", self.object);
        self.fits().map_err(|why| Error::malformed(call(), why))?;
        let control = control()?;
        let mut room = self.buffer.len().max(ANSWER);
        loop {
            let mut answer = Answer { buffer: self.buffer.clone(), object: self.object.clone() };
            answer.buffer.resize(room, 0);
            let size = u32::try_from(room).unwrap_or(u32::MAX);
            for (to, from) in answer.buffer.iter_mut().skip(12).zip(size.to_ne_bytes()) {
                *to = from;
            }
            // SAFETY: every device-mapper ioctl reads and writes at most `data_size` bytes of its
            // argument (dm-ioctl.c, copy_params and ctl_ioctl), which is the buffer's length.
            let made = unsafe {
                ioctl::with_buffer(control.as_fd(), command.opcode(), &mut answer.buffer)
            };
            made.map_err(|errno| Error::call(call(), errno))?;
            if answer.u32_at(28) & FLAG_BUFFER_FULL == 0 {
                return Ok(answer);
            }
            room *= 4;
            if room > ANSWER_MAX {
                return Err(Error::call(call(), Errno::MSGSIZE));
            }
        }
    }

    /// Names are cut by `put`, so a long one must not get this far.
    fn fits(&self) -> std::result::Result<(), &'static str> {
        let terminated = |at: usize| self.buffer.get(at) == Some(&0);
        if terminated(48 + 127) && terminated(176 + 128) {
            return Ok(());
        }
        Err("a name has at most 127 bytes, a uuid 128")
    }
}

/// Reads any bytes as the kernel's answers: the targets of a device, and the list of devices.
#[cfg(fuzzing)]
pub fn answers(bytes: &[u8]) {
    let answer = Answer { buffer: bytes.to_vec(), object: String::new() };
    let _ = answer.device();
    for target in answer.targets().unwrap_or_default() {
        drop((target.verity(), target.verity_status()));
    }
    drop(answer.devices());
}

/// What the kernel wrote.
#[derive(Debug)]
struct Answer {
    buffer: Vec<u8>,
    object: String,
}

impl Answer {
    fn malformed(&self, why: &str) -> Error {
        Error::malformed(format!("answer of {CONTROL} about {}", self.object), why)
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.buffer.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    /// A field of the header, which is always there.
    fn u32_at(&self, at: usize) -> u32 {
        self.array(at).map_or(0, u32::from_ne_bytes)
    }

    /// The text of a field of the header or of the data: up to its NUL, within `room` bytes.
    fn text_at(&self, at: usize, room: usize) -> Result<String> {
        let bytes = self.buffer.get(at..).unwrap_or_default();
        let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        let text =
            std::ffi::CStr::from_bytes_until_nul(bytes).ok().and_then(|text| text.to_str().ok());
        text.map(str::to_owned).ok_or_else(|| self.malformed("a text without end or not UTF-8"))
    }

    fn device(&self) -> (u32, u32) {
        decode_dev(self.array(40).map_or(0, u64::from_ne_bytes))
    }

    /// `struct dm_target_spec` and text, `next` counted from the first one.
    fn targets(&self) -> Result<Vec<Target>> {
        let start = usize::try_from(self.u32_at(16)).unwrap_or(usize::MAX);
        let (mut at, mut least) = (start, start);
        let mut targets = Vec::new();
        for _ in 0..self.u32_at(20) {
            if at < least {
                return Err(self.malformed("a target that does not lie behind the one before it"));
            }
            let short = || self.malformed("a target beyond the end");
            let next =
                self.array(at.saturating_add(20)).map(u32::from_ne_bytes).ok_or_else(short)?;
            targets.push(Target {
                start_sector: self.array(at).map(u64::from_ne_bytes).ok_or_else(short)?,
                sectors: self.array(at + 8).map(u64::from_ne_bytes).ok_or_else(short)?,
                kind: self.text_at(at + 24, 16)?,
                text: self.text_at(at + SPEC, usize::MAX)?,
            });
            least = at.saturating_add(SPEC);
            at = start.saturating_add(usize::try_from(next).unwrap_or(usize::MAX));
        }
        Ok(targets)
    }

    /// `struct dm_name_list`: dev (8), next (4, from this entry), name.
    fn devices(&self) -> Result<Vec<Device>> {
        let mut at = usize::try_from(self.u32_at(16)).unwrap_or(usize::MAX);
        let mut devices = Vec::new();
        loop {
            let short = || self.malformed("a device beyond the end");
            let dev = self.array(at).map(u64::from_ne_bytes).ok_or_else(short)?;
            let next = self.array(at + 8).map(u32::from_ne_bytes).ok_or_else(short)?;
            if dev == 0 {
                return Ok(devices);
            }
            let (major, minor) = decode_dev(dev);
            devices.push(Device { name: self.text_at(at + 12, usize::MAX)?, major, minor });
            if next == 0 {
                return Ok(devices);
            }
            at = at.saturating_add(usize::try_from(next).unwrap_or(usize::MAX));
        }
    }
}

/// `new_decode_dev()`: twelve bits of major, twenty of minor.
pub(crate) fn decode_dev(dev: u64) -> (u32, u32) {
    let dev = u32::try_from(dev & 0xffff_ffff).unwrap_or(0);
    ((dev & 0x000f_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0x000f_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: VerityTable<'static> = VerityTable {
        data: (7, 2),
        hash: (7, 2),
        hash_start_block: 1408,
        data_blocks: 1407,
        root_hash: &[0xab; 32],
        salt: &[1, 2],
        signature: None,
    };

    #[test]
    fn a_table_we_write_is_one_we_read() {
        let read = VerityTarget::parse(&TABLE.text(None)).unwrap();
        assert_eq!(read.root_hash, [0xab; 32]);
        assert_eq!((read.data_blocks, read.hash_start, read.signed), (1407, 1408, false));
        let signed = VerityTarget::parse(&TABLE.text(Some("hallmark:x"))).unwrap();
        assert!(signed.signed && signed.options.is_empty());
        let unsalted = VerityTable { salt: &[], ..TABLE };
        assert!(unsalted.text(None).ends_with(" -"));
    }

    #[test]
    fn opcodes_are_those_of_the_header() {
        assert_eq!(Command::Version.opcode(), 0xc138_fd00);
        assert_eq!(Command::TableStatus.opcode(), 0xc138_fd0c);
    }

    #[test]
    fn device_numbers_survive_the_kernels_encoding() {
        for (major, minor) in [(253, 0), (253, 255), (253, 256), (7, 70_000), (4095, 1_048_575)] {
            let request = Request::of(major, minor);
            let answer = Answer { buffer: request.buffer, object: String::new() };
            assert_eq!(answer.device(), (major, minor));
        }
    }

    #[test]
    fn an_answer_of_several_targets_is_read_whole() {
        let request = Request::new("x").target(8, "V").target(16, "V -");
        let mut answer = Answer { buffer: request.buffer, object: "x".to_owned() };
        answer.buffer[20..24].copy_from_slice(&2u32.to_ne_bytes());
        // `next` of the first target: spec, "V", NUL, padding
        answer.buffer[HEADER + 20..HEADER + 24].copy_from_slice(&48u32.to_ne_bytes());
        let targets = answer.targets().unwrap();
        assert_eq!(targets.len(), 2);
        assert_eq!((targets[1].sectors, targets[1].text.as_str()), (16, "V -"));
        answer.buffer.truncate(HEADER + 60);
        assert!(answer.targets().is_err());
    }

    #[test]
    fn targets_that_lead_back_are_refused() {
        let request = Request::new("x").target(8, "V").target(16, "V -");
        let mut answer = Answer { buffer: request.buffer, object: "x".to_owned() };
        answer.buffer[20..24].copy_from_slice(&3u32.to_ne_bytes());
        answer.buffer[HEADER + 20..HEADER + 24].copy_from_slice(&0u32.to_ne_bytes());
        assert!(answer.targets().is_err());
    }

    #[test]
    fn the_list_of_devices_ends_where_the_kernel_says() {
        let entry = |dev: u64, next: u32, name: &str| {
            let mut bytes = dev.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&next.to_ne_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.resize(24, 0);
            bytes
        };
        let mut buffer = Request::new("").buffer;
        let none = Answer { buffer: [buffer.clone(), vec![0; 24]].concat(), object: String::new() };
        assert_eq!(none.devices().unwrap(), []);
        buffer.extend(entry(0xfd00, 24, "one"));
        buffer.extend(entry(0xfd01, 0, "two"));
        let devices = Answer { buffer, object: String::new() }.devices().unwrap();
        assert_eq!(devices.len(), 2);
        assert_eq!((devices[1].name.as_str(), devices[1].major, devices[1].minor), ("two", 253, 1));
    }

    #[test]
    fn a_name_too_long_is_refused_before_the_kernel_is_asked() {
        let error = remove(&"n".repeat(128), Removal::Now).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Malformed);
    }
}
