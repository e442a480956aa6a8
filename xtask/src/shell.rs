//! Running other programs: what runs is printed, what fails is named. Never through a shell.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Says what is being done, in the form all verbs use.
pub fn say(text: &str) {
    eprintln!("xtask: {text}");
}

/// The command as a person would type it.
pub fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs `command` with our standard streams.
///
/// # Errors
/// When it cannot be started or does not exit with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = text(command);
    say(&line);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// What `command` prints; `None` when it cannot be started or fails. For questions, hence silent.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether `program` is in PATH, or in the directories of root's PATH that others lack.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|directory| std::path::Path::new(directory).join(program).is_file())
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// # Errors
/// When not root, with the reason why `verb` needs it.
pub fn require_root(verb: &str) -> Result<()> {
    if !is_root() {
        bail!("`cargo xtask {verb}` makes network namespaces and cgroups and loads eBPF programs: run it as root");
    }
    Ok(())
}
