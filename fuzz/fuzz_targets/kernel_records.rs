//! Records of the hooks' ring buffer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_agent::fuzzing::kernel_records(bytes);
});
