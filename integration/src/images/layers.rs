//! Layer tars: what one root file system adds to another, and small ones written by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tar::{Archive, Builder, EntryType, Header};

use crate::cache::sha256;

/// The time of every entry that is made here.
const TIME: u64 = 1_764_000_000;

/// Every entry of a root file system's tar, as a layer.
pub(crate) fn whole(tar: &Path) -> Result<Vec<u8>> {
    rewrite(tar, &|_| true)
}

/// The first entries of a tar that fit into `limit` bytes, as a layer.
pub(crate) fn until(tar: &Path, limit: usize) -> Result<Vec<u8>> {
    let mut end = 0;
    for entry in open(tar)?.entries()? {
        let entry = entry?;
        let padded = (entry.raw_file_position() + entry.size()).next_multiple_of(512);
        if padded + 1024 > limit as u64 {
            break;
        }
        end = padded;
    }
    let mut bytes = Vec::new();
    File::open(tar)?.take(end).read_to_end(&mut bytes)?;
    bytes.resize(bytes.len() + 1024, 0);
    Ok(bytes)
}

/// The entries of `upper` that `lower` lacks or has otherwise, and whiteouts for those that are
/// gone. A hard link brings the file it links to along.
pub(crate) fn difference(lower: &Path, upper: &Path) -> Result<Vec<u8>> {
    let (lower, uppers) = (pictures(lower)?, pictures(upper)?);
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    for (name, picture) in &uppers {
        if lower.get(name).is_none_or(|old| old.look != picture.look) {
            wanted.insert(name);
            wanted.extend(picture.links_to.as_deref());
        }
    }
    let mut tar = rewrite(upper, &|name| wanted.contains(name))?;
    let gone: Vec<&String> = lower
        .keys()
        .filter(|name| !uppers.contains_key(*name))
        .filter(|name| parent(name).is_none_or(|above| uppers.contains_key(above)))
        .collect();
    if gone.is_empty() {
        return Ok(tar);
    }
    // the end of a tar is two zero blocks: whiteouts go before them
    tar.truncate(tar.len().saturating_sub(1024));
    let mut writer = Hand { out: Builder::new(tar) };
    for name in gone {
        let (above, last) = name.rsplit_once('/').unwrap_or(("", name));
        writer.file(format!("{above}/.wh.{last}").trim_start_matches('/'), 0o644, b"")?;
    }
    writer.finish()
}

/// What tells two entries apart.
struct Picture {
    look: String,
    links_to: Option<String>,
}

fn pictures(tar: &Path) -> Result<BTreeMap<String, Picture>> {
    let mut all = BTreeMap::new();
    let mut archive = open(tar)?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(name) = name_of(&entry.path()?) else { continue };
        let header = entry.header();
        let target = entry.link_name()?.map(|t| t.to_string_lossy().into_owned());
        let is_link = header.entry_type() == EntryType::Link;
        let mut look = format!(
            "{:?} {:o} {} {} {} {target:?}",
            header.entry_type(),
            header.mode()?,
            header.uid()?,
            header.gid()?,
            if header.entry_type() == EntryType::Directory { 0 } else { header.mtime()? },
        );
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        look.push_str(&sha256(&bytes));
        let links_to = target.filter(|_| is_link).and_then(|t| name_of(Path::new(&t)));
        all.insert(name, Picture { look, links_to });
    }
    Ok(all)
}

/// Copies the wanted entries, names without a leading `./`, extended attributes kept.
fn rewrite(tar: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    let mut archive = open(tar)?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(name) = name_of(&entry.path()?) else { continue };
        if !wanted(&name) {
            continue;
        }
        let mut attributes = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let key = extension.key().context("a pax key is no text")?.to_owned();
                if key.starts_with("SCHILY.xattr.") {
                    attributes.push((key, extension.value_bytes().to_vec()));
                }
            }
        }
        out.append_pax_extensions(
            attributes.iter().map(|(key, value)| (key.as_str(), value.as_slice())),
        )?;
        let mut header = entry.header().clone();
        let target = entry.link_name()?.map(|t| t.into_owned());
        match (header.entry_type(), target) {
            (EntryType::Link, Some(target)) => {
                let target = name_of(&target).context("a hard link to the root")?;
                out.append_link(&mut header, &name, target)?;
            }
            (EntryType::Symlink, Some(target)) => out.append_link(&mut header, &name, target)?,
            _ => out.append_data(&mut header, &name, &mut entry)?,
        }
    }
    Ok(out.into_inner()?)
}

fn open(tar: &Path) -> Result<Archive<BufReader<File>>> {
    let file = File::open(tar).with_context(|| format!("open {}", tar.display()))?;
    Ok(Archive::new(BufReader::new(file)))
}

/// Files that the building machine put into the root file system for itself.
const OF_THIS_MACHINE: [&str; 2] = ["etc/hostname", "etc/resolv.conf"];

/// `usr/bin/x` of `./usr/bin/x` or `usr/bin/x/`; nothing for the root itself.
fn name_of(path: &Path) -> Option<String> {
    let text = path.to_string_lossy();
    let name = text.trim_start_matches("./").trim_matches('/');
    let is_wanted = !name.is_empty() && name != "." && !OF_THIS_MACHINE.contains(&name);
    is_wanted.then(|| name.to_owned())
}

fn parent(name: &str) -> Option<&str> {
    name.rsplit_once('/').map(|(above, _)| above)
}

/// A layer written entry by entry.
pub(crate) struct Hand {
    out: Builder<Vec<u8>>,
}

impl Hand {
    pub(crate) fn new() -> Self {
        Self { out: Builder::new(Vec::new()) }
    }

    fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(TIME);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    pub(crate) fn directory(&mut self, name: &str, mode: u32) -> Result<&mut Self> {
        let mut header = Self::header(EntryType::Directory, mode);
        header.set_size(0);
        self.out.append_data(&mut header, name, std::io::empty())?;
        Ok(self)
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<&mut Self> {
        let mut header = Self::header(EntryType::Regular, mode);
        header.set_size(bytes.len().try_into()?);
        self.out.append_data(&mut header, name, bytes)?;
        Ok(self)
    }

    /// A file with one extended attribute and its owner.
    pub(crate) fn file_with(
        &mut self,
        name: &str,
        bytes: &[u8],
        owner: (u64, u64),
        attribute: (&str, &[u8]),
    ) -> Result<&mut Self> {
        let key = format!("SCHILY.xattr.{}", attribute.0);
        self.out.append_pax_extensions([(key.as_str(), attribute.1)])?;
        let mut header = Self::header(EntryType::Regular, 0o644);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_size(bytes.len().try_into()?);
        self.out.append_data(&mut header, name, bytes)?;
        Ok(self)
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> Result<&mut Self> {
        self.link(Self::header(EntryType::Symlink, 0o777), name, target)
    }

    /// A hard link; like every tool that writes one, it repeats its target's mode and owner.
    pub(crate) fn hard_link(
        &mut self,
        name: &str,
        target: &str,
        mode: u32,
        owner: (u64, u64),
    ) -> Result<&mut Self> {
        let mut header = Self::header(EntryType::Link, mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        self.link(header, name, target)
    }

    fn link(&mut self, mut header: Header, name: &str, target: &str) -> Result<&mut Self> {
        header.set_size(0);
        self.out.append_link(&mut header, name, target)?;
        Ok(self)
    }

    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        let mut bytes = self.out.into_inner()?;
        bytes.flush()?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(tar: &[u8]) -> Vec<String> {
        let mut archive = Archive::new(tar);
        let entries = archive.entries().unwrap();
        entries.map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_difference_has_what_changed_what_is_new_and_what_is_gone() {
        let dir = std::env::temp_dir().join(format!("hallmark-layers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let write = |name: &str, old: &[u8], extra: Option<&str>, gone: bool| {
            let mut hand = Hand::new();
            hand.directory("./d", 0o755).unwrap().file("./d/same", 0o644, b"same").unwrap();
            hand.file("./d/changed", 0o644, old).unwrap();
            if gone {
                hand.directory("./g", 0o755).unwrap().file("./g/in", 0o644, b"").unwrap();
            }
            if let Some(extra) = extra {
                hand.hard_link(extra, "./d/same", 0o644, (0, 0)).unwrap();
            }
            std::fs::write(dir.join(name), hand.finish().unwrap()).unwrap();
            dir.join(name)
        };
        let lower = write("lower", b"old", None, true);
        let upper = write("upper", b"new", Some("./d/new"), false);
        let tar = difference(&lower, &upper).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(listing(&tar), ["d/same", "d/changed", "d/new", ".wh.g"]);
    }
}
