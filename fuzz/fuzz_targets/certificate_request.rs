//! A certificate signing request.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_control::fuzzing::certificate_request(bytes);
});
