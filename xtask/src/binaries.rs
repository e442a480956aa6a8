//! The release binaries that the demo and the stories run.

use std::process::Command;

use anyhow::Result;

use crate::{ebpf, shell, workspace};

/// Builds the eBPF object, then the daemons, the command line, the test applications and the CNI plug-in, in the release profile.
///
/// # Errors
/// When a build fails.
pub fn build() -> Result<()> {
    build_in("release")
}

/// The same in another profile, e.g. `dist`: slower to build, faster to run.
///
/// # Errors
/// When a build fails.
pub fn build_in(profile: &str) -> Result<()> {
    ebpf::build()?;
    let packages = ["mesh-agent", "mesh-control", "mesh-ctl", "mesh-tests"].map(|package| ["--package", package]);
    shell::run(
        workspace::cargo().args(["build", "--profile", profile, "--locked", "--bins"]).args(packages.as_flattened()),
    )?;
    shell::run(&mut plugin(profile))
}

/// The CNI plug-in runs on nodes, whatever libraries these have: it needs none.
pub fn plugin(profile: &str) -> Command {
    let mut command = workspace::cargo();
    command.args(["rustc", "--profile", profile, "--locked", "--package", "mesh-cni", "--bin", "mesh-cni"]);
    command.args(["--", "-C", "target-feature=+crt-static"]);
    command
}
