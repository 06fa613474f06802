//! Links the program with packed relative relocations (DT_RELR): an eightieth of their size, which each start reads.
//!
//! A static program that may lie at any address moves its own pointers when it starts. musl does so since 1.2.4.
#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
