//! ARCHITECTURE.md names, for each invariant, the tests that hold it. A name that no test has any more is a promise that
//! nobody keeps.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace;

const DOCUMENT: &str = "ARCHITECTURE.md";
const SECTION: &str = "## Invariants\n";
const CRATES: &[&str] =
    &["mesh-common", "mesh-api", "mesh-listen", "mesh-agent", "mesh-cni", "mesh-control", "mesh-ctl", "tests"];

/// # Errors
/// A name in the section is neither a function nor a file of stories, or an invariant names nothing.
pub fn check() -> Result<()> {
    let document = fs::read_to_string(workspace::root().join(DOCUMENT))?;
    let section = document.split_once(SECTION).context("ARCHITECTURE.md has no section Invariants")?.1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut functions = String::new();
    let mut files = Vec::new();
    for directory in CRATES {
        for file in workspace::sources(directory) {
            functions += &fs::read_to_string(&file)?;
            files.extend(file.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    let is_kept = |name: &str| functions.contains(&format!("fn {name}(")) || files.iter().any(|file| file == name);
    let missing: Vec<&str> = names(section).filter(|name| !is_kept(name)).collect();
    if !missing.is_empty() {
        bail!("{DOCUMENT} names tests that are not there: {}", missing.join(", "));
    }
    let is_held = |text: &str| text.contains("lint") || text.split('`').skip(1).step_by(2).any(is_kept);
    let bare: Vec<&str> = invariants(section).into_iter().filter(|text| !is_held(text)).collect();
    if !bare.is_empty() {
        bail!("{DOCUMENT} has invariants that no test or story holds:\n{}", bare.join("\n"));
    }
    Ok(())
}

/// The numbered ones, each with all of its lines.
fn invariants(section: &str) -> Vec<&str> {
    let begins = |line: &str| line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
    let starts = section.match_indices('\n').map(|(at, _)| at + 1).filter(move |at| begins(&section[*at..]));
    let starts: Vec<usize> = starts.chain([section.len()]).collect();
    starts.windows(2).map(|pair| &section[pair[0]..pair[1]]).collect()
}

/// What stands in backticks and could be the name of a test: two words at least, without paths or calls.
fn names(section: &str) -> impl Iterator<Item = &str> {
    let quoted = section.split('`').skip(1).step_by(2);
    quoted.filter(|name| {
        name.contains('_')
            && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::{invariants, names};

    #[test]
    fn names_of_tests_are_told_from_paths_and_programs() {
        let section = "1. Held by `a_test`, `mesh_common::verdict`,\n   `another_1`; `mesh-control` and `authorize` are no tests.";
        assert_eq!(names(section).collect::<Vec<_>>(), ["a_test", "another_1"]);
    }

    #[test]
    fn every_numbered_paragraph_is_an_invariant() {
        let section = "\nEach names a test.\n\n1. One,\n   `held`.\n2. Two.\n";
        assert_eq!(invariants(section), ["1. One,\n   `held`.\n", "2. Two.\n"]);
    }
}
