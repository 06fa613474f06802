//! The two shapes of ioctl this crate makes: a buffer that the kernel reads and writes, and a plain number.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

/// `ioctl(fd, opcode, buffer)`; what the kernel writes is found in `buffer`. Returns the call's own value.
///
/// # Safety
/// For `opcode` on the driver behind `fd` the kernel must read and write no more than
/// `buffer.len()` bytes at the address given, and keep no pointer to it.
pub(crate) unsafe fn with_buffer(
    fd: BorrowedFd<'_>,
    opcode: u32,
    buffer: &mut [u8],
) -> Result<i32, Errno> {
    let call = Call { opcode, argument: buffer.as_mut_ptr().cast() };
    // SAFETY: the pointer is valid for `buffer.len()` bytes for the time of the call, and the
    // caller promises that this opcode touches no more.
    unsafe { rustix::ioctl::ioctl(fd, call) }
}

/// `ioctl(fd, opcode, number)`, for opcodes whose argument is a number. Returns the call's own value.
///
/// # Safety
/// For `opcode` on the driver behind `fd` the kernel must take the argument as a number, not as an
/// address.
pub(crate) unsafe fn with_number(
    fd: BorrowedFd<'_>,
    opcode: u32,
    number: usize,
) -> Result<i32, Errno> {
    let call = Call { opcode, argument: std::ptr::without_provenance_mut(number) };
    // SAFETY: the caller promises that the argument is not dereferenced.
    unsafe { rustix::ioctl::ioctl(fd, call) }
}

struct Call {
    opcode: u32,
    argument: *mut c_void,
}

// SAFETY: opcode and argument are passed through unchanged, and the output is the call's return
// value, which reads no memory; what the argument may be is the contract of the two functions above.
unsafe impl Ioctl for Call {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}
