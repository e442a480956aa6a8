//! Generates the messages and services of `proto/` with a protobuf compiler in Rust, so that no `protoc` is needed.

use std::{error::Error, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 7] = [
    "workload.proto",
    "authorization.proto",
    "ca.proto",
    "status.proto",
    "discovery.proto",
    "mesh.proto",
    "admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let path = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(&path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .file_descriptor_set_path(&path)
        // Equal messages must have equal bytes: versions are hashes of what is published.
        .btree_map(".istio.workload")
        .include_file("modules.rs")
        .skip_protoc_run()
        .compile_protos(&PROTOS, &["proto"])?;
    Ok(())
}
