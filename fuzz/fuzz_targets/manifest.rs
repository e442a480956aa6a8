//! A file of manifests, and whether agents take all that comes of it.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_control::fuzzing::manifest(bytes);
    let told = mesh_control::fuzzing::answers(bytes);
    assert!(told.is_empty() || mesh_agent::fuzzing::resources(&told), "an agent refuses what control made of the file");
});
