//! A copy of the sources that may be broken, with a target directory of its own. Files are written only when their content
//! differs, so that what is built again is what a patch touches. The checkout itself is never written.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::patch::Story;
use crate::{shell, workspace};

/// What the stories run.
const PROGRAMS: [&str; 4] = ["mesh-agent", "mesh-control", "mesh-ctl", "mesh-tests"];
/// Our own code is not optimised: it is built again for every variant, and no story of theirs is about speed.
const QUICK: [&str; 6] = ["mesh-agent", "mesh-api", "mesh-common", "mesh-control", "mesh-ctl", "mesh-tests"];

/// The copy.
pub struct Tree {
    sources: PathBuf,
    target: PathBuf,
}

/// What a story did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It passed.
    Passed,
    /// An assertion failed.
    Failed,
    /// Neither: it did not run.
    Broken,
}

impl Tree {
    /// Makes or finds it; call [`Self::restore`] before anything else.
    ///
    /// # Errors
    /// The target directory cannot be found or written.
    pub fn new() -> Result<Self> {
        let home = workspace::target_directory()?.join("mutate");
        let tree = Self { sources: home.join("tree"), target: home.join("target") };
        fs::create_dir_all(&tree.sources).with_context(|| format!("cannot make {}", tree.sources.display()))?;
        Ok(tree)
    }

    /// Where the sources are.
    pub fn sources(&self) -> &Path {
        &self.sources
    }

    /// Makes the sources those of the checkout again, uncommitted changes included.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn restore(&self) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(workspace::root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let list = shell::answer(&mut git).context("`git ls-files` failed: the variants need a git checkout")?;
        let wanted: HashSet<&Path> = list.split('\0').filter(|name| !name.is_empty()).map(Path::new).collect();
        for name in &wanted {
            let from = workspace::root().join(name);
            // Deleted and not yet committed.
            if from.is_file() {
                copy(&from, &self.sources.join(name))?;
            }
        }
        let mut pending = vec![self.sources.clone()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                let name = path.strip_prefix(&self.sources)?;
                match path.is_dir() {
                    true => pending.push(path),
                    false if wanted.contains(name) && workspace::root().join(name).is_file() => {}
                    false => fs::remove_file(&path)?,
                }
            }
        }
        Ok(())
    }

    /// Builds what stories run.
    ///
    /// # Errors
    /// It does not build: a patch that breaks the build proves nothing.
    pub fn build_programs(&self) -> Result<()> {
        shell::run(self.cargo().args(["xtask", "build-ebpf"]))?;
        let packages = PROGRAMS.map(|package| ["--package", package]);
        shell::run(self.build("build").arg("--bins").args(packages.as_flattened()))
    }

    /// Builds the stories themselves, once: they are what judges, so they are never those of a variant.
    ///
    /// # Errors
    /// They do not build.
    pub fn build_stories<'a>(&self, files: impl Iterator<Item = &'a str>) -> Result<()> {
        let files: Vec<&str> = files.flat_map(|file| ["--test", file]).collect();
        let mut build = self.build("test");
        build.args(["--package", "mesh-tests", "--no-run", "--message-format", "json"]).args(&files);
        shell::say(&shell::text(&build));
        let output = build.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("the stories do not build");
        }
        for (file, program) in executables(&String::from_utf8_lossy(&output.stdout)) {
            // Beside the programs, which is where it looks for them, under a name that later builds leave alone.
            fs::copy(&program, self.story_program(&file)).with_context(|| format!("cannot copy {program}"))?;
        }
        Ok(())
    }

    fn story_program(&self, file: &str) -> PathBuf {
        self.target.join("release").join(format!("story-{file}"))
    }

    /// Runs one story with the programs of now; its output goes to the answer.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn tell(&self, story: &Story) -> Result<(Told, String)> {
        let mut command = Command::new(self.story_program(&story.file));
        command.current_dir(self.sources.join("tests")).args(["--exact", &story.name, "--test-threads", "1"]);
        shell::say(&shell::text(&command));
        let output = command.output().with_context(|| format!("cannot start the story {story}"))?;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Ok((judge(&text), text))
    }

    fn build(&self, verb: &str) -> Command {
        let mut build = self.cargo();
        build.args([verb, "--release", "--locked"]);
        for package in QUICK {
            build.arg("--config").arg(format!("profile.release.package.{package}.opt-level=0"));
        }
        build
    }

    fn cargo(&self) -> Command {
        let mut cargo = workspace::cargo();
        cargo.current_dir(&self.sources).env("CARGO_TARGET_DIR", &self.target).env_remove("MESH_EBPF_OBJECT");
        cargo
    }
}

/// What the one test of a run did, by libtest's last line.
fn judge(output: &str) -> Told {
    let result = output.lines().rev().find(|line| line.starts_with("test result:")).unwrap_or_default();
    match result {
        line if line.contains(" 1 passed; 0 failed") => Told::Passed,
        line if line.contains(" 0 passed; 1 failed") && output.contains("panicked at tests/") => Told::Failed,
        _ => Told::Broken,
    }
}

/// The test programs that cargo names, by their target's name.
fn executables(messages: &str) -> Vec<(String, String)> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = |message: serde_json::Value| {
        let is_test = message["target"]["kind"][0] == "test";
        let name = message["target"]["name"].as_str()?.to_owned();
        message["executable"].as_str().filter(|_| is_test).map(|path| (name, path.to_owned()))
    };
    messages.filter_map(program).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a file in a directory")?)?;
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_assertion_of_the_story_counts_as_noticed() {
        let result = |passed, failed| format!("test result: x. {passed} passed; {failed} failed; 0 ignored");
        let panicked = "thread 'a' panicked at tests/src/dial.rs:1:2:\nnot refused\n";
        assert_eq!(judge(&result(1, 0)), Told::Passed);
        assert_eq!(judge(&format!("{panicked}{}", result(0, 1))), Told::Failed);
        assert_eq!(judge(&result(0, 0)), Told::Broken, "no such story");
        assert_eq!(judge(&result(0, 1)), Told::Broken, "no assertion");
        assert_eq!(judge("error while loading shared libraries"), Told::Broken);
    }

    #[test]
    fn test_programs_are_those_that_cargo_names() {
        let messages = "{\"target\":{\"kind\":[\"test\"],\"name\":\"policy\"},\"executable\":\"/t/policy-1\"}\n\
                        {\"target\":{\"kind\":[\"lib\"],\"name\":\"mesh_tests\"},\"executable\":null}\nnoise\n";
        assert_eq!(executables(messages), [("policy".to_owned(), "/t/policy-1".to_owned())]);
    }
}
