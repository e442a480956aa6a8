//! `cargo xtask demo`: builds, then hands over to the demo program of the tests package.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::{binaries, setup, shell, workspace};

/// Runs the demo; with `check` it verifies every statement, cleans up and exits.
///
/// # Errors
/// When not root, a build fails, or a statement of the demo was not true.
pub fn run(check: bool) -> Result<()> {
    shell::require_root("demo")?;
    setup::everything()?;
    binaries::build()?;
    let mut demo = Command::new(workspace::target_directory()?.join("release/mesh-demo"));
    if check {
        demo.arg("--check");
    }
    // In our place: Ctrl-C is the demo's, which then takes everything down.
    shell::say(&shell::text(&demo));
    Err(demo.exec()).context("cannot start the demo")
}
