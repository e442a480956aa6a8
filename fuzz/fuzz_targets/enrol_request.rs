//! What a runtime says of a pod that it enrols.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_agent::fuzzing::enrol_request(bytes);
});
