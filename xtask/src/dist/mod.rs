//! `cargo xtask dist`: the programs, and the container image of them without a container engine. The image holds our
//! programs, the libraries that they need out of this machine's Debian packages, and a list of all of it; nothing else,
//! not even a shell. The same sources and packages make the same image, byte for byte.
//!
//! One image for agent and control daemon: they are of one version by construction, nodes keep one set of layers, and there is
//! one digest to sign and to look through. What a program may do is decided by its pod, not by what lies beside it: control
//! runs as nobody without a capability on a read-only file system, and the agent's program can do nothing there.

mod archive;
mod base;
mod binaries;
pub mod dockerfile;
mod image;
mod root;
mod sbom;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{shell, workspace};

/// The image's name, without a tag, unless `--name` says another.
pub const NAME: &str = "mesh.dev/mesh";
/// Of all crates of the workspace, and so of image and chart.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What to make.
#[derive(Args)]
pub struct Arguments {
    /// Profile of the programs: `dist`, which takes minutes, or `release` for a trial.
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Name of the image; with the version as its tag, unless it has one.
    #[arg(long, default_value = NAME)]
    name: String,
    /// Put the image's files into this empty directory, and make no image; what deploy/Dockerfile does.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Arguments {
    /// An image of the programs that `cargo xtask build` makes, for stories.
    pub fn of_release() -> Self {
        Self { profile: "release".to_owned(), name: NAME.to_owned(), root: None }
    }
}

/// What is told of an image, and decides its times.
pub struct Facts {
    /// With a tag.
    pub name: String,
    /// The commit, with `-dirty` where the sources differ from it; empty when there is no git.
    pub revision: String,
    /// Seconds since 1970: SOURCE_DATE_EPOCH, else the commit's.
    pub epoch: u64,
    /// The same as RFC 3339 has it.
    pub created: String,
}

/// # Errors
/// A build fails, or a library that a program needs is of no package.
pub fn run(arguments: &Arguments) -> Result<()> {
    let programs = binaries::build(&arguments.profile)?;
    let facts = facts(&arguments.name)?;
    if let Some(directory) = &arguments.root {
        return contents(&programs, &facts)?.write(directory);
    }
    let root = contents(&programs, &facts)?;
    let image = image::pack(&root, &facts)?;
    let directory = workspace::target_directory()?.join("image");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let stem = format!("mesh-{VERSION}-{}", image::architecture());
    let archive = directory.join(format!("{stem}.tar"));
    write(&archive, &image.archive)?;
    write(&directory.join(format!("{stem}.spdx.json")), root.content(sbom::PLACE).context("an image has a list")?)?;
    shell::say(&format!("image {} ({}) in {}", facts.name, image.digest, archive.display()));
    Ok(())
}

/// All files of the image.
fn contents(programs: &[PathBuf], facts: &Facts) -> Result<root::Root> {
    let mut root = root::Root::new();
    let packages = base::add(&mut root, programs)?;
    for program in programs {
        let name = program.file_name().and_then(|name| name.to_str()).context("a program has a name")?;
        root.program(&binaries::place(name), binaries::stripped(program)?);
    }
    root.file("usr/share/doc/mesh/copyright", read(&workspace::root().join("LICENSE"))?);
    root.file(sbom::PLACE, sbom::write(&packages, facts)?);
    Ok(root)
}

fn facts(name: &str) -> Result<Facts> {
    let git = |arguments: &[&str]| shell::answer(Command::new("git").current_dir(workspace::root()).args(arguments));
    let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().context("SOURCE_DATE_EPOCH is not a number of seconds")?,
        Err(_) => git(&["log", "-1", "--format=%ct"]).and_then(|text| text.parse().ok()).unwrap_or(0),
    };
    let is_dirty = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    let mark = if is_dirty { "-dirty" } else { "" };
    let revision = git(&["rev-parse", "HEAD"]).map(|commit| commit + mark).unwrap_or_default();
    Ok(Facts { name: tagged(name), revision, epoch, created: rfc3339(epoch)? })
}

/// A colon before the last slash is a registry's port.
fn tagged(name: &str) -> String {
    let has_tag = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if has_tag { name.to_owned() } else { format!("{name}:{VERSION}") }
}

fn rfc3339(epoch: u64) -> Result<String> {
    let date = shell::answer(Command::new("date").args(["-u", "-d", &format!("@{epoch}"), "+%FT%TZ"]));
    date.with_context(|| format!("`date` does not know the time {epoch}"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// At once, so that nobody loads half an archive.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, content).with_context(|| fresh.display().to_string())?;
    fs::rename(&fresh, path).with_context(|| path.display().to_string())
}
