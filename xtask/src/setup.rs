//! Finds or installs what building, testing and the demo need. Idempotent and quick when nothing is missing; where it
//! cannot install it prints the exact commands. Never starts a service, never changes what is already there.

use std::{ffi::OsString, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    ebpf::Toolchain,
    shell::{self, say},
};

/// What compiling the workspace needs beyond rustup: a C compiler and CMake for aws-lc.
const BUILD: &[&str] = &["gcc", "g++", "libc6-dev", "make", "cmake", "pkg-config"];
/// A compiler with the source of `core`, and the LLVM that bpf-linker links against.
const COMPILER: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
const LINKER: &[&str] = &["llvm-22-dev", "libzstd-dev", "zlib1g-dev"];
/// What the stories and the demo run: the network's tools, and the real servers of the acceptance.
const STORIES: &[&str] = &[
    "iproute2",
    "nftables",
    "tcpdump",
    "bpftool",
    "iperf3",
    "nginx-light",
    "redis-server",
    "redis-tools",
    "openssh-server",
    "curl",
    "openssl",
    "libfaketime",
];
/// What the nodes of `cargo xtask cluster` run beside the programs that are built for them.
const CLUSTER: &[&str] = &[
    "containerd",
    "runc",
    "containernetworking-plugins",
    "busybox-static",
    "nftables",
    "iptables",
    "conntrack",
    "socat",
    "ethtool",
    "openssl",
];
/// Those of [`STORIES`] and [`CLUSTER`] that bring a service which must stay off.
const SERVICES: &[&str] = &["nginx", "redis-server", "ssh", "containerd"];
const LINKER_VERSION: &str = "0.13.0";
const FUZZ_VERSION: &str = "0.13.2";
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Everything that any verb needs.
///
/// # Errors
/// When something is missing and cannot be installed; the text has the commands.
pub fn everything() -> Result<()> {
    packages("building", BUILD)?;
    ebpf()?;
    packages("stories and demo", STORIES)?;
    say("setup: complete");
    Ok(())
}

/// The toolchain of the eBPF programs.
///
/// # Errors
/// As [`everything`].
pub fn ebpf() -> Result<()> {
    if Toolchain::find().is_none() {
        packages("the eBPF programs' compiler", COMPILER)?;
        if Toolchain::find().is_none() {
            bail!(
                "no toolchain can build `core` for bpfel-unknown-none. Install one:\n  \
                 rustup toolchain install nightly --component rust-src\n\
                 or, on Debian:\n  apt-get install {}",
                COMPILER.join(" ")
            );
        }
    }
    linker()
}

/// All that a machine needs that builds the image, beside rustup.
pub fn of_image() -> Vec<&'static str> {
    let others = ["ca-certificates", "curl", "git"];
    let mut all = [BUILD, COMPILER, LINKER, &others].concat();
    all.sort_unstable();
    all
}

/// What a cluster's nodes need.
///
/// # Errors
/// As [`everything`].
pub fn cluster() -> Result<()> {
    packages("the cluster's nodes", CLUSTER)
}

/// Python with pip, from which the benchmark gets its Envoy.
///
/// # Errors
/// As [`everything`].
pub fn python() -> Result<()> {
    let has_pip = shell::answer(Command::new("python3").args(["-m", "pip", "--version"])).is_some();
    if has_pip { Ok(()) } else { packages("the benchmark", &["python3", "python3-pip"]) }
}

/// What fuzzing needs: all that the agent is built with, and cargo-fuzz.
///
/// # Errors
/// As [`everything`].
pub fn fuzz() -> Result<()> {
    packages("building", BUILD)?;
    ebpf()?;
    let version = shell::answer(Command::new("cargo-fuzz").arg("--version").env("PATH", path_with_cargo_binaries()));
    if version.is_some_and(|version| version.ends_with(FUZZ_VERSION)) {
        return Ok(());
    }
    let mut install = install("cargo-fuzz", FUZZ_VERSION);
    shell::run(&mut install)
}

/// `cargo install` from the root directory, so that this workspace's pinned toolchain and settings do not apply.
fn install(program: &str, version: &str) -> Command {
    let mut install = Command::new("cargo");
    install
        .args(["install", program, "--version", version, "--locked"])
        .current_dir("/")
        .env_remove("CARGO_TARGET_DIR");
    install
}

fn linker() -> Result<()> {
    let version = shell::answer(Command::new("bpf-linker").arg("--version").env("PATH", path_with_cargo_binaries()));
    if version.is_some_and(|version| version.ends_with(LINKER_VERSION)) {
        return Ok(());
    }
    packages("bpf-linker", LINKER)?;
    let mut install = install("bpf-linker", LINKER_VERSION);
    install.args(["--no-default-features", "--features", "llvm-22"]).env("LLVM_PREFIX", "/usr/lib/llvm-22");
    shell::run(&mut install).context("LLVM_PREFIX=/usr/lib/llvm-22 has to be in the environment of this command")
}

/// PATH with the directory into which `cargo install` puts binaries.
pub fn path_with_cargo_binaries() -> OsString {
    let home = std::env::var_os("CARGO_HOME")
        .map(Into::into)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .unwrap_or_default();
    let mut path = home.join("bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// Installs those of `names` that are missing; asks the package mirror only then.
fn packages(purpose: &str, names: &[&str]) -> Result<()> {
    if !shell::is_installed("dpkg-query") {
        return without_debian(purpose, names);
    }
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_package_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let commands = format!("  apt-get update\n  apt-get install --no-install-recommends {}", missing.join(" "));
    if !shell::is_root() {
        bail!("{purpose}: missing packages, and only root can install them:\n{commands}");
    }
    say(&format!("setup: {purpose}: installing {}", missing.join(" ")));
    let _quiet = ServicesStayOff::begin()?;
    shell::run(Command::new("apt-get").args(["update", "-qq"])).with_context(|| format!("try\n{commands}"))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    shell::run(&mut install).with_context(|| format!("try\n{commands}"))?;
    disable_new_services(&missing);
    Ok(())
}

/// On another system the programs may be there under other package names: the programs decide.
fn without_debian(purpose: &str, names: &[&str]) -> Result<()> {
    let programs = ["cc", "cmake", "ip", "nft", "tcpdump", "bpftool", "iperf3", "nginx", "redis-server", "sshd"];
    let missing: Vec<&str> = programs.into_iter().filter(|program| !shell::is_installed(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "{purpose}: not a Debian system, and these programs are missing: {}. On Debian they come with\n  \
         apt-get install --no-install-recommends {}",
        missing.join(" "),
        names.join(" ")
    );
}

fn is_package_installed(name: &str) -> bool {
    shell::answer(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", name]))
        .is_some_and(|status| status == "installed")
}

/// A server that we brought must not come up with the machine either.
fn disable_new_services(installed: &[&str]) {
    if !Path::new("/run/systemd/system").exists() {
        return;
    }
    for service in SERVICES.iter().filter(|service| installed.iter().any(|name| name.contains(*service))) {
        let disabled = Command::new("systemctl").args(["disable", "--quiet", service]).status();
        if !disabled.is_ok_and(|status| status.success()) {
            say(&format!("setup: could not disable {service}; it may start with the machine"));
        }
    }
}

/// While this lives, Debian's packages do not start their services.
struct ServicesStayOff {
    is_ours: bool,
}

impl ServicesStayOff {
    fn begin() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { is_ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for ServicesStayOff {
    fn drop(&mut self) {
        if self.is_ours && fs::remove_file(POLICY).is_err() {
            say(&format!("setup: {POLICY} could not be removed; services will not start until it is"));
        }
    }
}
