//! Packs a layer: `pack BLOB IMAGE [none|gzip|zstd]`.

use std::fs::File;
use std::time::Instant;

use hallmark_erofs::{Compression, Image, Limits, pack};

#[expect(clippy::print_stdout, reason = "a program for a terminal")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, blob, image, compression] = arguments.as_slice() else {
        return Err("usage: pack BLOB IMAGE none|gzip|zstd".into());
    };
    let compression = match compression.as_str() {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        other => return Err(format!("unknown compression {other}").into()),
    };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image)?;
    let start = Instant::now();
    let packed = pack(File::open(blob)?, compression, &file, &Limits::default())?;
    let seconds = start.elapsed().as_secs_f64();
    let (hash, blocks) = (packed.root_hash(), packed.data_blocks());
    println!("layer digest {}", packed.layer_digest());
    println!("diffID       {}", packed.diff_id());
    println!("root hash    {hash}, {blocks} data blocks, {} bytes", packed.image_len());
    let mut image = Image::open(&file, &Limits::default())?;
    let (volume, mut entries) = (image.volume()?, 0u64);
    image.walk(|_| {
        entries += 1;
        Ok::<_, hallmark_erofs::Error>(())
    })?;
    println!("{entries} entries, hash start block {}", volume.hash_start_block());
    #[expect(clippy::cast_precision_loss, reason = "a speed to three digits")]
    let speed = packed.tar_len() as f64 / 1e6 / seconds;
    println!("{seconds:.3} s, {speed:.0} MB of tar a second");
    Ok(())
}
