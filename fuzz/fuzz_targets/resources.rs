//! What the control daemon tells an agent.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_agent::fuzzing::resources(bytes);
});
