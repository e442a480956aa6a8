//! The corpus of `fuzz/` through the targets, without fuzzing tools: seeds stay what their names say, and what once crashed
//! stays found.

use std::{fs, path::PathBuf};

use super::{TARGETS, seeds::seeds};

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(target)
}

/// Files whose name begins with `good` or `bad` are held to it.
#[test]
fn the_whole_corpus_holds_what_the_targets_assert() {
    for (name, target) in TARGETS {
        let files = fs::read_dir(corpus(name)).unwrap_or_else(|error| panic!("no corpus of {name}: {error}"));
        let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        for path in &files {
            let file = path.file_name().unwrap().to_string_lossy();
            println!("{name}/{file}");
            let is_good = target(&fs::read(path).unwrap());
            assert!(is_good || !file.starts_with("good"), "{name}/{file} is refused");
            assert!(!is_good || !file.starts_with("bad"), "{name}/{file} is taken");
        }
        let has =
            |prefix: &str| files.iter().any(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix));
        assert!(has("good") && has("bad"), "{name} lacks a good or a bad seed");
    }
}

#[test]
#[ignore = "writes the seeds that cannot be written by hand into fuzz/corpus: run it when a message has changed"]
fn write_the_seeds() {
    for (target, name, bytes) in seeds() {
        fs::create_dir_all(corpus(target)).unwrap();
        fs::write(corpus(target).join(name), bytes).unwrap();
    }
}
