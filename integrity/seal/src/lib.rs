//! The seal: the signed statement of an image's layers. Pure: opens nothing.
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
