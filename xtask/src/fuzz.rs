//! `cargo xtask fuzz [--seconds N] [--executions N] [TARGET]..`: the fuzz targets of `fuzz/`, one after the other, each for so
//! long or so often, whichever is first, under AddressSanitizer. What they find stays in TARGET/fuzz: inputs that reach new code
//! in `corpus`, those that crash in `artifacts`. The seeds in `fuzz/corpus` are only read.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{ebpf, setup, shell, workspace};

/// Builds with our C libraries; the pinned toolchain has its runtime.
const SANITIZER: &str = "address";
/// One input that takes this long is a finding.
const SLOW_SECONDS: u32 = 10;
/// A target that holds this much is a finding.
const MOST_MEGABYTES: u32 = 2048;
/// What is shown of the output of a target that failed.
const SHOWN_LINES: usize = 60;

/// When a target has done enough.
#[derive(Debug, Clone, Copy)]
pub struct Enough {
    /// For so long,
    pub seconds: u32,
    /// or so often.
    pub executions: Option<u64>,
}

/// Runs every target, or those that are named, and sums up.
///
/// # Errors
/// When there is no such target, a build fails, or a target crashed, leaked or hung; all others run before that is said.
pub fn run(enough: Enough, only: &[String]) -> Result<()> {
    let mut targets = targets()?;
    if let Some(unknown) = only.iter().find(|name| !targets.contains(name)) {
        bail!("no fuzz target {unknown:?}; there are {}", targets.join(", "));
    }
    targets.retain(|target| only.is_empty() || only.contains(target));
    setup::fuzz()?;
    ebpf::build()?;
    let home = workspace::target_directory()?.join("fuzz");
    let binaries = build(&home)?;
    let mut reports = Vec::new();
    for target in targets {
        reports.push(fuzz(&home, &binaries, target, enough)?);
    }
    println!("{}", table(&reports));
    let failed: Vec<&Report> = reports.iter().filter(|report| report.has_failed).collect();
    for report in &failed {
        println!("\n{}: {}", report.target, report.log.display());
        report.crashes.iter().for_each(|crash| {
            println!("  again with `{} {crash}`", binaries.join(&report.target).display());
        });
    }
    if !failed.is_empty() {
        bail!("found something: {}", failed.iter().map(|report| report.target.as_str()).collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

/// The formatting of the targets: their package is none of the workspace's.
///
/// # Errors
/// When a file is badly formatted.
pub fn check_format() -> Result<()> {
    shell::run(workspace::cargo().current_dir(directory()).args(["fmt", "--check"]))
}

fn directory() -> PathBuf {
    workspace::root().join("fuzz")
}

/// By their files, sorted.
fn targets() -> Result<Vec<String>> {
    let files = workspace::sources("fuzz/fuzz_targets");
    let names = files.iter().filter_map(|file| file.file_stem()?.to_str().map(str::to_owned));
    let names: Vec<String> = names.collect();
    if names.is_empty() { bail!("there are no fuzz targets") } else { Ok(names) }
}

/// Builds the targets; the directory in which their programs are.
fn build(home: &Path) -> Result<PathBuf> {
    let host = workspace::host()?;
    let target_directory = home.join("build");
    let mut command = workspace::cargo();
    command.args(["fuzz", "build", "--fuzz-dir"]).arg(directory()).args(["--sanitizer", SANITIZER, "--target", &host]);
    command.arg("--target-dir").arg(&target_directory);
    // The options of sanitizers are unstable; the compiler is the pinned one all the same.
    command.env("RUSTC_BOOTSTRAP", "1").env("PATH", setup::path_with_cargo_binaries());
    command.env("MESH_EBPF_OBJECT", ebpf::object_path()?);
    shell::run(&mut command)?;
    Ok(target_directory.join(host).join("release"))
}

/// Runs one target to its end, whatever that is.
fn fuzz(home: &Path, binaries: &Path, target: String, enough: Enough) -> Result<Report> {
    let (found, artifacts) = (home.join("corpus").join(&target), home.join("artifacts").join(&target));
    let (seeds, dictionary) = (directory().join("corpus").join(&target), dictionary(&target));
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let log = home.join(format!("{target}.log"));
    let mut command = Command::new(binaries.join(&target));
    command
        .arg(format!("-max_total_time={}", enough.seconds))
        .args(enough.executions.map(|most| format!("-runs={most}")))
        .arg(format!("-timeout={SLOW_SECONDS}"))
        .arg(format!("-rss_limit_mb={MOST_MEGABYTES}"))
        // With the separator at its end: it is put before the file's name.
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .args(dictionary.map(|file| format!("-dict={}", file.display())))
        .args([&found, &seeds])
        .env("RUST_BACKTRACE", "1")
        .stderr(File::create(&log).with_context(|| format!("cannot write {}", log.display()))?);
    shell::say(&shell::text(&command));
    let begun = Instant::now();
    let status = command.status().with_context(|| format!("cannot start the fuzz target {target}"))?;
    let seconds = begun.elapsed().as_secs();
    let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let report = Report { has_failed: !status.success(), log, seconds, ..Report::read(target, &output) };
    if report.has_failed {
        let lines: Vec<&str> = output.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"));
    }
    Ok(report)
}

fn dictionary(target: &str) -> Option<PathBuf> {
    let file = directory().join("dictionaries").join(format!("{target}.dict"));
    file.is_file().then_some(file)
}

/// What one target did.
#[derive(Debug, Default, PartialEq)]
struct Report {
    target: String,
    executions: u64,
    seconds: u64,
    /// Features of the code that the seeds do not reach.
    new_features: u64,
    /// Files of the inputs that crashed it, leaked or hung.
    crashes: Vec<String>,
    has_failed: bool,
    log: PathBuf,
}

impl Report {
    /// From libFuzzer's output.
    fn read(target: String, output: &str) -> Self {
        let mut report = Self { target, ..Self::default() };
        let mut first = None;
        for line in output.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Some(at) = words.iter().position(|word| *word == "ft:") {
                let features: u64 = words.get(at + 1).and_then(|number| number.parse().ok()).unwrap_or(0);
                if first.is_none() && words.get(1) == Some(&"INITED") {
                    first = Some(features);
                }
                report.new_features = features.saturating_sub(first.unwrap_or(features));
            }
            if let ["stat::number_of_executed_units:", number] = words[..] {
                report.executions = number.parse().unwrap_or(0);
            }
            if let Some((_, file)) = line.split_once("Test unit written to ") {
                report.crashes.push(file.to_owned());
            }
        }
        report
    }
}

fn table(reports: &[Report]) -> String {
    let row = |report: &Report| {
        let Report { target, executions, seconds, new_features, crashes, .. } = report;
        format!("{target:<22}{executions:>14}{seconds:>10}{new_features:>16}{:>10}", crashes.len())
    };
    let head = format!("{:<22}{:>14}{:>10}{:>16}{:>10}", "target", "executions", "seconds", "new features", "found");
    std::iter::once(head).chain(reports.iter().map(row)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_a_program_with_seeds() {
        let manifest = fs::read_to_string(directory().join("Cargo.toml")).unwrap();
        let programs = manifest.split("[[bin]]").skip(1).filter_map(|text| text.split('"').nth(1));
        let targets = targets().unwrap();
        assert_eq!(programs.collect::<Vec<_>>(), targets);
        let mut corpora: Vec<String> = fs::read_dir(directory().join("corpus"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        corpora.sort();
        assert_eq!(corpora, targets);
    }

    #[test]
    fn a_run_is_summed_up_from_what_libfuzzer_prints() {
        let output = "\
INFO: seed corpus: files: 5 min: 14b max: 251b total: 558b rss: 70Mb
#6\tINITED cov: 700 ft: 900 corp: 5/558b exec/s: 0 rss: 80Mb
#90\tNEW    cov: 710 ft: 931 corp: 6/600b lim: 251 exec/s: 0 rss: 80Mb L: 42/251 MS: 1 CrossOver-
#512\tpulse  cov: 712 ft: 940 corp: 6/600b lim: 251 exec/s: 256 rss: 80Mb
==7== ERROR: libFuzzer: deadly signal
artifact_prefix='/t/'; Test unit written to /t/crash-0a
stat::number_of_executed_units: 600
stat::average_exec_per_sec:     300
";
        let report = Report::read("manifest".into(), output);
        assert_eq!((report.executions, report.new_features), (600, 40));
        assert_eq!(report.crashes, ["/t/crash-0a"]);
        let shown = table(&[report]);
        let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["manifest", "600", "0", "40", "1"]);
    }

    #[test]
    fn a_target_that_could_not_start_did_nothing() {
        assert_eq!(Report::read("x".into(), "error while loading"), Report { target: "x".into(), ..Report::default() });
    }
}
