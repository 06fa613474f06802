//! Generates containerd's gRPC services from the copies beside the snapshotter, without protoc: the compiler is the
//! crate protox.

use std::error::Error;

const PROTO: &str = "../snapshotter/proto";
const SERVICES: [&str; 3] = [
    "services/content/v1/content.proto",
    "services/images/v1/images.proto",
    "services/namespaces/v1/namespace.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let files = protox::compile(SERVICES, [PROTO])?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("containerd.rs")
        .compile_fds(files)?;
    Ok(())
}
