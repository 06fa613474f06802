//! A tar of an OCI layout, as `nerdctl save`, `ctr images export` and BuildKit write it.
//!
//! It is read where it lies: one pass over the headers says where each blob is. To seal it, everything but
//! `index.json` is copied byte for byte into a new file, the referrer's blobs and the new index are put behind, and
//! the new file is renamed over the old.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use hallmark_seal::referrer::Bundle;
use tar::EntryType;

use super::layout::{blobs, entries, listed, read_index};
use super::oci::Descriptor;
use super::{Store, digest};
use crate::error::{Error, Result};
use crate::replace::Replacement;

const BLOCK: u64 = 512;

/// An archive that is read.
pub(crate) struct Archive {
    path: PathBuf,
    file: File,
    /// Where the content of each file lies, by name without a leading `./`.
    files: HashMap<String, Range<u64>>,
    /// What of the tar is neither `index.json` nor its end, headers included.
    kept: Vec<Range<u64>>,
    index: Vec<u8>,
    entries: Vec<Descriptor>,
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        let scan = Scan::of(&file).map_err(|error| not_a_tar(&file, path, error))?;
        let Some(place) = scan.files.get("index.json").cloned() else {
            let docker = scan.files.contains_key("manifest.json");
            return Err(Error::image(
                path.display().to_string(),
                if docker {
                    "an archive of docker's own form"
                } else {
                    "an archive without index.json"
                },
                "a tar of an OCI layout",
                "nerdctl save, ctr images export and skopeo copy … oci-archive:FILE write one",
            ));
        };
        let index = read_index(Slice { file: &file, rest: place }, path)?;
        let entries = entries(&index, path)?;
        let Scan { files, kept } = scan;
        Ok(Self { path: path.to_owned(), file, files, kept, index, entries })
    }

    /// Writes the archive anew with a referrer in it.
    pub(crate) fn add(&self, bundle: &Bundle) -> Result<()> {
        let metadata = self.file.metadata().map_err(Error::file("read", &self.path))?;
        let mut file = Replacement::of(&self.path, metadata.mode() & 0o777)?;
        let index = listed(&self.index, bundle, &self.path)?;
        self.write(&mut file, bundle, &index).map_err(Error::file("write anew", &self.path))?;
        file.commit(&self.path)
    }

    fn write(&self, out: &mut Replacement, bundle: &Bundle, index: &[u8]) -> io::Result<()> {
        for range in &self.kept {
            let length = range.end.saturating_sub(range.start);
            let copied = io::copy(&mut Slice { file: &self.file, rest: range.clone() }, out)?;
            if copied != length {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the archive became shorter",
                ));
            }
        }
        let mut tar = tar::Builder::new(out);
        for (digest, bytes) in blobs(bundle) {
            let name = format!("blobs/sha256/{}", digest.to_hex());
            if !self.files.contains_key(&name) {
                append(&mut tar, &name, bytes)?;
            }
        }
        append(&mut tar, "index.json", index)?;
        tar.into_inner()?.flush()
    }
}

impl Store for Archive {
    fn entries(&self) -> &[Descriptor] {
        &self.entries
    }

    fn open(&self, name: &str, _size: u64) -> Result<Box<dyn Read + Send + '_>> {
        let file = format!("blobs/sha256/{}", digest(name)?.to_hex());
        match self.files.get(&file) {
            Some(rest) => Ok(Box::new(Slice { file: &self.file, rest: rest.clone() })),
            None => Err(Error::image(
                self.path.display().to_string(),
                format!("no {file}"),
                "every blob of the image",
                "save it with all of its layers",
            )),
        }
    }
}

/// One walk over the headers.
struct Scan {
    files: HashMap<String, Range<u64>>,
    kept: Vec<Range<u64>>,
}

impl Scan {
    fn of(file: &File) -> io::Result<Self> {
        let mut scan = Self { files: HashMap::new(), kept: Vec::new() };
        let mut archive = tar::Archive::new(file);
        // where the extension headers of the next entry begin, or its own
        let mut start = 0;
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let content = entry.raw_file_position();
            let stored =
                if entry.header().entry_type() == EntryType::Regular { entry.size() } else { 0 };
            let end = content.saturating_add(stored.next_multiple_of(BLOCK));
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            if name != "index.json" {
                scan.keep(start..end);
            }
            if stored > 0 || entry.header().entry_type() == EntryType::Regular {
                scan.files.insert(name, content..content.saturating_add(stored));
            }
            start = end;
        }
        Ok(scan)
    }

    fn keep(&mut self, range: Range<u64>) {
        match self.kept.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.kept.push(range),
        }
    }
}

/// A stretch of a file, read without moving the file's own offset.
struct Slice<'a> {
    file: &'a File,
    rest: Range<u64>,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.rest.end.saturating_sub(self.rest.start);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read =
            self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.rest.start)?;
        self.rest.start = self.rest.start.saturating_add(read as u64);
        Ok(read)
    }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}

fn not_a_tar(file: &File, path: &Path, error: io::Error) -> Error {
    let mut magic = [0; 4];
    let read = file.read_exact_at(&mut magic, 0);
    let compressed =
        read.is_ok() && (magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd]);
    if compressed {
        let (object, advice) =
            (path.display().to_string(), "decompress it first: gunzip or unzstd");
        return Error::image(object, "a compressed archive", "a plain tar", advice);
    }
    Error::file("read as a tar", path)(error)
}
