//! The bytes of a layer: blob to tar, hashed on both sides.
//!
//! A second thread reads, hashes and decompresses the blob, so that decompression, the costliest
//! step, overlaps with hashing and writing the image. Chunks are pooled and move by ownership.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use hallmark_verity::{DiffId, LayerDigest};
use sha2::{Digest as _, Sha256};

use crate::error::{Cause, Error};

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, any number of members.
    Gzip,
    /// zstd, any number of frames, with windows of at most 128 MiB.
    Zstd,
}

impl Compression {
    /// The compression that an OCI or Docker layer media type says; `None` for any other type.
    ///
    /// Source: OCI image-spec `media-types.md`; Docker image manifest v2.2.
    #[must_use]
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        let oci = media_type
            .strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar")
            .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.v1.tar"));
        let docker =
            media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar").or_else(|| {
                media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar")
            });
        match (oci, docker) {
            (Some(""), _) | (_, Some("")) => Some(Self::None),
            (Some("+gzip"), _) | (_, Some(".gzip" | "+gzip")) => Some(Self::Gzip),
            (Some("+zstd"), _) | (_, Some(".zstd" | "+zstd")) => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The most that [`Stream::fill`] can be asked for.
pub(crate) const WINDOW: usize = 4096;

/// Bytes decompressed at once; four of them are in flight.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 4;

/// Bytes read from the blob at once.
const READ: usize = 256 << 10;

/// Decompressed bytes `start..end` of a buffer, with [`WINDOW`] bytes of room before them for what
/// is left of the chunk before.
struct Chunk {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Chunk {
    fn new() -> Self {
        Self { buffer: vec![0; WINDOW.saturating_add(CHUNK)], start: 0, end: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Fills the chunk; it is shorter than [`CHUNK`] only at the end of the input.
    fn read_from(&mut self, input: &mut dyn Read) -> io::Result<()> {
        self.start = WINDOW;
        self.end = WINDOW;
        loop {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            if room.is_empty() {
                return Ok(());
            }
            match input.read(room) {
                Ok(0) => return Ok(()),
                Ok(count) => self.end = self.end.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts `bytes`, at most [`WINDOW`], before those of this chunk.
    fn prepend(&mut self, bytes: &[u8]) {
        let start = self.start.saturating_sub(bytes.len());
        if let Some(room) = self.buffer.get_mut(start..self.start) {
            room.copy_from_slice(bytes);
            self.start = start;
        }
    }
}

/// The bytes of the tar, in order.
pub(crate) struct Stream {
    filled: Receiver<io::Result<Chunk>>,
    empty: Sender<Chunk>,
    current: Chunk,
    ended: bool,
    hash: Sha256,
    received: u64,
    limit: u64,
}

impl Stream {
    /// The next bytes, at least `min` of them (at most [`WINDOW`]) unless the tar ends before.
    pub(crate) fn fill(&mut self, min: usize) -> Result<&[u8], Error> {
        while self.current.bytes().len() < min && !self.ended {
            self.advance()?;
        }
        Ok(self.current.bytes())
    }

    /// Moves on by `count` bytes that [`fill`](Self::fill) returned.
    pub(crate) fn consume(&mut self, count: usize) {
        self.current.start = self.current.start.saturating_add(count).min(self.current.end);
    }

    /// The offset in the tar of the next byte.
    pub(crate) fn offset(&self) -> u64 {
        self.received.saturating_sub(self.current.bytes().len() as u64)
    }

    /// Reads to the end of the tar: its diffID and its length.
    pub(crate) fn finish(mut self) -> Result<(DiffId, u64), Error> {
        while !self.ended {
            self.current.start = self.current.end;
            self.advance()?;
        }
        Ok((DiffId::from_bytes(self.hash.finalize().into()), self.received))
    }

    fn advance(&mut self) -> Result<(), Error> {
        // The sender hangs up only after the empty chunk that ends the tar, or after an error.
        let Ok(filled) = self.filled.recv() else {
            self.ended = true;
            return Ok(());
        };
        let mut chunk = filled.map_err(Cause::Blob)?;
        self.ended = chunk.bytes().is_empty();
        self.hash.update(chunk.bytes());
        self.received = self.received.saturating_add(chunk.bytes().len() as u64);
        if self.received > self.limit {
            return Err(Cause::Limit { what: "bytes", limit: self.limit }.into());
        }
        chunk.prepend(self.current.bytes());
        let used = std::mem::replace(&mut self.current, chunk);
        // Nobody takes it back once the tar has ended.
        drop(self.empty.send(used));
        Ok(())
    }
}

/// Lets `consume` read the tar in `blob`, at most `limit` bytes of it, and gives the digest of the
/// blob.
///
/// The digest covers the blob to its very end only if `consume` called [`Stream::finish`].
pub(crate) fn with_stream<R: Read + Send, T>(
    blob: R,
    compression: Compression,
    limit: u64,
    consume: impl FnOnce(Stream) -> Result<T, Error>,
) -> Result<(T, LayerDigest), Error> {
    let (filled_to, filled) = sync_channel(CHUNKS);
    let (empty, empty_from) = channel();
    for _ in 1..CHUNKS {
        drop(empty.send(Chunk::new()));
    }
    let stream = Stream {
        filled,
        empty,
        current: Chunk::new(),
        ended: false,
        hash: Sha256::new(),
        received: 0,
        limit,
    };
    thread::scope(|scope| {
        let producer = scope.spawn(move || produce(blob, compression, &filled_to, &empty_from));
        let consumed = consume(stream);
        let digest = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((consumed?, digest))
    })
}

/// Sends the tar chunk by chunk, then an empty chunk or an error.
fn produce<R: Read>(
    blob: R,
    compression: Compression,
    filled: &SyncSender<io::Result<Chunk>>,
    empty: &Receiver<Chunk>,
) -> LayerDigest {
    let mut hashing = Hashing { inner: blob, hash: Sha256::new() };
    if let Err(error) = send_all(&mut hashing, compression, filled, empty) {
        // Nobody listens when the consumer gave up first.
        drop(filled.send(Err(error)));
    }
    LayerDigest::from_bytes(hashing.hash.finalize().into())
}

fn send_all<R: Read>(
    blob: &mut Hashing<R>,
    compression: Compression,
    filled: &SyncSender<io::Result<Chunk>>,
    empty: &Receiver<Chunk>,
) -> io::Result<()> {
    let blob = BufReader::with_capacity(READ, blob);
    let mut input: Box<dyn Read + '_> = match compression {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(blob)?),
    };
    while let Ok(mut chunk) = empty.recv() {
        chunk.read_from(&mut input)?;
        let ended = chunk.bytes().is_empty();
        if filled.send(Ok(chunk)).is_err() || ended {
            break;
        }
    }
    Ok(())
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::ErrorKind;

    /// Everything `fill` gives, asked for in windows of `window` bytes.
    fn unpack(blob: &[u8], compression: Compression, window: usize) -> Result<Vec<u8>, Error> {
        let ((bytes, diff_id, len), digest) =
            with_stream(blob, compression, 1 << 30, |mut stream| {
                let mut bytes = Vec::new();
                loop {
                    assert_eq!(stream.offset(), bytes.len() as u64);
                    let part = stream.fill(window)?;
                    if part.is_empty() {
                        break;
                    }
                    let part = &part[..part.len().min(window)];
                    bytes.extend_from_slice(part);
                    let count = part.len();
                    stream.consume(count);
                }
                let (diff_id, len) = stream.finish()?;
                Ok((bytes, diff_id, len))
            })?;
        assert_eq!(digest, LayerDigest::of(blob));
        assert_eq!(diff_id, DiffId::of(&bytes));
        assert_eq!(len, bytes.len() as u64);
        Ok(bytes)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn sample() -> Vec<u8> {
        (0..3 * CHUNK + 777).map(|n| u8::try_from((n ^ (n >> 8)) & 0xff).unwrap()).collect()
    }

    #[test]
    fn every_compression_gives_the_tar_back() {
        let tar = sample();
        let (head, tail) = tar.split_at(100_000);
        let members = [gzip(head), gzip(b""), gzip(tail)].concat();
        let frames =
            [zstd::encode_all(head, 1).unwrap(), zstd::encode_all(tail, 19).unwrap()].concat();
        for window in [1000, 4095, 4096] {
            assert!(unpack(&tar, Compression::None, window).unwrap() == tar);
            assert!(unpack(&gzip(&tar), Compression::Gzip, window).unwrap() == tar);
            assert!(unpack(&members, Compression::Gzip, window).unwrap() == tar);
            assert!(unpack(&frames, Compression::Zstd, window).unwrap() == tar);
        }
        assert!(unpack(&[], Compression::None, 1).unwrap().is_empty());
    }

    #[test]
    fn truncated_corrupt_and_trailing_bytes_are_errors() {
        let tar = sample();
        for (blob, compression) in [
            (gzip(&tar), Compression::Gzip),
            (zstd::encode_all(tar.as_slice(), 1).unwrap(), Compression::Zstd),
        ] {
            let mut bad = vec![
                blob[..blob.len() - 1].to_vec(),
                blob[..blob.len() / 2].to_vec(),
                blob[..3].to_vec(),
                [&blob[..], b"trailing"].concat(),
                tar.clone(),
            ];
            if compression == Compression::Gzip {
                let mut flipped = blob.clone();
                let at = flipped.len() - 6;
                flipped[at] ^= 1;
                bad.extend([flipped, Vec::new()]);
            }
            for (n, blob) in bad.into_iter().enumerate() {
                let error = unpack(&blob, compression, 4096).expect_err(&format!("{n}"));
                assert_eq!(error.kind(), ErrorKind::Blob, "{compression:?} {n}: {error}");
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let blob = gzip(&vec![0; 8 << 20]);
        let result = with_stream(blob.as_slice(), Compression::Gzip, 1 << 20, Stream::finish);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Limit);
    }

    #[test]
    fn media_types() {
        use Compression::{Gzip, None as Plain, Zstd};
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(Plain)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Zstd)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(Plain)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Some(Zstd)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.erofs.layer.v1", None),
            ("application/json", None),
            ("", None),
        ] {
            assert_eq!(Compression::from_media_type(media_type), expected, "{media_type}");
        }
    }
}
