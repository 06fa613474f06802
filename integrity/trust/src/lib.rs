//! What makes a layer trusted: IPE policy, trust set, evidence, gate.
//!
//! | module | is | reads |
//! |---|---|---|
//! | [`gate`] | the decision: [`gate::judge`] | nothing |
//! | [`evidence`] | what the kernel says of an open lower | the kernel |
//! | [`set`] | keys, revocations, policy | root's files, the kernel |
//! | [`exec_control`] | who controls execution on the node | securityfs |
//! | [`ipe`] | the kernel's policy language | nothing |
//! | [`config`] | the node's configuration | root's file |
//! | [`policy_versions`] | which policy files were here before | root's file |
//! | [`strict_file`], [`procfs`] | files of root alone, a verified `/proc` | |
//!
//! Start with [`gate`]; its tamper table says what is refused.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::print_stdout, reason = "a skipped test says why"))]

pub mod config;
pub mod evidence;
pub mod exec_control;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod gate;
pub mod ipe;
mod levels;
pub mod policy_versions;
mod proc_mem;
pub mod set;
pub mod strict_file;
#[cfg(test)]
mod testing;

pub use levels::{Enforcement, ExecControl, Strength};

/// An error and its sources, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line.push_str(": ");
        line.push_str(&source.to_string());
        next = source.source();
    }
    line
}
