//! Device control by eBPF (cgroup v2): programs of type `CGROUP_DEVICE` loaded, attached, asked for and detached.
//!
//! A cgroup may carry up to 64 such programs (`BPF_F_ALLOW_MULTI`); an access must pass those of the cgroup and of
//! all its parents. Who may call bpf(2) can also detach: rules hold against a container only if they sit on a cgroup
//! that it cannot open.
//!
//! Source: bpf(2); include/uapi/linux/bpf.h, `union bpf_attr`; kernel/bpf/cgroup.c.

use std::ffi::c_long;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::{Error, Result};

/// One instruction of eBPF, as the kernel lays out `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination in the low, source in the high four bits (little endian machines).
    pub registers: u8,
    /// Jump or memory offset.
    pub off: i16,
    /// Immediate value.
    pub imm: i32,
}

const PROG_LOAD: c_long = 5;
const PROG_ATTACH: c_long = 8;
const PROG_DETACH: c_long = 9;
const PROG_GET_FD_BY_ID: c_long = 13;
const OBJ_GET_INFO_BY_FD: c_long = 15;
const PROG_QUERY: c_long = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
/// `BPF_CGROUP_MAX_PROGS` of kernel/bpf/cgroup.c.
const MAX_PROGRAMS: u32 = 64;
const NAME_LEN: usize = 16;

/// A loaded device program. Closing it does not detach it.
#[derive(Debug)]
pub struct DeviceProgram(OwnedFd);

/// What the kernel calls a program: a digest of its instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag([u8; 8]);

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_LEN],
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Long enough for `revision`, which kernels 6.17 to 7.1 write whatever size they are told.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
}

impl ProgInfo {
    /// What the kernel is told; it fills no more.
    const LEN: u32 = 16;
}

/// `GET_FD_BY_ID`: the kernel zero-fills what lies beyond.
#[repr(C)]
#[derive(Default)]
struct IdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// An attribute struct of bpf(2): plain integers, laid out as the kernel reads them.
trait Attr {}
impl Attr for LoadAttr {}
impl Attr for AttachAttr {}
impl Attr for QueryAttr {}
impl Attr for InfoAttr {}
impl Attr for IdAttr {}

impl DeviceProgram {
    /// Has the kernel check and load `program` under `name` (at most 15 bytes are kept).
    ///
    /// # Errors
    /// EPERM without CAP_BPF and CAP_NET_ADMIN or where bpf(2) is closed; EINVAL and EACCES from the verifier, then
    /// with the verifier's own words; E2BIG.
    pub fn load(name: &str, program: &[Instruction]) -> Result<Self> {
        let license = c"Apache-2.0";
        let mut attr = LoadAttr {
            prog_type: PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: u32::try_from(program.len()).unwrap_or(u32::MAX),
            insns: program.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            ..LoadAttr::default()
        };
        for (to, from) in attr.prog_name[..NAME_LEN - 1].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        match bpf_fd(PROG_LOAD, &mut attr) {
            Ok(fd) => Ok(Self(fd)),
            Err(errno @ (Errno::INVAL | Errno::ACCESS)) => Err(verifier_words(attr, errno)),
            Err(errno) => Err(Error::call(
                format!("bpf(PROG_LOAD, CGROUP_DEVICE, {} instructions)", program.len()),
                errno,
            )),
        }
    }

    /// Adds the program to `cgroup`, beside those that are there.
    ///
    /// # Errors
    /// EPERM if `cgroup` carries a program attached without ALLOW_MULTI; E2BIG with 64 there; EBADF if `cgroup` is
    /// not a directory of cgroup v2.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<()> {
        let mut attr = AttachAttr {
            target_fd: number(cgroup),
            attach_bpf_fd: number_of(&self.0),
            attach_type: ATTACH_CGROUP_DEVICE,
            attach_flags: ALLOW_MULTI,
        };
        bpf(PROG_ATTACH, &mut attr)
            .map(drop)
            .map_err(|errno| Error::call("bpf(PROG_ATTACH, CGROUP_DEVICE, ALLOW_MULTI)", errno))
    }

    /// Takes the program off `cgroup`.
    ///
    /// # Errors
    /// ENOENT if it is not attached there.
    pub fn detach(&self, cgroup: BorrowedFd<'_>) -> Result<()> {
        let mut attr = AttachAttr {
            target_fd: number(cgroup),
            attach_bpf_fd: number_of(&self.0),
            attach_type: ATTACH_CGROUP_DEVICE,
            attach_flags: 0,
        };
        bpf(PROG_DETACH, &mut attr)
            .map(drop)
            .map_err(|errno| Error::call("bpf(PROG_DETACH, CGROUP_DEVICE)", errno))
    }

    /// The digest of the program's instructions: two programs of one tag do the same.
    ///
    /// # Errors
    /// What bpf(2) answers.
    pub fn tag(&self) -> Result<Tag> {
        let mut info = ProgInfo::default();
        let mut attr = InfoAttr {
            bpf_fd: number_of(&self.0),
            info_len: ProgInfo::LEN,
            info: (&raw mut info).expose_provenance() as u64,
        };
        bpf(OBJ_GET_INFO_BY_FD, &mut attr)
            .map_err(|errno| Error::call("bpf(OBJ_GET_INFO_BY_FD)", errno))?;
        Ok(Tag(info.tag))
    }
}

/// The device programs attached to `cgroup` itself (not its parents), first attached first.
///
/// Programs that a security module hides from us are left out: they can only take rights away.
///
/// # Errors
/// What bpf(2) answers; EBADF if `cgroup` is not a directory of cgroup v2.
pub fn attached_device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<DeviceProgram>> {
    let mut ids = [0_u32; MAX_PROGRAMS as usize];
    let mut attr = QueryAttr {
        target_fd: number(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: MAX_PROGRAMS,
        ..QueryAttr::default()
    };
    bpf(PROG_QUERY, &mut attr)
        .map_err(|errno| Error::call("bpf(PROG_QUERY, CGROUP_DEVICE)", errno))?;
    let mut found = Vec::new();
    for id in ids.iter().take(attr.prog_cnt as usize) {
        let mut attr = IdAttr { prog_id: *id, ..IdAttr::default() };
        match bpf_fd(PROG_GET_FD_BY_ID, &mut attr) {
            Ok(fd) => found.push(DeviceProgram(fd)),
            // gone since the query, or not ours to see
            Err(Errno::NOENT | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(Error::call(format!("bpf(PROG_GET_FD_BY_ID, {id})"), errno)),
        }
    }
    Ok(found)
}

/// Loads once more with the verifier's log on, for the error's text.
fn verifier_words(mut attr: LoadAttr, errno: Errno) -> Error {
    let call = format!("bpf(PROG_LOAD, CGROUP_DEVICE, {} instructions)", attr.insn_cnt);
    let mut log = vec![0_u8; 64 * 1024];
    attr.log_level = 1;
    attr.log_size = 64 * 1024;
    attr.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    // the second load is for its log alone: if it succeeds the descriptor is closed again
    drop(bpf_fd(PROG_LOAD, &mut attr));
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let words = String::from_utf8_lossy(&log[..end]);
    match words.trim() {
        "" => Error::call(call, errno),
        words => Error::malformed(call, format!("{errno}: {words}")),
    }
}

/// `bpf_attr` holds descriptors as unsigned numbers; an open one is never negative.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn number_of(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn bpf_fd<A: Attr>(command: c_long, attr: &mut A) -> std::result::Result<OwnedFd, Errno> {
    let fd = bpf(command, attr)?;
    // SAFETY: PROG_LOAD and PROG_GET_FD_BY_ID, the only commands passed here, return a new descriptor that nobody
    // else holds.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<A: Attr>(command: c_long, attr: &mut A) -> std::result::Result<i32, Errno> {
    // SAFETY: `attr` is one of the repr(C) structs above, exclusively borrowed and of the size passed; addresses in
    // it were taken by the callers from live slices and structs that outlive the call, of the lengths beside them.
    let returned =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    match i32::try_from(returned) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(Errno::from_raw_os_error(
            std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct bpf_insn` and the attribute offsets of include/uapi/linux/bpf.h.
    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(std::mem::offset_of!(LoadAttr, log_buf), 32);
        assert_eq!(std::mem::offset_of!(LoadAttr, prog_name), 48);
        assert_eq!(std::mem::offset_of!(AttachAttr, attach_flags), 12);
        assert_eq!(std::mem::offset_of!(QueryAttr, prog_cnt), 24);
        assert_eq!(std::mem::offset_of!(QueryAttr, revision), 56);
        assert_eq!(std::mem::offset_of!(InfoAttr, info), 8);
        assert_eq!(std::mem::offset_of!(ProgInfo, tag), 8);
        assert_eq!(size_of::<ProgInfo>(), ProgInfo::LEN as usize);
    }

    /// Where bpf(2) is open (the guest) a program loads and has a tag of its own; where it is closed the refusal
    /// names the call.
    #[test]
    fn a_program_loads_or_the_refusal_names_the_call() {
        let answer = |imm| {
            [
                Instruction { code: 0xb7, registers: 0, off: 0, imm },
                Instruction { code: 0x95, registers: 0, off: 0, imm: 0 },
            ]
        };
        match DeviceProgram::load("hallmark_test", &answer(0)) {
            Ok(deny) => {
                let again = DeviceProgram::load("another_name", &answer(0)).unwrap();
                let allow = DeviceProgram::load("hallmark_test", &answer(1)).unwrap();
                assert_eq!(deny.tag().unwrap(), again.tag().unwrap());
                assert_ne!(deny.tag().unwrap(), allow.tag().unwrap());
            }
            Err(error) => {
                assert_eq!(error.kind(), crate::ErrorKind::Denied, "{error}");
                assert!(error.to_string().contains("PROG_LOAD"), "{error}");
            }
        }
    }
}
