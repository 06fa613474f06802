//! The terminal of a process: made from the container's own devpts, its other end sent to whoever asked.
//!
//! The multiplexer and the terminal are opened once and proved to be what they should be; every later step works on
//! those descriptors (CVE-2025-52565).

use std::os::fd::{AsFd, OwnedFd};

use hallmark_sys::mount::Extent;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::root::Root;
use super::{Common, attach, rootfs};
use crate::error::{Context, Error, Result};
use crate::handshake;

/// `DEVPTS_SUPER_MAGIC` of <linux/magic.h>.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// A connected socket on which somebody waits for the terminal's other end.
#[derive(Debug)]
pub(crate) struct ConsoleSocket(pub(crate) OwnedFd);

/// The process' end of a terminal.
#[derive(Debug)]
pub(super) struct Terminal(OwnedFd);

/// Makes a terminal in the new container, also visible there as /dev/console.
pub(super) fn make(common: &Common<'_>, root: &Root, size: Option<(u16, u16)>) -> Result<Terminal> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW;
    let multiplexer = root.open("/dev/pts/ptmx", flags).context(|| "open /dev/pts/ptmx")?;
    let terminal = open(common, &multiplexer, size)?;
    let point = console_file(root)?;
    let tree = attach::clone_tree(terminal.0.as_fd(), Extent::Mount)?;
    attach::move_to(tree.as_fd(), point.as_fd()).context(|| "mount /dev/console")?;
    send(common, &multiplexer)?;
    Ok(terminal)
}

/// Makes a terminal for a process that `exec` adds.
pub(super) fn make_inside(common: &Common<'_>, size: Option<(u16, u16)>) -> Result<Terminal> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let multiplexer = rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())
        .context(|| "open /dev/pts/ptmx")?;
    let terminal = open(common, &multiplexer, size)?;
    send(common, &multiplexer)?;
    Ok(terminal)
}

fn open(common: &Common<'_>, multiplexer: &OwnedFd, size: Option<(u16, u16)>) -> Result<Terminal> {
    require_devpts(multiplexer, Some((5, 2))).context(|| "/dev/pts/ptmx")?;
    rustix::pty::unlockpt(multiplexer).context(|| "ioctl(TIOCSPTLCK)")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal =
        rustix::pty::ioctl_tiocgptpeer(multiplexer, flags).context(|| "ioctl(TIOCGPTPEER)")?;
    require_devpts(&terminal, None).context(|| "terminal")?;
    if let Some((rows, columns)) = size {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, size).context(|| "ioctl(TIOCSWINSZ)")?;
    }
    let user = &common.process.user;
    // the owner only: the group is the one that devpts was mounted with
    rustix::fs::fchown(&terminal, Some(Uid::from_raw(user.uid)), None::<Gid>)
        .context(|| "chown the terminal")?;
    Ok(Terminal(terminal))
}

fn require_devpts(fd: &OwnedFd, device: Option<(u32, u32)>) -> Result<()> {
    let magic = rustix::fs::fstatfs(fd).context(|| "fstatfs")?.f_type;
    let stat = rustix::fs::fstat(fd).context(|| "fstat")?;
    let right = u64::try_from(magic) == Ok(DEVPTS_MAGIC)
        && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && device.is_none_or(|(major, minor)| stat.st_rdev == rustix::fs::makedev(major, minor));
    if right {
        return Ok(());
    }
    Err(Error::spec(format!(
        "found a file on file system {magic:#x}, expected a terminal device of devpts"
    )))
}

/// An ordinary file to mount the terminal on; never what a link leads to.
fn console_file(root: &Root) -> Result<OwnedFd> {
    let (directory, name) = root.parent("/dev/console")?;
    let flags =
        OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => {}
        Err(rustix::io::Errno::NOENT) => {
            let mode = Mode::from_raw_mode(0o666);
            rustix::fs::openat(&directory, name, flags, mode).context(|| "create /dev/console")?;
        }
        Err(errno) => return Err(errno).context(|| "stat /dev/console"),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let point = rustix::fs::openat(&directory, name, flags, Mode::empty())
        .context(|| "open /dev/console")?;
    let mode = rustix::fs::fstat(&point).context(|| "fstat /dev/console")?.st_mode;
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile | FileType::CharacterDevice => Ok(point),
        other => {
            Err(Error::spec(format!("/dev/console: found {other:?}, expected a file or a device")))
        }
    }
}

fn send(common: &Common<'_>, multiplexer: &OwnedFd) -> Result<()> {
    let socket = common.console.as_ref();
    let socket = socket.ok_or_else(|| Error::spec("terminal: no console socket"))?;
    handshake::send_descriptor(socket.0.as_fd(), multiplexer.as_fd(), b"/dev/ptmx")
        .context(|| "send the console")
}

/// Makes the terminal the standard streams and the controlling terminal of this session.
pub(super) fn become_terminal(terminal: Terminal) -> Result<()> {
    for number in 0..3 {
        rootfs::put(terminal.0.as_fd(), number).context(|| "dup2 the terminal")?;
    }
    rustix::process::ioctl_tiocsctty(&terminal.0).context(|| "ioctl(TIOCSCTTY)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_of_devpts_is_taken() {
        let file = tempfile::tempfile().unwrap();
        let error = require_devpts(&OwnedFd::from(file), None).unwrap_err();
        assert!(error.to_string().contains("expected a terminal device"), "{error}");
    }
}
