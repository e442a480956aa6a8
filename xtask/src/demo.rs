//! `cargo xtask demo`, `torture`, `soak` and `limits`: build, then hand over to a program of the tests package.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::{binaries, setup, shell, workspace};

/// Runs the demo; with `check` it verifies every statement, cleans up and exits.
///
/// # Errors
/// When not root, a build fails, or a statement of the demo was not true.
pub fn run(check: bool) -> Result<()> {
    let arguments = if check { vec!["--check".to_owned()] } else { Vec::new() };
    hand_over("demo", &arguments)
}

/// Runs faults under load; `arguments` are the program's own.
///
/// # Errors
/// When not root, a build fails, or a promise was not kept.
pub fn torture(arguments: &[String]) -> Result<()> {
    hand_over("torture", arguments)
}

/// Runs load and faults for a long time; `arguments` are the program's own.
///
/// # Errors
/// When not root, a build fails, or something grew.
pub fn soak(arguments: &[String]) -> Result<()> {
    hand_over("soak", arguments)
}

/// Measures what a mesh bears.
///
/// # Errors
/// When not root, or a build fails.
pub fn limits() -> Result<()> {
    hand_over("limits", &[])
}

fn hand_over(verb: &str, arguments: &[String]) -> Result<()> {
    shell::require_root(verb)?;
    setup::everything()?;
    binaries::build()?;
    let mut program = Command::new(workspace::target_directory()?.join(format!("release/mesh-{verb}")));
    program.args(arguments);
    // In our place: Ctrl-C is the program's, which then takes everything down.
    shell::say(&shell::text(&program));
    Err(program.exec()).with_context(|| format!("cannot start the {verb}"))
}
