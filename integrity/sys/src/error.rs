//! The one error of this crate: a system call that prints itself with its arguments and keeps its errno.

use std::fmt;

use rustix::io::Errno;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong between us and the kernel.
///
/// Displays as the call with its arguments and the kernel's answer, for example
/// `ioctl(/dev/loop7, LOOP_CONFIGURE, block_size 4096): Resource busy (os error 16)`.
#[derive(Debug)]
pub struct Error {
    /// The call as it was made, or the object whose text was not understood.
    what: String,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    /// The kernel refused.
    Errno(Errno),
    /// The kernel answered something this crate does not understand, or a caller asked for
    /// something that no call can express.
    Malformed(String),
}

/// What a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// EBUSY, ETXTBSY: in use now, may be free later.
    Busy,
    /// EACCES, EPERM: permission or a security module.
    Denied,
    /// EEXIST: an object of that name is there.
    Exists,
    /// EIO: the data beneath is damaged or the device failed.
    Io,
    /// ENOKEY, EKEYREJECTED, EKEYEXPIRED, EKEYREVOKED: no key for, or a bad, signature.
    KeyRejected,
    /// Text or numbers that this crate does not understand or cannot express.
    Malformed,
    /// ENOENT, ENODEV, ENXIO, ESRCH: no such object.
    NotFound,
    /// Any other errno: see [`Error::errno`].
    Other,
    /// ENOSYS, EOPNOTSUPP, ENOTTY: the running kernel lacks it.
    Unsupported,
}

impl Error {
    /// `call` refused with `errno`; `call` is written as `name(arguments)`.
    pub(crate) fn call(call: impl Into<String>, errno: Errno) -> Self {
        Self { what: call.into(), cause: Cause::Errno(errno) }
    }

    /// `call` refused with the calling thread's current errno. For raw libc calls, at once after them.
    pub(crate) fn last(call: impl Into<String>) -> Self {
        let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Self::call(call, Errno::from_raw_os_error(raw))
    }

    /// `call` refused with what an [`std::io::Error`] holds; EIO when it holds no errno.
    pub(crate) fn io(call: impl Into<String>, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(raw) => Self::call(call, Errno::from_raw_os_error(raw)),
            None => Self::malformed(call, error.to_string()),
        }
    }

    /// `what` (an object or a call) is not as it must be, because of `why`.
    pub(crate) fn malformed(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), cause: Cause::Malformed(why.into()) }
    }

    /// The kernel's errno, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self.cause {
            Cause::Errno(errno) => Some(errno),
            Cause::Malformed(_) => None,
        }
    }

    /// The kind of failure, for callers that act on it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        let Cause::Errno(errno) = self.cause else { return ErrorKind::Malformed };
        match errno {
            Errno::BUSY | Errno::TXTBSY => ErrorKind::Busy,
            Errno::ACCESS | Errno::PERM => ErrorKind::Denied,
            Errno::EXIST => ErrorKind::Exists,
            Errno::IO => ErrorKind::Io,
            Errno::NOKEY | Errno::KEYREJECTED | Errno::KEYEXPIRED | Errno::KEYREVOKED => {
                ErrorKind::KeyRejected
            }
            Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::SRCH => ErrorKind::NotFound,
            Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTTY => ErrorKind::Unsupported,
            _ => ErrorKind::Other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Errno(errno) => write!(f, "{}: {errno}", self.what),
            Cause::Malformed(why) => write!(f, "{}: {why}", self.what),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_prints_itself_with_the_answer() {
        let error = Error::call("ioctl(/dev/loop7, LOOP_CONFIGURE)", Errno::BUSY);
        assert_eq!(
            error.to_string(),
            "ioctl(/dev/loop7, LOOP_CONFIGURE): Resource busy (os error 16)"
        );
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert_eq!(error.errno(), Some(Errno::BUSY));
    }

    #[test]
    fn the_errno_of_the_thread_is_kept() {
        let missing = std::fs::File::open("/proc/self/no-such-file").unwrap_err();
        let error = Error::io("open(/proc/self/no-such-file)", &missing);
        assert_eq!(error.kind(), ErrorKind::NotFound);
        rustix::fs::open("/proc/self/no-such-file", rustix::fs::OFlags::RDONLY, 0.into())
            .unwrap_err();
        assert_eq!(Error::last("open").errno(), Some(Errno::NOENT));
    }

    #[test]
    fn text_that_is_not_understood_has_no_errno() {
        let error = Error::malformed("table of 253:0", "argument 3 is \"x\", not a number");
        assert_eq!(error.errno(), None);
        assert_eq!(error.kind(), ErrorKind::Malformed);
    }
}
