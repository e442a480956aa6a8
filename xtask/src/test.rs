//! `cargo xtask test [FILTER]`: all tests but those that need Kubernetes, which `--cluster` runs, and stories that take minutes, which
//! `--long` runs; with one summary.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{binaries, cluster, setup, shell, workspace};

/// Runs the unit and property tests of all crates, then the stories, and sums up.
///
/// # Errors
/// When not root, a build fails or a test fails; all test programs run before that is said.
pub fn run(filter: Option<&str>) -> Result<()> {
    shell::require_root("test")?;
    setup::everything()?;
    binaries::build()?;
    let mut command = workspace::cargo();
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    judge(&mut command, filter)
}

/// Runs the stories that take minutes, one after the other.
///
/// # Errors
/// As [`run`].
pub fn long(filter: Option<&str>) -> Result<()> {
    shell::require_root("test --long")?;
    setup::everything()?;
    binaries::build()?;
    let mut command = workspace::cargo();
    command.args(["test", "--package", "mesh-tests", "--locked", "--no-fail-fast", "--", "--ignored"]);
    command.arg("--test-threads=1").args(filter);
    judge(&mut command, filter)
}

/// Runs the tests that need Kubernetes: each starts an API server of its own and ends it.
///
/// # Errors
/// As [`run`]; also when the cluster's programs cannot be built.
pub fn on_kubernetes(filter: Option<&str>) -> Result<()> {
    shell::require_root("test --cluster")?;
    cluster::build(&["api"])?;
    let mut command = workspace::cargo();
    // They are marked as ignored, so that everybody else's run needs neither Go nor Kubernetes.
    command.args(["test", "--package", "mesh-control", "--lib", "--locked", "--no-fail-fast", "--", "--ignored"]);
    command.args(["--skip", "fuzzing", "--skip", "scale", "--test-threads=2"]).args(filter);
    judge(&mut command, filter)
}

/// Runs tests and sums up.
fn judge(command: &mut Command, filter: Option<&str>) -> Result<()> {
    let summary = Summary::of(command)?;
    eprintln!("\n{} passed, {} failed, {} ignored", summary.passed, summary.failures.len(), summary.ignored);
    for failure in &summary.failures {
        eprintln!("  failed: {failure}");
    }
    if !summary.is_success {
        bail!("the tests failed");
    }
    if summary.passed == 0 {
        bail!("no test matches {:?}", filter.unwrap_or_default());
    }
    Ok(())
}

/// What all test programs of one run did.
struct Summary {
    passed: usize,
    ignored: usize,
    failures: Vec<String>,
    is_success: bool,
}

impl Summary {
    fn of(command: &mut Command) -> Result<Self> {
        shell::say(&shell::text(command));
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start `cargo test`")?;
        let output = child.stdout.take().expect("standard output is a pipe");
        let mut summary = Self { passed: 0, ignored: 0, failures: Vec::new(), is_success: false };
        for line in BufReader::new(output).lines() {
            let line = line?;
            println!("{line}");
            summary.read(&line);
        }
        summary.is_success = child.wait()?.success();
        Ok(summary)
    }

    /// Takes in one line of libtest's output, `test NAME ... ok`.
    fn read(&mut self, line: &str) {
        let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else {
            return;
        };
        match result {
            "ok" => self.passed += 1,
            "FAILED" => self.failures.push(name.to_owned()),
            ignored if ignored.starts_with("ignored") => self.ignored += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn lines_of_libtest_are_counted() {
        let mut summary = Summary { passed: 0, ignored: 0, failures: Vec::new(), is_success: true };
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test c - should panic ... ok",
            "test d ... FAILED",
            "test e ... ignored, needs a reason",
            "test result: FAILED. 1 passed",
        ] {
            summary.read(line);
        }
        assert_eq!((summary.passed, summary.ignored, summary.failures), (2, 1, vec!["d".to_owned()]));
    }
}
