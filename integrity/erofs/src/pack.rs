//! Layer blob to layer image, in one pass.

use std::io::{Read, Seek, Write};

use hallmark_verity::{
    DataBlocks, DiffId, FileDigest, FileHasher, LayerDigest, RootHash, Salt, Tree, VolumeParams,
};

use crate::error::{Cause, Error};
use crate::format::{
    BLOCK, Data, FileType, Format, Inode, Meta, NO_BLOCK, holes, object_xattrs, uuid,
};
use crate::image::{ImageWriter, blocks_and_tail};
use crate::layer::{Layer, Leaf, symlink_target};
use crate::layout;
use crate::limits::Limits;
use crate::objects::Objects;
use crate::stream::{Compression, with_stream};
use crate::tar::{TarEntry, TarKind, TarReader};
use crate::xattr::{self, Fate, Xattrs};

/// Bytes of a sparse file that are put together at once: whole blocks.
const SPARSE: usize = 16 * BLOCK;

/// A layer that [`pack`] read to its end and whose image it wrote: these digests belong together.
#[derive(Debug)]
pub struct PackedLayer {
    format: Format,
    layer_digest: LayerDigest,
    diff_id: DiffId,
    tar_len: u64,
    root_hash: RootHash,
    data_blocks: DataBlocks,
    image_len: u64,
    dropped_xattrs: u64,
}

impl PackedLayer {
    /// SHA-256 of the blob, every byte of it.
    #[must_use]
    pub fn layer_digest(&self) -> LayerDigest {
        self.layer_digest
    }

    /// SHA-256 of the tar, with what follows the end of the archive.
    #[must_use]
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }

    /// Bytes of the tar.
    #[must_use]
    pub fn tar_len(&self) -> u64 {
        self.tar_len
    }

    /// The root hash of the image's volume.
    #[must_use]
    pub fn root_hash(&self) -> RootHash {
        self.root_hash
    }

    /// The salt of the volume: that of the format.
    #[must_use]
    pub fn salt(&self) -> Salt {
        self.format.salt()
    }

    /// The length of the data device.
    #[must_use]
    pub fn data_blocks(&self) -> DataBlocks {
        self.data_blocks
    }

    /// Bytes of the image file: data, superblock and hash tree.
    #[must_use]
    pub fn image_len(&self) -> u64 {
        self.image_len
    }

    /// Extended attributes that the tar has and the image has not: overlayfs's own, and those that
    /// Linux does not know.
    #[must_use]
    pub fn dropped_xattrs(&self) -> u64 {
        self.dropped_xattrs
    }
}

/// Reads a layer to its very end and writes its image of format [`Erofs1`](Format::Erofs1), hash
/// tree included, from the start of `image`.
///
/// `image` must be empty and open for reading too (few blocks are read back to set link counts);
/// `&File` will do. It is flushed, not synced. After an error its content is meaningless. The
/// caller compares the digests with what it expected: nothing is compared here.
///
/// Memory: 2 MiB, 32 bytes for each 4 KiB of content, and about 200 bytes for each entry.
///
/// # Errors
/// Every [`ErrorKind`](crate::ErrorKind) but `Format`.
pub fn pack<R, W>(
    blob: R,
    compression: Compression,
    image: W,
    limits: &Limits,
) -> Result<PackedLayer, Error>
where
    R: Read + Send,
    W: Read + Write + Seek,
{
    pack_into(blob, compression, image, Contents::Inside, limits)
}

/// As [`pack`], but the image is of format [`Composefs1`](Format::Composefs1), and the contents of
/// files go to `objects` as they come.
///
/// An object is given for each entry of the tar, also for one that a later entry replaces, and as
/// often as it is there.
///
/// # Errors
/// Every [`ErrorKind`](crate::ErrorKind) but `Format`; what `objects` answers is of kind `Image`.
pub fn pack_with_objects<R, W>(
    blob: R,
    compression: Compression,
    image: W,
    objects: &mut dyn Objects,
    limits: &Limits,
) -> Result<PackedLayer, Error>
where
    R: Read + Send,
    W: Read + Write + Seek,
{
    pack_into(blob, compression, image, Contents::Objects(objects), limits)
}

/// Where the contents of files go.
enum Contents<'a> {
    Inside,
    Objects(&'a mut dyn Objects),
}

impl Contents<'_> {
    fn format(&self) -> Format {
        match self {
            Self::Inside => Format::Erofs1,
            Self::Objects(_) => Format::Composefs1,
        }
    }
}

fn pack_into<'a, R, W>(
    blob: R,
    compression: Compression,
    image: W,
    contents: Contents<'a>,
    limits: &'a Limits,
) -> Result<PackedLayer, Error>
where
    R: Read + Send,
    W: Read + Write + Seek,
{
    let format = contents.format();
    let (read, layer_digest) = with_stream(blob, compression, limits.bytes, |stream| {
        let mut tar = TarReader::new(stream);
        let mut packer = Packer {
            image: ImageWriter::new(image, format)?,
            contents,
            layer: Layer::new(limits),
            limits,
            dropped_xattrs: 0,
            holes: 0,
        };
        let mut entries = 0u64;
        while let Some(entry) = tar.next()? {
            entries = entries.saturating_add(1);
            if entries > limits.entries {
                return Err(Cause::Limit { what: "entries", limit: limits.entries }.into());
            }
            packer.add(entry, &mut tar)?;
        }
        let (diff_id, tar_len) = tar.into_stream().finish()?;
        let (tree, dropped_xattrs) = packer.finish(&diff_id)?;
        Ok((diff_id, tar_len, tree, dropped_xattrs))
    })?;
    let (diff_id, tar_len, tree, dropped_xattrs) = read;
    let data_blocks = tree.data_blocks();
    let params = VolumeParams::new(format.salt(), data_blocks).map_err(Cause::Verity)?;
    Ok(PackedLayer {
        format,
        layer_digest,
        diff_id,
        tar_len,
        root_hash: tree.root(),
        data_blocks,
        image_len: params.image_len(),
        dropped_xattrs,
    })
}

struct Packer<'a, W: Write> {
    image: ImageWriter<W>,
    contents: Contents<'a>,
    layer: Layer,
    limits: &'a Limits,
    dropped_xattrs: u64,
    /// Bytes of sparse files that the tar does not hold.
    holes: u64,
}

impl<W: Read + Write + Seek> Packer<'_, W> {
    fn add(&mut self, entry: TarEntry, tar: &mut TarReader) -> Result<(), Error> {
        let TarEntry { name, kind, meta, xattrs } = entry;
        let place = self.layer.place(&name)?;
        let Some(place) = place else {
            return match kind {
                TarKind::Directory => {
                    let xattrs = self.keep(&name, xattrs, FileType::Directory)?;
                    self.layer.add_directory(None, meta, xattrs)
                }
                _ => Err(Cause::entry(&name, "is the root, and not a directory")),
            };
        };
        if self.layer.add_whiteout(&name, &place)? {
            return Ok(());
        }
        let device =
            |major: u32, minor: u32| (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        let (file_type, data) = match kind {
            TarKind::Directory => {
                let xattrs = self.keep(&name, xattrs, FileType::Directory)?;
                return self.layer.add_directory(Some(&place), meta, xattrs);
            }
            TarKind::HardLink { target } => {
                return self.layer.add_hard_link(&name, &place, &target);
            }
            TarKind::Symlink { target } => {
                let leaf = self.symlink(&name, meta, xattrs, &target)?;
                return self.layer.add_symlink(&place, leaf, &target);
            }
            TarKind::File => {
                let leaf = self.file(&name, meta, xattrs, tar)?;
                return self.layer.add_leaf(&place, leaf);
            }
            TarKind::CharDevice { major: 0, minor: 0 } => {
                let what = "is a character device 0:0, which overlayfs takes for a whiteout";
                return Err(Cause::unsupported(&name, what));
            }
            TarKind::CharDevice { major, minor } => {
                (FileType::CharDevice, Data::Device(device(major, minor)))
            }
            TarKind::BlockDevice { major, minor } => {
                (FileType::BlockDevice, Data::Device(device(major, minor)))
            }
            TarKind::Fifo => (FileType::Fifo, Data::Empty),
        };
        let xattrs = self.encode(&name, xattrs, file_type)?;
        let inode = self.leaf_inode(file_type, meta, data, xattrs.len())?;
        let ino = self.image.inode(inode, NO_BLOCK, &xattrs, &[])?;
        self.layer.add_leaf(&place, Leaf { ino, kind: file_type, links: 1 })
    }

    fn symlink(
        &mut self,
        name: &[u8],
        meta: Meta,
        xattrs: Xattrs,
        target: &[u8],
    ) -> Result<Leaf, Error> {
        symlink_target(name, target)?;
        let kind = FileType::Symlink;
        let xattrs = self.encode(name, xattrs, kind)?;
        // Linux shows every symlink with these permissions, and so does every tar.
        let meta = Meta { permissions: 0o777, ..meta };
        let inode = self.leaf_inode(kind, meta, Data::Empty, xattrs.len())?;
        let inode = Inode { size: target.len() as u64, ..inode };
        let start = self.image.next_block()?;
        let ino = self.image.inode(inode, start, &xattrs, target)?;
        Ok(Leaf { ino, kind, links: 1 })
    }

    fn file(
        &mut self,
        name: &[u8],
        meta: Meta,
        xattrs: Xattrs,
        tar: &mut TarReader,
    ) -> Result<Leaf, Error> {
        let kind = FileType::Regular;
        let size = tar.sparse_len().unwrap_or(tar.content_len());
        if size > 0 && matches!(self.contents, Contents::Objects(_)) {
            // The tar's own attributes are measured alone: what is added is bounded.
            let mut xattrs = self.keep(name, xattrs, kind)?;
            xattrs.extend(object_xattrs(&self.object(size, tar)?));
            let xattrs = xattr::encode(&xattrs, name, usize::MAX)?;
            let inode = self.leaf_inode(kind, meta, Data::Object, xattrs.len())?;
            let ino = self.image.place(&Inode { size, ..inode }, &[&xattrs, &holes(size)])?;
            return Ok(Leaf { ino, kind, links: 1 });
        }
        let xattrs = self.encode(name, xattrs, kind)?;
        let inode = self.leaf_inode(kind, meta, Data::Empty, xattrs.len())?;
        let inode = Inode { size, ..inode };
        let start = self.image.next_block()?;
        let (full, tail) = blocks_and_tail(size);
        if tar.sparse_len().is_some() {
            let tail = self.sparse(size, full, tail, tar)?;
            let ino = self.image.inode(inode, start, &xattrs, &tail)?;
            return Ok(Leaf { ino, kind, links: 1 });
        }
        let mut left = full.saturating_mul(BLOCK as u64);
        while left > 0 {
            let bytes = tar.content()?;
            let blocks = bytes.as_chunks::<BLOCK>().0.as_flattened();
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(blocks.len());
            self.image.blocks(blocks.get(..count).unwrap_or_default())?;
            tar.consume(count);
            left = left.saturating_sub(count as u64);
        }
        let bytes = tar.content()?.get(..tail).unwrap_or_default();
        let ino = self.image.inode(inode, start, &xattrs, bytes)?;
        tar.consume(tail);
        Ok(Leaf { ino, kind, links: 1 })
    }

    /// Hands over a file's content; the digest of it.
    fn object(&mut self, size: u64, tar: &mut TarReader) -> Result<FileDigest, Error> {
        let is_sparse = tar.sparse_len().is_some();
        if is_sparse {
            self.count_holes(size, tar)?;
        }
        let Contents::Objects(objects) = &mut self.contents else {
            return Err(Cause::Unplaced.into());
        };
        let mut hasher = FileHasher::new();
        let mut expanded = vec![0; if is_sparse { SPARSE } else { 0 }];
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let count = if is_sparse {
                let part = expanded.get_mut(..most.min(SPARSE)).unwrap_or_default();
                tar.expand(part)?;
                hasher.update(part);
                objects.write(part).map_err(Cause::Object)?;
                part.len()
            } else {
                let part = tar.content()?;
                hasher.update(part);
                objects.write(part).map_err(Cause::Object)?;
                let count = part.len();
                tar.consume(count);
                count
            };
            // content and map are as long as they say
            if count == 0 {
                return Err(Cause::Unplaced.into());
            }
            left = left.saturating_sub(count as u64);
        }
        let digest = hasher.finish();
        objects.end(&digest).map_err(Cause::Object)?;
        Ok(digest)
    }

    /// A few bytes of tar may state any size: holes count like bytes that are there.
    fn count_holes(&mut self, size: u64, tar: &TarReader) -> Result<(), Error> {
        self.holes = self.holes.saturating_add(size.saturating_sub(tar.content_len()));
        if self.holes > self.limits.bytes {
            return Err(Cause::Limit { what: "bytes", limit: self.limits.bytes }.into());
        }
        Ok(())
    }

    /// Writes the full blocks of a sparse file, holes as zeros, and gives its tail back.
    fn sparse(
        &mut self,
        size: u64,
        full: u64,
        tail: usize,
        tar: &mut TarReader,
    ) -> Result<Vec<u8>, Error> {
        self.count_holes(size, tar)?;
        let mut blocks = vec![0; SPARSE];
        let mut left = full.saturating_mul(BLOCK as u64);
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(SPARSE);
            let part = blocks.get_mut(..count).unwrap_or_default();
            tar.expand(part)?;
            self.image.blocks(part)?;
            left = left.saturating_sub(count as u64);
        }
        blocks.truncate(tail);
        tar.expand(&mut blocks)?;
        Ok(blocks)
    }

    fn leaf_inode(
        &self,
        kind: FileType,
        meta: Meta,
        data: Data,
        xattrs: usize,
    ) -> Result<Inode, Error> {
        Ok(Inode { kind, meta, size: 0, data, ino: self.image.next_ino()?, nlink: 1, xattrs })
    }

    /// The attributes that an image holds, of those that the tar has.
    fn keep(&mut self, name: &[u8], mut xattrs: Xattrs, kind: FileType) -> Result<Xattrs, Error> {
        let found = xattrs.len();
        xattrs.retain(|key, _| xattr::fate(key, kind) == Fate::Kept);
        let dropped = found.saturating_sub(xattrs.len());
        self.dropped_xattrs = self.dropped_xattrs.saturating_add(dropped as u64);
        // Checked here, where the name is known; a directory's are encoded at the end.
        xattr::encode(&xattrs, name, self.limits.xattrs)?;
        Ok(xattrs)
    }

    fn encode(&mut self, name: &[u8], xattrs: Xattrs, kind: FileType) -> Result<Vec<u8>, Error> {
        if xattrs.is_empty() {
            return Ok(Vec::new());
        }
        let xattrs = self.keep(name, xattrs, kind)?;
        xattr::encode(&xattrs, name, self.limits.xattrs)
    }

    /// Writes the directories and what depends on the whole.
    fn finish(mut self, diff_id: &DiffId) -> Result<(Tree, u64), Error> {
        let tree = layout::finish(&mut self.layer, self.image, uuid(diff_id))?;
        Ok((tree, self.dropped_xattrs))
    }
}
