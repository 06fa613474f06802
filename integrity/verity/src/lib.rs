//! Hash trees, dm-verity superblocks and fs-verity digests. Pure: opens nothing.
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
