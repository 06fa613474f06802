//! From an image's blobs to the root hashes of its layers.
//!
//! Each different layer is packed once, into a scratch file without a name: the packer reads a few blocks back, so the
//! image has to be somewhere. What the blob turns out to be is compared with what manifest and configuration say.

use std::collections::HashMap;

use hallmark_erofs::{Compression, Limits, PackedLayer, pack};
use hallmark_seal::SealedLayer;
use hallmark_verity::LayerDigest;

use crate::error::{Error, Result};
use crate::image::{Image, Layer, Store};

/// Packs every layer of an image, bottom first, and tells `report` of each.
pub(crate) fn pack_layers(
    store: &dyn Store,
    image: &Image,
    report: &mut dyn FnMut(usize, &SealedLayer) -> Result<()>,
) -> Result<Vec<SealedLayer>> {
    let mut packed: HashMap<LayerDigest, SealedLayer> = HashMap::new();
    let mut layers = Vec::with_capacity(image.layers.len());
    for (index, layer) in image.layers.iter().enumerate() {
        let sealed = match packed.get(&layer.digest) {
            Some(known) => known.clone(),
            None => pack_layer(store, layer, index)?,
        };
        if sealed.diff_id != layer.diff_id {
            let object = format!("layer {index} ({})", layer.digest);
            let (found, expected) = (sealed.diff_id.to_string(), layer.diff_id.to_string());
            let found = format!("a tar with digest {found}");
            let expected = format!("the configuration's diffID {expected}");
            return Err(Error::image(
                object,
                found,
                expected,
                "the image is broken: build or pull it anew",
            ));
        }
        report(index, &sealed)?;
        packed.insert(layer.digest, sealed.clone());
        layers.push(sealed);
    }
    Ok(layers)
}

fn pack_layer(store: &dyn Store, layer: &Layer, index: usize) -> Result<SealedLayer> {
    let object = || format!("layer {index} ({})", layer.digest);
    let Some(compression) = Compression::from_media_type(&layer.media_type) else {
        let found = format!("media type {:?}", layer.media_type);
        return Err(Error::image(
            object(),
            found,
            "a tar, plain, gzip or zstd",
            "rebuild the image",
        ));
    };
    let mut scratch = tempfile::tempfile()
        .map_err(Error::file("make a scratch file in", &std::env::temp_dir()))?;
    let blob = store.open(&layer.digest.to_string(), layer.size)?;
    let packed = pack(blob, compression, &mut scratch, &Limits::default())
        .map_err(|source| Error::Layer { index, digest: layer.digest.to_string(), source })?;
    if packed.layer_digest() != layer.digest {
        let found = packed.layer_digest().to_string();
        return Err(Error::image(object(), found, layer.digest.to_string(), "fetch the blob anew"));
    }
    Ok(sealed(&packed))
}

fn sealed(packed: &PackedLayer) -> SealedLayer {
    SealedLayer {
        digest: packed.layer_digest(),
        diff_id: packed.diff_id(),
        root_hash: packed.root_hash(),
        salt: packed.salt(),
        data_blocks: packed.data_blocks(),
    }
}
