//! What is mounted in this mount namespace: `/proc/self/mountinfo`, as far as start-up needs it.
//!
//! One mount a line: `id parent MAJ:MIN root mount-point options [optional…] - type source super-options`, blanks,
//! tabs, line feeds and backslashes in paths as `\ooo`. Source: kernel Documentation/filesystems/proc.rst §3.5.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Error, Result};

const PATH: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// `MAJOR:MINOR` of its superblock.
    pub(crate) dev: String,
    /// The directory of its file system that it shows.
    pub(crate) root: PathBuf,
    /// Where it is.
    pub(crate) point: PathBuf,
    /// `erofs`, `overlay`, …
    pub(crate) kind: String,
}

/// Every mount, in the kernel's order: a later one at the same point covers the earlier.
pub(crate) fn read() -> Result<Vec<Mounted>> {
    let text = std::fs::read(PATH).map_err(Error::io(format!("read {PATH}")))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

pub(crate) fn parse(line: &[u8]) -> Option<Mounted> {
    let mut words = line.split(|byte| *byte == b' ');
    let dev = words.nth(2)?;
    let (root, point) = (unescape(words.next()?), unescape(words.next()?));
    words.by_ref().find(|word| *word == b"-")?;
    let text = |word: &[u8]| String::from_utf8(word.to_vec()).ok();
    Some(Mounted { dev: text(dev)?, root, point, kind: text(words.next()?)? })
}

fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        let octal = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes() {
        let line = b"36 35 253:3 / /run/hall\\040mark\\134/l/a1 ro,nodev shared:7 master:2 - erofs /dev/dm-3 ro";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.dev, "253:3");
        assert_eq!(mounted.root, PathBuf::from("/"));
        assert_eq!(mounted.point, PathBuf::from("/run/hall mark\\/l/a1"));
        assert_eq!(mounted.kind, "erofs");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 253:3 / /x ro"), None);
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(read().unwrap().iter().any(|mounted| mounted.point == Path::new("/")));
    }
}
