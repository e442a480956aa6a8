//! Standard input of the CNI plug-in.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mesh_cni::fuzzing::cni_call(bytes);
});
