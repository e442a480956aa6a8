//! `cargo xtask cluster`: a real Kubernetes on this machine, by the scripts of tests/cluster (its README says what it is,
//! what it costs and what differs from others). Builds what they start, once, into a cache. Needs Go; nothing else of
//! the workspace does.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::{setup, shell, workspace};

/// What is done with the cluster. Environment variables choose another place, name or port: tests/cluster/README.md.
#[derive(Subcommand)]
pub enum Verb {
    /// Start it, or what is missing of it; prints KUBECONFIG.
    Up {
        /// Only etcd and the API server, on loopback.
        #[arg(long)]
        api_only: bool,
        /// Number of nodes.
        #[arg(long, default_value_t = 2, conflicts_with = "api_only")]
        nodes: u8,
        /// Nodes with a containerd that has NRI.
        #[arg(long, conflicts_with = "api_only")]
        nri: bool,
    },
    /// Stop it and remove all that it made; the programs stay in the cache.
    Down,
    /// What runs of it; fails unless the API server answers.
    Status,
}

/// # Errors
/// A program cannot be built or started; the text names it.
pub fn run(verb: &Verb) -> Result<()> {
    shell::require_root("cluster")?;
    match verb {
        Verb::Up { api_only: true, .. } => {
            build(&["api"])?;
            shell::run(script("up").arg("--api-only"))
        }
        Verb::Up { nodes, nri, .. } => {
            build(&["api", "nodes", "dns", "helm"])?;
            let mut up = script("up");
            up.args(["--nodes", &nodes.to_string()]);
            if *nri {
                build(&["containerd"])?;
                up.arg("--nri");
            }
            shell::run(&mut up)
        }
        Verb::Down => shell::run(&mut script("down")),
        Verb::Status => shell::run(&mut script("status")),
    }
}

/// Whether its API server answers.
pub fn is_up() -> bool {
    shell::answer(&mut script("status")).is_some()
}

/// Builds groups of the cluster's programs; a second when the cache has them.
///
/// # Errors
/// There is no Go, or a program does not build.
pub fn build(groups: &[&str]) -> Result<()> {
    if !shell::is_installed("go") {
        bail!(
            "the cluster's programs are built with Go, and there is none on PATH: install Go 1.25 or newer from \
             https://go.dev/dl"
        );
    }
    if groups.contains(&"nodes") {
        setup::cluster()?;
    }
    shell::run(script("build").args(groups))
}

/// One of the programs that [`build`] makes.
///
/// # Errors
/// It is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let cache = env::var_os("CLUSTER_CACHE").map(PathBuf::from).or_else(|| {
        let home = || env::home_dir().map(|home| home.join(".cache"));
        Some(env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?.join("mesh-cluster"))
    });
    let program = cache.map(|cache| cache.join("bin").join(name)).filter(|program| program.is_file());
    program.with_context(|| format!("{name} is not built: `cargo xtask cluster up` builds it"))
}

fn script(name: &str) -> Command {
    Command::new(workspace::root().join("tests/cluster").join(name))
}
