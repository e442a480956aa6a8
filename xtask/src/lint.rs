//! `cargo xtask lint`: formatting, clippy, who may depend on whom, sizes, the names in ARCHITECTURE.md, and the eBPF crate.
//! Reports everything it finds before it fails.

use std::fs;

use anyhow::{Result, bail};

use crate::{ebpf, fuzz, invariants, mutate, setup, shell, sizes, unsafety, workspace};

/// Runs all checks.
///
/// # Errors
/// When one found something.
pub fn run() -> Result<()> {
    setup::ebpf()?;
    // The agent's build script needs the object, whatever is then checked about the agent.
    ebpf::build()?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    let checks: [(&str, &dyn Fn() -> Result<()>); 10] = [
        ("formatting", &|| shell::run(workspace::cargo().args(["fmt", "--all", "--check"]))),
        ("formatting of the fuzz targets", &fuzz::check_format),
        ("clippy", &|| shell::run(workspace::cargo().args(clippy))),
        ("only the kernel module names aya", &only_kernel_names_aya),
        ("the control daemon does not link aya", &control_does_not_link_aya),
        ("sizes", &sizes::check),
        ("unsafe code is where it may be", &unsafety::check),
        ("invariants name their tests", &invariants::check),
        ("broken variants apply and name their stories", &mutate::check),
        ("eBPF programs", &ebpf::lint),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check() {
            shell::say(&format!("lint: {name}: {error:#}"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    shell::say("lint: nothing found");
    Ok(())
}

/// Invariant: everything that touches eBPF from user space is in mesh-agent/src/kernel.
fn only_kernel_names_aya() -> Result<()> {
    let kernel = workspace::root().join("mesh-agent/src/kernel");
    let mut offenders = Vec::new();
    for directory in ["mesh-agent", "mesh-api", "mesh-common", "mesh-control", "mesh-listen", "mesh-ctl", "tests"] {
        for file in workspace::sources(directory) {
            if file.starts_with(&kernel) || file == kernel.with_extension("rs") {
                continue;
            }
            let source = fs::read_to_string(&file)?;
            offenders.extend(lines_naming_aya(&source).map(|line| format!("{}:{line}", file.display())));
        }
    }
    if !offenders.is_empty() {
        bail!("aya is named outside mesh-agent/src/kernel:\n  {}", offenders.join("\n  "));
    }
    Ok(())
}

/// Numbers of the lines whose code, not comment, has the crate's name as a path.
fn lines_naming_aya(source: &str) -> impl Iterator<Item = usize> {
    source.lines().enumerate().filter_map(|(index, line)| {
        let code = line.split("//").next().unwrap_or_default();
        let names_aya = code
            .split(|character: char| !(character.is_alphanumeric() || character == '_' || character == ':'))
            .any(|path| path == "aya" || path.starts_with("aya::") || path.starts_with("aya_"));
        names_aya.then_some(index + 1)
    })
}

/// Invariant: the daemon that holds the CA key loads no programs.
fn control_does_not_link_aya() -> Result<()> {
    let tree = shell::answer(workspace::cargo().args([
        "tree",
        "--locked",
        "-p",
        "mesh-control",
        "-e",
        "normal",
        "--prefix",
        "none",
    ]));
    let Some(tree) = tree else { bail!("`cargo tree -p mesh-control` failed") };
    if let Some(line) = tree.lines().find(|line| line.starts_with("aya")) {
        bail!("mesh-control depends on {line}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::lines_naming_aya;

    #[test]
    fn code_that_names_aya_is_found_and_comments_are_not() {
        let source = "use aya::Ebpf;\n// aya::Ebpf\nlet playa = 1;\n    x: aya_obj::Object,\nuse { aya };\n";
        assert_eq!(lines_naming_aya(source).collect::<Vec<_>>(), [1, 4, 5]);
    }
}
