//! The file that remembers the enrolled pods.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_agent::fuzzing::pods_file(bytes);
});
