//! Apply: a layer's blob becomes its image, once per layer digest, whoever asks and however often.
//!
//! Packing is not tied to the call that asked for it: when containerd's client dies in a pull, the thread goes on,
//! and the retry finds the layer. Trust is no question here: an image that nobody sealed is packed like any other, or
//! it could never be sealed on a node, committed, or run under audit.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use hallmark_erofs::{Compression, Limits, PackedLayer};
use hallmark_verity::{LayerDigest, VolumeParams};

use crate::error::{Error, Result};
use crate::layout::{Layout, Synced, Unfinished, image_name};
use crate::store::{Layer, Store};

/// `mediaType` of an applied layer: a plain tar.
pub(crate) const APPLIED_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// The packings that go on now, by layer digest.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    by_digest: Mutex<HashMap<LayerDigest, Arc<Flight>>>,
    runways: Runways,
}

/// How many layers are packed at once: one for each processor, since packing keeps one busy, and no more, since each
/// holds tens of megabytes and whoever pulls decides how many come. The others wait.
#[derive(Debug)]
struct Runways {
    free: Mutex<usize>,
    bell: Condvar,
}

impl Default for Runways {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { free: Mutex::new(processors), bell: Condvar::new() }
    }
}

impl Runways {
    fn take(&self) -> Runway<'_> {
        let mut free = lock(&self.free);
        while *free == 0 {
            free = self.bell.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Runway(self)
    }
}

/// The leave to pack, until it is dropped.
struct Runway<'a>(&'a Runways);

impl Drop for Runway<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.bell.notify_one();
    }
}

#[derive(Debug, Default)]
struct Flight {
    landed: Mutex<Option<std::result::Result<Layer, Arc<Error>>>>,
    bell: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // every value under these locks is whole at each step
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flights {
    /// What `pack` returns, or what it returned to another caller that came first and is not done.
    pub(crate) fn join(
        &self,
        digest: &LayerDigest,
        pack: impl FnOnce() -> Result<Layer>,
    ) -> Result<Layer> {
        let (flight, first) = {
            let mut flights = lock(&self.by_digest);
            match flights.get(digest) {
                Some(flight) => (Arc::clone(flight), false),
                None => {
                    let flight = Arc::new(Flight::default());
                    flights.insert(*digest, Arc::clone(&flight));
                    (flight, true)
                }
            }
        };
        if first {
            // lands also when `pack` panics: those who wait must hear of it
            let landing = Landing { flights: self, digest, flight: &flight };
            let runway = self.runways.take();
            let packed = pack().map_err(Arc::new);
            drop(runway);
            *lock(&flight.landed) = Some(packed);
            drop(landing);
        }
        let mut landed = lock(&flight.landed);
        loop {
            match &*landed {
                Some(packed) => return packed.clone().map_err(Error::Shared),
                None => landed = flight.bell.wait(landed).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

struct Landing<'a> {
    flights: &'a Flights,
    digest: &'a LayerDigest,
    flight: &'a Flight,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        lock(&self.flights.by_digest).remove(self.digest);
        let crashed = || Err(Arc::new(Error::Crashed));
        lock(&self.flight.landed).get_or_insert_with(crashed);
        self.flight.bell.notify_all();
    }
}

/// How a blob is compressed, by its media type. Docker's archives call a compressed layer a plain tar: there the first
/// bytes decide.
pub(crate) fn compression(media_type: &str, digest: &str, start: &[u8]) -> Result<Compression> {
    let stated = Compression::from_media_type(media_type).ok_or_else(|| Error::MediaType {
        digest: digest.to_owned(),
        found: media_type.to_owned(),
    })?;
    Ok(match (stated, start) {
        (Compression::None, [0x1f, 0x8b, ..]) => Compression::Gzip,
        (Compression::None, [0x28, 0xb5, 0x2f, 0xfd, ..]) => Compression::Zstd,
        _ => stated,
    })
}

/// The first bytes of a stream, and the stream as if they had not been read.
pub(crate) fn peek<R: Read>(mut blob: R) -> std::io::Result<(Vec<u8>, impl Read)> {
    let mut start = Vec::new();
    blob.by_ref().take(4).read_to_end(&mut start)?;
    Ok((start.clone(), Cursor::new(start).chain(blob)))
}

/// Whether a recorded layer's image is there in its full length. A power cut, or a hand, may have cut it short.
pub(crate) fn is_whole(layout: &Layout, layer: &Layer) -> bool {
    let there = std::fs::symlink_metadata(layout.layer(&layer.diff_id));
    there.is_ok_and(|meta| meta.is_file() && meta.len() == layer.image_len)
}

/// An image that was packed, lies on the disk, and has no name yet. Making one takes as long as the layer is large;
/// keeping it takes none of that, so only that is done under a lock.
#[derive(Debug)]
pub(crate) struct Fresh {
    image: Synced,
    packed: PackedLayer,
}

impl Fresh {
    /// Packs a stream. `digest` is how the layer is called in messages.
    pub(crate) fn pack(
        layout: &Layout,
        digest: &str,
        blob: impl Read + Send,
        compression: Compression,
    ) -> Result<Self> {
        let unfinished = Unfinished::create(&layout.layers())?;
        let image: &File = &unfinished.file;
        let packed = hallmark_erofs::pack(blob, compression, image, &Limits::default())
            .map_err(|source| Error::Pack { digest: digest.to_owned(), source })?;
        Ok(Self { image: unfinished.synced()?, packed })
    }

    /// SHA-256 of the stream.
    pub(crate) fn layer_digest(&self) -> LayerDigest {
        self.packed.layer_digest()
    }

    /// Gives the image its name and records it; a layer that is there already keeps its file.
    pub(crate) fn keep(self, layout: &Layout, store: &Store) -> Result<Layer> {
        let packed = &self.packed;
        let layer = Layer {
            diff_id: packed.diff_id(),
            root_hash: packed.root_hash(),
            params: VolumeParams::new(packed.salt(), packed.data_blocks())?,
            tar_len: packed.tar_len(),
            image_len: packed.image_len(),
            packed: SystemTime::now(),
        };
        if packed.dropped_xattrs() > 0 {
            let (diff_id, dropped) = (layer.diff_id, packed.dropped_xattrs());
            tracing::info!("layer {diff_id}: {dropped} extended attributes are not kept");
        }
        let blob = packed.layer_digest();
        let known = store.layer(&layer.diff_id).ok();
        match known.filter(|known| is_whole(layout, known)) {
            Some(known) => {
                store.insert_layer(&known, &blob)?;
                Ok(known)
            }
            None => {
                self.image.named(&image_name(&layer.diff_id))?;
                store.insert_layer(&layer, &blob)?;
                Ok(layer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";

    #[test]
    fn the_media_type_decides_and_dockers_plain_tar_is_looked_at() {
        let gzip = [0x1f, 0x8b, 8, 0];
        assert_eq!(compression(GZIP, "d", b"x").unwrap(), Compression::Gzip);
        assert_eq!(compression(DOCKER, "d", b"x").unwrap(), Compression::None);
        assert_eq!(compression(DOCKER, "d", &gzip).unwrap(), Compression::Gzip);
        for foreign in
            ["application/vnd.erofs.layer.v1", "", "application/vnd.oci.image.layer.v1.tar+enc"]
        {
            assert!(
                matches!(compression(foreign, "d", b""), Err(Error::MediaType { .. })),
                "{foreign}"
            );
        }
    }

    #[test]
    fn peeking_takes_nothing_away() {
        for text in ["", "ab", "abcdefgh"] {
            let (start, mut rest) = peek(text.as_bytes()).unwrap();
            let mut whole = String::new();
            rest.read_to_string(&mut whole).unwrap();
            assert_eq!(
                (start.as_slice(), whole.as_str()),
                (&text.as_bytes()[..text.len().min(4)], text)
            );
        }
    }

    #[test]
    fn one_packs_and_all_hear_of_it() {
        let (flights, packed, start) = (Flights::default(), AtomicUsize::new(0), Barrier::new(4));
        let digest = LayerDigest::of(b"blob");
        let errors: Vec<String> = std::thread::scope(|scope| {
            let ask = || {
                start.wait();
                let answer = flights.join(&digest, || {
                    packed.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(200));
                    Err(Error::ForeignMounts)
                });
                answer.unwrap_err().to_string()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(packed.load(Ordering::SeqCst), 1);
        assert!(errors.iter().all(|error| *error == Error::ForeignMounts.to_string()));
        assert!(lock(&flights.by_digest).is_empty());
    }

    #[test]
    fn no_more_layers_are_packed_at_once_than_there_are_processors() {
        let flights = Flights::default();
        let most = *lock(&flights.runways.free);
        let (now, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let pack = || {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            now.fetch_sub(1, Ordering::SeqCst);
            Err(Error::ForeignMounts)
        };
        let (flights, pack) = (&flights, &pack);
        std::thread::scope(|scope| {
            for number in 0..4 * most {
                let digest = LayerDigest::of(&number.to_ne_bytes());
                scope.spawn(move || flights.join(&digest, pack).unwrap_err());
            }
        });
        assert_eq!(peak.load(Ordering::SeqCst), most);
        assert_eq!(*lock(&flights.runways.free), most);
    }

    #[test]
    fn a_packing_that_panics_lets_the_others_go() {
        let flights = Flights::default();
        let digest = LayerDigest::of(b"blob");
        let crash = || flights.join(&digest, || panic!("in a test"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(crash)).is_err());
        assert!(flights.join(&digest, || Err(Error::ForeignMounts)).is_err());
    }
}
