//! An OCI runtime with runc's command line, and the callers of the launch gate.
//!
//! Start at [`cli::run`]: one command line, one file of `operation/`. `create` and `run` go through `launch`, which
//! makes a process that `init/` turns into the container; `exec` joins one that is there.

pub mod cgroup;
pub mod cli;
pub mod dbus;
mod error;
mod exe;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod gate;
mod handshake;
mod hooks;
mod idle;
mod init;
mod launch;
pub mod log;
mod operation;
pub mod seccomp;
mod selinux;
pub mod spec;
pub mod state;
mod supervisor;
mod timestamp;

pub use error::{Error, ErrorKind, Result};
