//! Where things are: the root of the sources, the target directory, cargo itself.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::shell;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the workspace")
}

/// The cargo that runs us, in the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The workspace's target directory, wherever CARGO_TARGET_DIR or cargo's configuration put it.
///
/// # Errors
/// When `cargo metadata` fails or answers something else than metadata.
pub fn target_directory() -> Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot start `cargo metadata`")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("`cargo metadata` did not answer with JSON")?;
    let directory = metadata["target_directory"].as_str().context("`cargo metadata` names no target directory")?;
    Ok(directory.into())
}

/// Flags of rustc that keep this machine's paths out of what it makes, so that another makes the same.
///
/// # Errors
/// There is no home directory.
pub fn path_maps() -> Result<[String; 2]> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("a home directory")?;
    let map = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    Ok([map(root(), "/mesh"), map(&cargo_home, "/cargo")])
}

/// The compiler's own target, like `x86_64-unknown-linux-gnu`.
///
/// # Errors
/// When the compiler does not answer.
pub fn host() -> Result<String> {
    let version = shell::answer(Command::new("rustc").arg("-vV").current_dir(root()));
    let version = version.context("`rustc -vV` does not answer")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names no host")
}

/// All `.rs` files below `directory` (relative to the root), sorted; empty when there is no such directory.
pub fn sources(directory: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut pending = vec![root().join(directory)];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() && !path.ends_with("target") {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
