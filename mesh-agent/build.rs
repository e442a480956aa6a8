//! Brings the built eBPF object to where `kernel` includes it from. Never builds it: that takes a toolchain of its own, and
//! `cargo xtask build-ebpf` says how to get it.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

fn main() {
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = match env::var_os("MESH_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => target_directory(&out).join("bpf/mesh-ebpf.o"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, out.join("mesh-ebpf.o")) {
        println!("cargo::error={}: {error}: run `cargo xtask build-ebpf`", object.display());
        process::exit(1);
    }
}

/// The workspace's target directory: cargo marks it, wherever settings put it.
fn target_directory(out: &Path) -> PathBuf {
    let is_marked = |directory: &&Path| directory.join("CACHEDIR.TAG").exists();
    out.ancestors().find(is_marked).expect("OUT_DIR is below cargo's target directory").to_owned()
}
