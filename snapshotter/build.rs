//! Generates the gRPC services from `proto/` without protoc: the compiler is the crate protox.

use std::error::Error;

const SERVICES: [&str; 3] = [
    "services/content/v1/content.proto",
    "services/diff/v1/diff.proto",
    "services/snapshots/v1/snapshots.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(SERVICES, ["proto"])?;
    tonic_prost_build::configure().include_file("containerd.rs").compile_fds(files)?;
    Ok(())
}
