//! `cargo xtask sanitize`: all unsafe code outside the kernel, under AddressSanitizer. First the unit tests of the crates that have
//! some; then, with daemons and harness built the same way, a story and the demo, which run the rest. What runs which block is in
//! docs/unsafe.md.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{ebpf, setup, shell, workspace};

const LIBRARIES: [&str; 2] = ["mesh-agent", "mesh-common"];
const PROGRAMS: [&str; 4] = ["mesh-agent", "mesh-control", "mesh-ctl", "mesh-tests"];
/// What the stories start.
const STARTED: [&str; 5] = ["mesh-agent", "mesh-control", "meshctl", "mesh-app", "mesh-load"];
/// Makes bad weather with a TUN device; upgrades, so that hooks, maps and sockets change hands.
const STORIES: [(&str, &str); 2] = [
    ("network", "over_a_narrow_and_then_a_long_and_lossy_way_everything_arrives_as_it_was_sent"),
    ("upgrade", "the_agent_that_was_followed_drains_and_ends_and_touches_nothing_that_is_its_successors"),
];
/// Tests of how large a program is, which is another with the sanitizer.
const SIZES: [&str; 1] = ["the_program_is_smaller_and_still_runs"];

/// Builds and runs all of it.
///
/// # Errors
/// When not root, a build fails, or the sanitizer or a test finds something.
pub fn run() -> Result<()> {
    shell::require_root("sanitize")?;
    setup::everything()?;
    ebpf::build()?;
    let sanitized = Sanitized::new()?;
    sanitized.test_libraries()?;
    sanitized.build_programs()?;
    for (file, story) in STORIES {
        let mut test = sanitized.cargo("test");
        shell::run(test.args(["--package", "mesh-tests", "--test", file, "--", "--exact", story]))?;
    }
    play_demo(with_options(&mut Command::new(sanitized.directory().join("mesh-demo"))))
}

/// Until it stays up and waits for Ctrl-C, which it then gets.
fn play_demo(demo: &mut Command) -> Result<()> {
    shell::say(&shell::text(demo));
    let mut child = demo.stdout(Stdio::piped()).spawn().context("cannot start the demo")?;
    let output = child.stdout.take().context("standard output is a pipe")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if line.contains("Ctrl-C") {
            kill_process(Pid::from_child(&child), Signal::INT).context("cannot interrupt the demo")?;
        }
    }
    let status = child.wait()?;
    if status.success() { Ok(()) } else { bail!("the demo failed: {status}") }
}

/// Builds of their own: a sanitizer is no feature of a crate, everything is built again.
struct Sanitized {
    target: PathBuf,
    host: String,
}

impl Sanitized {
    fn new() -> Result<Self> {
        let host = workspace::host()?;
        Ok(Self { target: workspace::target_directory()?.join("sanitize"), host })
    }

    fn directory(&self) -> PathBuf {
        self.target.join(&self.host).join("debug")
    }

    fn cargo(&self, verb: &str) -> Command {
        let mut cargo = workspace::cargo();
        cargo.args([verb, "--locked", "--target", &self.host, "--target-dir"]).arg(&self.target);
        // The options of sanitizers are unstable; the compiler is the pinned one all the same. With an allocator of its own the
        // agent would keep what it allocates from being looked at.
        cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address --cfg sanitized");
        if let Ok(object) = ebpf::object_path() {
            cargo.env("MESH_EBPF_OBJECT", object);
        }
        with_options(&mut cargo);
        cargo
    }

    fn test_libraries(&self) -> Result<()> {
        let mut test = self.cargo("test");
        test.args(LIBRARIES.map(|package| ["--package", package]).as_flattened());
        test.args(["--lib", "--"]).args(SIZES.map(|name| ["--skip", name]).as_flattened());
        shell::run(&mut test)
    }

    /// The programs that stories start are looked for beside the stories.
    fn build_programs(&self) -> Result<()> {
        let packages = PROGRAMS.map(|package| ["--package", package]);
        shell::run(self.cargo("build").arg("--bins").args(packages.as_flattened()))?;
        for program in STARTED {
            let built = self.directory().join(program);
            fs::copy(&built, self.directory().join("deps").join(program))
                .with_context(|| format!("cannot copy {}", built.display()))?;
        }
        Ok(())
    }
}

/// Leaks are not looked for: that needs ptrace, which agents give up, and memory that grows is what `soak` finds.
fn with_options(command: &mut Command) -> &mut Command {
    command.env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1")
}
