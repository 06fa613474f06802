//! What makes a layer trusted: IPE policy, trust set, evidence, gate.
#![forbid(unsafe_code)]

pub mod config;
pub mod exec_control;
pub mod ipe;
mod levels;
pub mod strict_file;

pub use levels::{Enforcement, ExecControl, Strength};
