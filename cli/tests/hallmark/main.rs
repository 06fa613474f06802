//! The `hallmark` command against images built here, OpenSSL and a real containerd.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests stop at the first thing that is not as it should be"
)]

mod commands;
mod containerd;
mod images;
