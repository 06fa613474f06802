//! Layer tar to a deterministic EROFS image. Pure: opens nothing.
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
