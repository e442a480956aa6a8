//! A SPIFFE name.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_control::fuzzing::identity(bytes);
});
