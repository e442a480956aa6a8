//! What the fuzz target of `fuzz/` calls. Only calls; in no release.

use crate::{Configuration, addresses, run};

/// Standard input of a call. Good when a pod could be set up with it.
pub fn cni_call(input: &[u8]) -> bool {
    let versions = run(|name| (name == "CNI_COMMAND").then(|| "VERSION".to_owned()), input);
    let Ok(configuration) = Configuration::read(input) else { return false };
    assert!(versions.is_ok(), "its versions are refused");
    assert!(configuration.socket.is_absolute());
    let Some(found) = configuration.result.as_ref().and_then(|result| addresses(result).ok()) else { return false };
    let of_v4 = found.iter().filter(|address| address.is_ipv4()).count();
    assert!(!found.is_empty() && of_v4 <= 1 && found.len() - of_v4 <= 1, "{found:?}");
    true
}

#[cfg(test)]
mod tests {
    use super::cni_call;

    #[test]
    fn the_whole_corpus_holds_what_the_target_asserts() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/cni_call");
        for file in std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap()) {
            let is_good = cni_call(&std::fs::read(file.path()).unwrap());
            assert_eq!(is_good, file.file_name().to_string_lossy().starts_with("good"), "{:?}", file.path());
        }
    }
}
