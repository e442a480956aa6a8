//! HTTP/2 as a verified peer may send it.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_agent::fuzzing::hbone_tunnel(bytes);
});
