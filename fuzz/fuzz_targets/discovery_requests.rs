//! An agent's side of the discovery stream.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_control::fuzzing::discovery_requests(bytes);
});
