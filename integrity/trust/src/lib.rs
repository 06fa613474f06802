//! What makes a layer trusted: IPE policy, trust set, evidence, gate.
#![forbid(unsafe_code)]

pub mod ipe;
