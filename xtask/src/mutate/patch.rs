//! The broken variants of `tests/mutations`: a patch each, with a head of two lines that says what it breaks and which story
//! has to notice.
//!
//! ```text
//! Breaks: a sentence
//! Story: FILE NAME        (tests/tests/FILE.rs or tests/tests/FILE/main.rs, and a function in it)
//!
//! diff --git ...
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{shell, workspace};

const DIRECTORY: &str = "tests/mutations";

/// A broken variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutant {
    /// The patch's file name, without `.patch`.
    pub name: String,
    /// What is wrong with it, in a sentence.
    pub breaks: String,
    /// Who has to notice.
    pub story: Story,
    patch: PathBuf,
}

/// A test of the stories.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Story {
    /// Of `tests/tests`, without `.rs`.
    pub file: String,
    /// A function in it.
    pub name: String,
}

/// All of them, sorted; one, when it is named.
///
/// # Errors
/// There are none, none of that name, or the head of one is not as it should be.
pub fn read(only: Option<&str>) -> Result<Vec<Mutant>> {
    let directory = workspace::root().join(DIRECTORY);
    let mut mutants = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let text = fs::read_to_string(&path)?;
            mutants.push(parse(&path, &text).with_context(|| path.display().to_string())?);
        }
    }
    mutants.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(only) = only {
        let names: Vec<String> = mutants.iter().map(|mutant| mutant.name.clone()).collect();
        mutants.retain(|mutant| mutant.name == only);
        if mutants.is_empty() {
            bail!("no broken variant {only:?}; there are {}", names.join(", "));
        }
    }
    if mutants.is_empty() { bail!("{DIRECTORY} has no patch") } else { Ok(mutants) }
}

fn parse(path: &Path, text: &str) -> Result<Mutant> {
    let head = |key: &str| text.lines().take(2).find_map(|line| line.strip_prefix(key)).map(str::trim);
    let breaks = head("Breaks:").filter(|text| !text.is_empty()).context("its head has no line `Breaks: SENTENCE`")?;
    let story = head("Story:").and_then(|text| text.split_once(' '));
    let (file, name) = story.context("its head has no line `Story: FILE NAME`")?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let story = Story { file: file.to_owned(), name: name.to_owned() };
    Ok(Mutant { name: stem, breaks: breaks.to_owned(), story, patch: path.to_owned() })
}

impl Mutant {
    /// Breaks the sources below `tree`; or only says whether it could, with `--check`.
    ///
    /// # Errors
    /// The patch does not fit any more.
    pub fn apply(&self, tree: &Path, flags: &[&str]) -> Result<()> {
        let mut command = Command::new("git");
        // As a plain directory: inside of a checkout git would take the patch's paths for those of its root.
        command.current_dir(tree).env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap_or(tree));
        command.args(["apply", "--whitespace=nowarn"]).args(flags).arg(&self.patch);
        let output = command.output().context("cannot start git")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} does not apply any more: {}; write it anew for the code of now", self.patch.display(), said.trim())
    }
}

/// For the lint: every patch applies, and every story that a head names is there.
///
/// # Errors
/// See above; all that is wrong is named.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for mutant in read(None)? {
        if let Err(error) = mutant.apply(workspace::root(), &["--check"]) {
            wrong.push(format!("{error:#}"));
        }
        let stories = workspace::root().join("tests/tests");
        let Story { file, name } = &mutant.story;
        let places = [stories.join(format!("{file}.rs")), stories.join(file).join("main.rs")];
        let source: String = places.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
        if !source.contains(&format!("fn {name}()")) {
            wrong.push(format!("{}: there is no story {name} in tests/tests/{file}", mutant.patch.display()));
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n  ")) }
}

impl std::fmt::Display for Story {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}::{}", self.file, self.name)
    }
}

/// Says which one is at work.
pub fn announce(mutant: &Mutant) {
    shell::say(&format!("mutate: {}: {}", mutant.name, mutant.breaks));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_applies_and_names_a_story() {
        check().unwrap();
    }

    #[test]
    fn the_head_of_a_patch_says_what_it_breaks_and_who_has_to_notice() {
        let mutant = parse(Path::new("x/open.patch"), "Breaks: a hook.\nStory: policy a_caller\n\ndiff").unwrap();
        assert_eq!((mutant.name.as_str(), mutant.breaks.as_str()), ("open", "a hook."));
        assert_eq!(mutant.story.to_string(), "policy::a_caller");
        for (text, expected) in [
            ("Story: policy a_caller\n\n", "Breaks"),
            ("Breaks: \nStory: policy a_caller\n", "Breaks"),
            ("Breaks: a hook.\nStory: policy\n", "Story"),
            ("Breaks: a hook.\n\nStory: policy a_caller\n", "Story"),
        ] {
            let error = parse(Path::new("open.patch"), text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
