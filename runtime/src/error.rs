//! The one error of this crate: a chain of objects, outermost first, and a kind for callers that act on it.

use std::fmt;

use rustix::io::Errno;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, from the operation down to the system call.
///
/// `Display` writes the whole chain as runc does: `outer: inner: cause`. Each link names an object.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    errno: Option<Errno>,
    source: Option<Box<Self>>,
}

/// What a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A container of that ID is there already.
    Exists,
    /// No container of that ID.
    NotFound,
    /// The container has no running process.
    NotRunning,
    /// The kernel does not execute the program that was found.
    Program,
    /// The gate said no: an answer, not a malfunction.
    Refused,
    /// config.json, process.json or resources.json asks for something that is wrong or not supported.
    Spec,
    /// The container is in another state than the operation needs.
    State,
    /// The kernel or the file system.
    System,
    /// The command line.
    Usage,
}

impl Error {
    /// An error with nothing beneath it.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), errno: None, source: None }
    }

    /// Something in a configuration file that is wrong or not supported.
    pub(crate) fn spec(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Spec, what)
    }

    /// An object of the system that is not as it must be.
    pub(crate) fn system(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::System, what)
    }

    /// The same with `what` in front; the kind stays.
    #[must_use]
    pub fn within(self, what: impl Into<String>) -> Self {
        let (kind, errno) = (self.kind, self.errno);
        Self { kind, what: what.into(), errno, source: Some(Box::new(self)) }
    }

    /// An answer of the kernel.
    fn kernel(what: String, errno: Option<Errno>) -> Self {
        Self { errno, ..Self::system(what) }
    }

    /// The kernel's answer, if one is the cause.
    pub(crate) fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            // the outermost link may be empty: the chain then starts with the next one
            Some(source) if self.what.is_empty() => write!(f, "{source}"),
            Some(source) => write!(f, "{}: {source}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for Error {}

/// Gives a failed call the name of the object it was about.
pub(crate) trait Context<T> {
    /// `what: cause`, computed only on failure.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().within(what()))
    }
}

macro_rules! system_error {
    ($($from:ty),+) => {$(
        impl From<$from> for Error {
            fn from(error: $from) -> Self {
                Self::system(error.to_string())
            }
        }
    )+};
}

system_error!(serde_json::Error);

/// The kernel's answer as Go writes it (`no such file or directory`): callers of runc match these words.
fn answer(errno: Errno) -> String {
    let text = match errno {
        // the C library here says less than the one Go took its words from
        Errno::BUSY => "device or resource busy".to_owned(),
        Errno::OPNOTSUPP => "operation not supported".to_owned(),
        errno => errno.to_string(),
    };
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let errno = Errno::from_io_error(&error);
        Self::kernel(errno.map_or_else(|| error.to_string(), answer), errno)
    }
}

impl From<hallmark_sys::Error> for Error {
    fn from(error: hallmark_sys::Error) -> Self {
        Self::kernel(call(&error), error.errno())
    }
}

/// The call, and the answer in the words above.
fn call(error: &hallmark_sys::Error) -> String {
    let text = error.to_string();
    let Some(errno) = error.errno() else { return text };
    match text.strip_suffix(&errno.to_string()) {
        Some(call) => format!("{call}{}", answer(errno)),
        None => text,
    }
}

impl From<crate::cgroup::Error> for Error {
    fn from(error: crate::cgroup::Error) -> Self {
        let mut text = error.to_string();
        let mut next = std::error::Error::source(&error);
        while let Some(cause) = next {
            let errno = cause.downcast_ref::<Errno>().copied().map(answer);
            let sys = cause.downcast_ref::<hallmark_sys::Error>().map(call);
            text = format!("{text}: {}", errno.or(sys).unwrap_or_else(|| cause.to_string()));
            next = cause.source();
        }
        Self::system(text)
    }
}

impl From<crate::seccomp::Error> for Error {
    fn from(error: crate::seccomp::Error) -> Self {
        Self::spec(error.to_string())
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::kernel(answer(errno), Some(errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_one_line_and_keeps_its_kind() {
        let cause: Result<()> = Err(Error::spec("it is empty"));
        let error = cause.context(|| "hostname").unwrap_err().within("config.json");
        assert_eq!(error.to_string(), "config.json: hostname: it is empty");
        assert_eq!(error.kind(), ErrorKind::Spec);
        let errno: std::result::Result<(), Errno> = Err(Errno::NOENT);
        let error = errno.context(|| "openat(rootfs, \"dev\")").unwrap_err();
        assert_eq!(error.to_string(), "openat(rootfs, \"dev\"): no such file or directory");
        assert_eq!(error.kind(), ErrorKind::System);
        assert_eq!(error.errno(), Some(Errno::NOENT));
    }

    #[test]
    fn the_kernels_answer_is_in_gos_words_whoever_passes_it_on() {
        let io = std::fs::File::open("/no/such").unwrap_err();
        assert_eq!(Error::from(io).to_string(), "no such file or directory");
        assert_eq!(Error::from(Errno::BUSY).to_string(), "device or resource busy");
        let sys = hallmark_sys::process::set_io_priority(-1).unwrap_err();
        assert!(Error::from(sys).to_string().ends_with("): invalid argument"));
        let cgroup = crate::cgroup::Error::Write {
            path: "/sys/fs/cgroup/cpu/x".into(),
            value: "9".into(),
            source: Errno::INVAL,
        };
        assert_eq!(
            Error::from(cgroup).to_string(),
            "write \"9\" to /sys/fs/cgroup/cpu/x: invalid argument"
        );
    }
}
