//! A configuration of the node's network.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_agent::fuzzing::cni_list(bytes);
});
