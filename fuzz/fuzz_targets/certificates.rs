//! Certificates, chains and roots, as peers and the control daemon show them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_agent::fuzzing::certificates(bytes);
});
