//! A written-to directory as a layer tar: for clients that commit without an Apply.
//!
//! overlayfs's way of hiding becomes the tar's: a character device 0:0 is the whiteout `.wh.<name>`, a directory with
//! `trusted.overlay.opaque=y` gets an entry `.wh..wh..opq`; every other attribute of overlayfs's own is left out.
//! Entries come in the order of their names' bytes, each behind one PAX header that holds whatever ustar cannot
//! (POSIX.1-2017 pax, "pax Header Block"; attributes as `SCHILY.xattr.<name>`).
//!
//! A container may still run in the directory and swap what is read for something else, so nothing is opened by path
//! twice: every entry is a descriptor, opened beneath its directory's without following links.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};

use crate::error::{Error, Result};

const BLOCK: usize = 512;
const OVERLAY: &[u8] = b"trusted.overlay.";
/// Directories inside each other: each level keeps two descriptors and a piece of the stack, and a container makes as
/// many as it likes. The packer takes twice as many.
const MAX_DEPTH: usize = 256;

/// Writes the tar of an upper directory, end of archive included.
pub(crate) fn write_tar(upper: &Path, tar: impl Write) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(upper, flags, Mode::empty())
        .map_err(Error::errno(format!("open {}", upper.display())))?;
    let mut writer = Writer { tar, upper: upper.to_owned(), links: HashMap::new() };
    writer.entry(root, Path::new("."))?;
    writer.put(&[0; 2 * BLOCK])
}

/// Whether a directory holds nothing.
pub(crate) fn is_empty(directory: &Path) -> Result<bool> {
    let mut entries =
        std::fs::read_dir(directory).map_err(Error::io(format!("list {}", directory.display())))?;
    Ok(entries.next().is_none())
}

struct Writer<W> {
    tar: W,
    upper: PathBuf,
    /// Where an inode with several names was first met.
    links: HashMap<u64, PathBuf>,
}

impl<W: Write> Writer<W> {
    fn entry(&mut self, entry: OwnedFd, path: &Path) -> Result<()> {
        let stat = rustix::fs::fstat(&entry).map_err(self.errno("stat", path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return self.marker(&whiteout(path));
        }
        let xattrs = self.xattrs(&entry, path)?;
        let mut pax = Pax::of(&stat);
        for (name, value) in &xattrs.kept {
            pax.record(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if stat.st_nlink > 1 && kind != FileType::Directory {
            if let Some(first) = self.links.get(&stat.st_ino) {
                pax.record(b"linkpath", first.as_os_str().as_bytes());
                return self.header(pax, path, b'1', &stat);
            }
            self.links.insert(stat.st_ino, path.to_owned());
        }
        match kind {
            FileType::Directory => {
                self.header(pax, path, b'5', &stat)?;
                if xattrs.opaque {
                    self.marker(&path.join(".wh..wh..opq"))?;
                }
                self.children(&entry, path)
            }
            FileType::RegularFile => self.file(pax, &entry, path, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&entry, "", Vec::new());
                let target = target.map_err(self.errno("readlink", path))?;
                pax.record(b"linkpath", target.as_bytes());
                self.header(pax, path, b'2', &stat)
            }
            FileType::CharacterDevice => self.header(pax, path, b'3', &stat),
            FileType::BlockDevice => self.header(pax, path, b'4', &stat),
            FileType::Fifo => self.header(pax, path, b'6', &stat),
            // tar has no sockets, and a socket without its process is of no use
            _ => Ok(()),
        }
    }

    fn children(&mut self, directory: &OwnedFd, path: &Path) -> Result<()> {
        if path.components().count() > MAX_DEPTH {
            let found = "more than 256 directories inside each other";
            return Err(Error::Untarable { path: self.upper.join(path), found });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = rustix::fs::openat(directory, ".", flags, Mode::empty())
            .map_err(self.errno("open", path))?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&readable).map_err(self.errno("list", path))? {
            let name = entry.map_err(self.errno("list", path))?.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for name in names {
            let child = path.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
            if name.as_bytes().starts_with(b".wh.") {
                let found = "a name that begins with \".wh.\"";
                return Err(Error::Untarable { path: self.upper.join(child), found });
            }
            match rustix::fs::openat(&readable, &name, flags, Mode::empty()) {
                // gone since it was listed
                Err(rustix::io::Errno::NOENT) => {}
                opened => self.entry(opened.map_err(self.errno("open", &child))?, &child)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, mut pax: Pax, entry: &OwnedFd, path: &Path, stat: &Stat) -> Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        pax.record(b"size", size.to_string().as_bytes());
        self.header(pax, path, b'0', stat)?;
        // the magic link of a descriptor leads to its own inode
        let file = File::open(format!("/proc/self/fd/{}", entry.as_raw_fd()))
            .map_err(self.io("open", path))?;
        let written =
            io::copy(&mut file.take(size), &mut self.tar).map_err(self.io("read", path))?;
        // shorter than it was a moment ago: the header stands, as GNU tar has it
        let padded = size.next_multiple_of(512).saturating_sub(written);
        io::copy(&mut io::repeat(0).take(padded), &mut self.tar).map_err(self.io("read", path))?;
        Ok(())
    }

    /// An empty file whose name is its meaning.
    fn marker(&mut self, path: &Path) -> Result<()> {
        let mut pax = Pax::default();
        pax.record(b"path", path.as_os_str().as_bytes());
        self.headers(&pax, &Fields { kind: b'0', ..Fields::default() })
    }

    fn header(&mut self, mut pax: Pax, path: &Path, kind: u8, stat: &Stat) -> Result<()> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == b'5' {
            name.push(b'/');
        }
        pax.record(b"path", &name);
        let size = if kind == b'0' { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        let device = matches!(kind, b'3' | b'4').then_some(stat.st_rdev);
        self.headers(&pax, &Fields { kind, mode: stat.st_mode & 0o7777, size, device })
    }

    fn headers(&mut self, pax: &Pax, fields: &Fields) -> Result<()> {
        let length = pax.0.len();
        let size = u64::try_from(length).unwrap_or(u64::MAX);
        self.put(&ustar(&Fields { kind: b'x', mode: 0o644, size, device: None }))?;
        self.put(&pax.0)?;
        let padding = [0; BLOCK];
        self.put(padding.get(..length.next_multiple_of(BLOCK) - length).unwrap_or_default())?;
        self.put(&ustar(fields))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.tar.write_all(bytes).map_err(Error::io("write layer tar"))
    }

    fn xattrs(&self, entry: &OwnedFd, path: &Path) -> Result<Xattrs> {
        let magic = format!("/proc/self/fd/{}", entry.as_raw_fd());
        let mut found = Xattrs::default();
        match rustix::fs::listxattr(&magic, &mut [0_u8; 1]) {
            // nearly every file of nearly every layer
            Ok(0) | Err(rustix::io::Errno::OPNOTSUPP) => return Ok(found),
            // there are some, and one byte holds no name
            Ok(_) | Err(rustix::io::Errno::RANGE) => {}
            Err(errno) => return Err(self.errno("listxattr", path)(errno)),
        }
        let mut names = vec![0; 64 << 10];
        let length =
            rustix::fs::listxattr(&magic, &mut names).map_err(self.errno("listxattr", path))?;
        let names = names.get(..length).unwrap_or_default();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::getxattr(&magic, name, &mut value)
                .map_err(self.errno("getxattr", path))?;
            value.truncate(length);
            match name.strip_prefix(OVERLAY) {
                None => found.kept.push((name.to_vec(), value)),
                Some(b"opaque") => found.opaque = value == b"y",
                Some(b"redirect" | b"metacopy") => {
                    let found = "content that overlayfs takes from another place";
                    return Err(Error::Untarable { path: self.upper.join(path), found });
                }
                Some(_) => {}
            }
        }
        found.kept.sort();
        Ok(found)
    }

    fn errno(&self, call: &str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Error + use<W> {
        Error::errno(format!("{call} {}", self.upper.join(path).display()))
    }

    fn io(&self, call: &str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<W> {
        Error::io(format!("{call} {}", self.upper.join(path).display()))
    }
}

/// What an entry's extended attributes say.
#[derive(Debug, Default)]
struct Xattrs {
    /// Names and values in the order of the names, without overlayfs's own.
    kept: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether overlayfs takes the directory for opaque.
    opaque: bool,
}

/// `a/b` to `a/.wh.b`.
fn whiteout(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".wh.");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Records of one PAX header: `<length> <key>=<value>\n`, the length counting itself.
#[derive(Debug, Default)]
struct Pax(Vec<u8>);

impl Pax {
    fn of(stat: &Stat) -> Self {
        let mut pax = Self::default();
        pax.record(b"uid", stat.st_uid.to_string().as_bytes());
        pax.record(b"gid", stat.st_gid.to_string().as_bytes());
        let time = format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
        // negative seconds with a fraction: the fraction counts from below, the text from above
        let whole = stat.st_mtime < 0 || stat.st_mtime_nsec == 0;
        let time = if whole { stat.st_mtime.to_string() } else { time };
        pax.record(b"mtime", time.as_bytes());
        pax
    }

    fn record(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// What a ustar header holds that no PAX record overrides.
#[derive(Debug, Default)]
struct Fields {
    kind: u8,
    mode: u32,
    size: u64,
    device: Option<u64>,
}

/// Name and link target are in the PAX header before; ustar's are place holders.
fn ustar(fields: &Fields) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in header.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, b"pax");
    put(100, format!("{:07o}", fields.mode).as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    // what does not fit eleven octal digits is in the PAX header
    put(124, format!("{:011o}", fields.size.min(0o777_7777_7777)).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[fields.kind]);
    put(257, b"ustar\0");
    put(263, b"00");
    if let Some(device) = fields.device {
        put(329, format!("{:07o}", rustix::fs::major(device)).as_bytes());
        put(337, format!("{:07o}", rustix::fs::minor(device)).as_bytes());
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    for (to, from) in header.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *to = from;
    }
    header
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::process::Command;

    use rustix::fs::{CWD, XattrFlags, makedev, mknodat, setxattr};

    use super::*;

    /// An upper as overlayfs leaves it: a whiteout, an opaque directory, links, devices, attributes.
    fn upper(directory: &Path) -> PathBuf {
        let upper = directory.join("upper");
        let long = "n".repeat(200);
        std::fs::create_dir_all(upper.join("opaque").join(&long)).unwrap();
        std::fs::write(upper.join("opaque/file"), vec![7; 1000]).unwrap();
        std::fs::write(upper.join("opaque").join(&long).join("deep"), "deep").unwrap();
        std::fs::hard_link(upper.join("opaque/file"), upper.join("a-link")).unwrap();
        symlink("../t".repeat(60), upper.join("symlink")).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        let device = |name: &str, number| {
            mknodat(CWD, upper.join(name), FileType::CharacterDevice, mode, number).unwrap();
        };
        device("gone", makedev(0, 0));
        device("null", makedev(1, 3));
        mknodat(CWD, upper.join("fifo"), FileType::Fifo, mode, 0).unwrap();
        let set = |name: &str, attribute: &str, value: &[u8]| {
            setxattr(upper.join(name), attribute, value, XattrFlags::empty()).unwrap();
        };
        set("opaque", "trusted.overlay.opaque", b"y");
        set("opaque/file", "user.note", b"line\nnul\0end");
        set("opaque/file", "trusted.overlay.origin", b"x");
        upper
    }

    fn tar_of(upper: &Path) -> Vec<u8> {
        let mut tar = Vec::new();
        write_tar(upper, &mut tar).unwrap();
        assert_eq!(tar, {
            let mut again = Vec::new();
            write_tar(upper, &mut again).unwrap();
            again
        });
        tar
    }

    #[test]
    fn gnu_tar_reads_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let upper = upper(directory.path());
        let (tar, out) = (directory.path().join("tar"), directory.path().join("out"));
        std::fs::write(&tar, tar_of(&upper)).unwrap();
        std::fs::create_dir(&out).unwrap();
        let status = Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "-xpf"])
            .arg(&tar)
            .arg("-C")
            .arg(&out)
            .status();
        assert!(status.unwrap().success());
        let meta = |name: &str| std::fs::symlink_metadata(out.join(name)).unwrap();
        let was = |name: &str| std::fs::symlink_metadata(upper.join(name)).unwrap();
        for name in ["opaque", "opaque/file", "null", "fifo", "symlink"] {
            assert_eq!(meta(name).mode(), was(name).mode(), "{name}");
            assert_eq!(meta(name).rdev(), was(name).rdev(), "{name}");
        }
        for name in ["opaque/file", "null"] {
            let (found, expected) = (meta(name), was(name));
            assert_eq!(
                (found.mtime(), found.mtime_nsec()),
                (expected.mtime(), expected.mtime_nsec())
            );
        }
        assert_eq!(meta("opaque/file").ino(), meta("a-link").ino());
        assert_eq!(std::fs::read(out.join("opaque/file")).unwrap(), vec![7; 1000]);
        assert_eq!(
            std::fs::read(out.join("opaque").join("n".repeat(200)).join("deep")).unwrap(),
            b"deep"
        );
        assert_eq!(
            std::fs::read_link(out.join("symlink")).unwrap(),
            std::fs::read_link(upper.join("symlink")).unwrap()
        );
        for marker in [".wh.gone", "opaque/.wh..wh..opq"] {
            assert_eq!(meta(marker).len(), 0, "{marker}");
        }
        assert!(std::fs::symlink_metadata(out.join("gone")).is_err());
        let file = out.join("opaque/file");
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(&file, "user.note", &mut value).unwrap();
        assert_eq!(&value[..length], b"line\nnul\0end");
        assert!(rustix::fs::getxattr(&file, "trusted.overlay.origin", &mut value).is_err());
    }

    #[test]
    fn what_a_tar_cannot_tell_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let upper = upper(directory.path());
        setxattr(upper.join("opaque"), "trusted.overlay.redirect", b"/x", XattrFlags::empty())
            .unwrap();
        let refused = write_tar(&upper, io::sink()).unwrap_err();
        assert!(matches!(refused, Error::Untarable { .. }), "{refused}");
        let other = directory.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join(".wh.real"), "").unwrap();
        assert!(matches!(write_tar(&other, io::sink()).unwrap_err(), Error::Untarable { .. }));
    }

    #[test]
    fn a_pax_record_counts_itself() {
        for length in [1, 80, 92, 93, 990, 991] {
            let mut pax = Pax::default();
            pax.record(b"k", &vec![b'v'; length]);
            let text = String::from_utf8(pax.0.clone()).unwrap();
            let stated: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(stated, pax.0.len());
        }
    }

    #[test]
    fn a_directory_deeper_than_any_layer_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(directory.path(), flags, Mode::empty()).unwrap();
        let mut here = top;
        for _ in 0..2000 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, "d", flags, Mode::empty()).unwrap();
        }
        let error = write_tar(directory.path(), std::io::sink()).unwrap_err();
        assert!(error.to_string().contains("more than 256 directories"), "{error}");
        crate::removal::remove_tree(&directory.path().join("d")).unwrap();
    }
}
