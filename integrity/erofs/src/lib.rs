//! Layer tar to a deterministic EROFS image with its hash tree, and a reader. Pure: opens nothing.
//!
//! The formats are `hallmark-erofs.1` and `hallmark-composefs.1`. Layout: `format.rs`. What a tar entry becomes: `layer.rs`.
//! Which tars are read at all: `tar.rs`.
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod directory;
mod error;
mod format;
mod image;
mod layer;
mod layout;
mod limits;
mod objects;
mod pack;
mod pax;
mod read;
mod sparse;
mod stream;
mod tar;
mod xattr;

pub use error::{Error, ErrorKind};
pub use format::{Format, Timestamp, object_path};
pub use limits::Limits;
pub use objects::Objects;
pub use pack::{PackedLayer, pack, pack_with_objects};
pub use read::{Entry, EntryKind, Image};
pub use stream::Compression;
