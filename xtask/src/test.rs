//! `cargo xtask test [FILTER]`: all tests but those that need Kubernetes or Helm, which `--cluster` runs, and stories that take
//! minutes, which `--long` runs; with one summary.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{binaries, cluster, dist, setup, shell, workspace};

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
    Summary::of(&mut command)?.judge(filter)
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
    Summary::of(&mut command)?.judge(filter)
}

/// Runs the tests that need Kubernetes: those of the control daemon, each on an API server of its own, those of the chart, and
/// the stories, on a cluster that is started for them. With KUBECONFIG set the stories are on that cluster, which has the
/// image already.
///
/// # Errors
/// As [`run`]; also when the cluster's programs cannot be built.
pub fn on_kubernetes(filter: Option<&str>) -> Result<()> {
    shell::require_root("test --cluster")?;
    setup::everything()?;
    let is_ours = std::env::var_os("KUBECONFIG").is_none();
    if is_ours {
        cluster::build(&["api", "nodes", "dns", "helm"])?;
        dist::run(&dist::Arguments::of_release())?;
    } else {
        cluster::build(&["api", "helm"])?;
    }
    let was_up = cluster::is_up();
    // They are marked as ignored, so that everybody else's run needs neither Go nor Kubernetes.
    let ignored = ["--", "--ignored", "--skip", "fuzzing", "--skip", "scale"];
    let runs: [&[&str]; 3] =
        [&["--package", "mesh-control", "--lib"], &["--package", "xtask"], &["--package", "mesh-kubernetes-tests"]];
    let mut all = Summary { is_success: true, ..Summary::default() };
    for run in runs {
        let mut command = workspace::cargo();
        command
            .args(["test", "--locked", "--no-fail-fast"])
            .args(run)
            .args(ignored)
            .arg("--test-threads=2")
            .args(filter);
        all.add(Summary::of(&mut command)?);
    }
    if is_ours && !was_up {
        cluster::run(&cluster::Verb::Down)?;
    }
    all.judge(filter)
}

/// What all test programs of one run did.
#[derive(Default)]
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

    /// Takes in another run.
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.ignored += other.ignored;
        self.failures.extend(other.failures);
        self.is_success &= other.is_success;
    }

    /// Says it in one line, and what failed.
    fn judge(&self, filter: Option<&str>) -> Result<()> {
        eprintln!("\n{} passed, {} failed, {} ignored", self.passed, self.failures.len(), self.ignored);
        for failure in &self.failures {
            eprintln!("  failed: {failure}");
        }
        if !self.is_success {
            bail!("the tests failed");
        }
        if self.passed == 0 {
            bail!("no test matches {:?}", filter.unwrap_or_default());
        }
        Ok(())
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
