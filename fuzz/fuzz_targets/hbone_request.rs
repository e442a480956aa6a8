//! The authority and the headers of a CONNECT request.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_agent::fuzzing::hbone_request(bytes);
});
