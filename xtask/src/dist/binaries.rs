//! The programs of an image: built, without debug information, and where each is put.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::read;
use crate::{binaries, ebpf, shell, workspace};

/// A program of the image and its package.
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// The workspace's package.
    pub package: &'static str,
}

/// Built by itself: without libraries.
const PLUGIN: &str = "mesh-cni";

/// All of them.
pub const PROGRAMS: [Program; 4] = [
    Program { name: "mesh-agent", package: "mesh-agent" },
    Program { name: PLUGIN, package: PLUGIN },
    Program { name: "mesh-control", package: "mesh-control" },
    Program { name: "meshctl", package: "mesh-ctl" },
];

/// Builds them; answers where they are.
///
/// # Errors
/// A build fails.
pub fn build(profile: &str) -> Result<Vec<PathBuf>> {
    if profile == "dist" {
        publishable()?;
    } else {
        // The same packages as every other verb: others would be built with other features, again.
        binaries::build_in(profile)?;
    }
    let directory = workspace::target_directory()?.join(profile);
    Ok(PROGRAMS.iter().map(|program| directory.join(program.name)).collect())
}

/// Without paths of this machine in them, so that another makes the same.
fn publishable() -> Result<()> {
    ebpf::build()?;
    let maps = workspace::path_maps()?;
    let mut command = workspace::cargo();
    command.args(["build", "--profile", "dist", "--locked", "--bins"]);
    for program in PROGRAMS.iter().filter(|program| program.package != PLUGIN) {
        command.args(["--package", program.package]);
    }
    shell::run(command.env("CARGO_ENCODED_RUSTFLAGS", maps.join("\x1f")))?;
    shell::run(binaries::plugin("dist").env("CARGO_ENCODED_RUSTFLAGS", maps.join("\x1f")))
}

/// Where a program is in the image.
pub fn place(name: &str) -> String {
    format!("usr/bin/{name}")
}

/// A program without what only a debugger reads; the names in it stay, for backtraces.
///
/// # Errors
/// It cannot be read.
pub fn stripped(program: &Path) -> Result<Vec<u8>> {
    let target = program.with_extension("stripped");
    // Never over the program itself: cargo would build it again.
    let status = Command::new("objcopy").arg("--strip-debug").arg(program).arg(&target).status();
    if !status.context("cannot start `objcopy`, which comes with binutils")?.success() {
        bail!("`objcopy` cannot read {}", program.display());
    }
    let content = read(&target)?;
    std::fs::remove_file(&target)?;
    Ok(content)
}
