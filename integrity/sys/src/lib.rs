//! System calls that no well-kept crate wraps. The only crate with `unsafe`.
#![expect(unsafe_code, reason = "this crate is where every unsafe block of the workspace lives")]

pub mod bpf;
pub mod dm;
mod error;
mod ioctl;
pub mod keyring;
pub mod loopdev;
pub mod lsm;
pub mod mount;
pub mod process;
pub mod procfs;
pub mod seccomp;

pub use error::{Error, ErrorKind, Result};
