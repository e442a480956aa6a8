//! Building the eBPF programs. They need `core` built from source for the kernel's target, hence a toolchain of their
//! own: a nightly with rust-src, else Debian's compiler, which ships the source. Never writes into the sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{setup, shell, workspace};

/// What LLVM of the bpf-linker that setup installs can read.
const LINKER_LLVM: u32 = 22;
const TARGET: &str = "bpfel-unknown-none";

/// A cargo and a compiler that can build `core` for the kernel's target.
pub enum Toolchain {
    /// A rustup nightly with rust-src and an LLVM that bpf-linker reads.
    Nightly,
    /// Debian's rustc-web, cargo-web and rust-web-src.
    Debian,
}

impl Toolchain {
    /// The first that is complete; one without the source of `core` is not.
    pub fn find() -> Option<Self> {
        [Self::Nightly, Self::Debian].into_iter().find(Self::is_complete)
    }

    fn is_complete(&self) -> bool {
        let sysroot = shell::answer(self.rustc().args(["--print", "sysroot"]));
        let has_core =
            sysroot.is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists());
        has_core && self.llvm().is_some_and(|major| major <= LINKER_LLVM)
    }

    /// Major version of the compiler's LLVM.
    fn llvm(&self) -> Option<u32> {
        let version = shell::answer(self.rustc().arg("-vV"))?;
        let text = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
        text.split('.').next()?.parse().ok()
    }

    fn rustc(&self) -> Command {
        match self {
            Self::Nightly => without_toolchain("rustc", Some("nightly")),
            Self::Debian => without_toolchain("/usr/bin/rustc", None),
        }
    }

    /// A cargo that accepts unstable options.
    pub fn cargo(&self) -> Command {
        match self {
            Self::Nightly => without_toolchain("cargo", Some("nightly")),
            Self::Debian => {
                let mut cargo = without_toolchain("/usr/bin/cargo", None);
                cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc");
                cargo
            }
        }
    }
}

/// `program` without what the cargo that runs us left in the environment.
fn without_toolchain(program: &str, rustup: Option<&str>) -> Command {
    let mut command = Command::new(program);
    for name in ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO"] {
        command.env_remove(name);
    }
    if let Some(toolchain) = rustup {
        command.env("RUSTUP_TOOLCHAIN", toolchain);
    }
    command
}

/// Builds the programs into TARGET/bpf/mesh-ebpf.o; the file is only touched when its content changes.
///
/// # Errors
/// When the toolchain cannot be found or installed, or the build fails.
pub fn build() -> Result<()> {
    setup::ebpf()?;
    let built = cargo("build", &[])?;
    let object = object_path()?;
    fs::create_dir_all(object.parent().expect("a file in a directory"))?;
    let content = fs::read(&built).with_context(|| format!("the build left no {}", built.display()))?;
    if fs::read(&object).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let fresh = object.with_extension("o.new");
    fs::write(&fresh, content)?;
    fs::rename(&fresh, &object)?;
    shell::say(&format!("eBPF programs: {}", object.display()));
    Ok(())
}

/// Builds the programs with warnings as errors and checks their formatting.
///
/// # Errors
/// When there is a warning or a badly formatted file.
pub fn lint() -> Result<()> {
    setup::ebpf()?;
    cargo("build", &["-Dwarnings"])?;
    shell::run(workspace::cargo().current_dir(directory()).args(["fmt", "--check"]))
}

/// Runs a cargo verb on the eBPF crate and returns where the linked object is.
fn cargo(verb: &str, flags: &[&str]) -> Result<PathBuf> {
    let Some(toolchain) = Toolchain::find() else { bail!("no eBPF toolchain: run `cargo xtask setup`") };
    let target = workspace::target_directory()?.join("bpf-build");
    // Sent encoded because the value of --cfg has quotes in it; BTF maps need debug information.
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    // The object is in the agent: it must not say where it was built.
    let maps = workspace::path_maps()?;
    let mut encoded = vec![architecture.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf", "-Clinker=bpf-linker"];
    encoded.extend(maps.iter().map(String::as_str).chain(flags.iter().copied()));
    let mut command = toolchain.cargo();
    command
        .current_dir(directory())
        .args([verb, "--release", "--locked", "--bins", "-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", encoded.join("\x1f"))
        .env("CARGO_CFG_BPF_TARGET_ARCH", std::env::consts::ARCH)
        .env("PATH", setup::path_with_cargo_binaries());
    shell::run(&mut command)?;
    Ok(target.join(TARGET).join("release/mesh-ebpf"))
}

fn directory() -> PathBuf {
    workspace::root().join("mesh-ebpf")
}

/// Where the agent's build script takes the object from.
pub fn object_path() -> Result<PathBuf> {
    Ok(workspace::target_directory()?.join("bpf/mesh-ebpf.o"))
}
