//! Every verb that a person or CI runs: `cargo xtask VERB`. Each verb sets up what it needs first, says what it runs,
//! and fails with the failing command's name. Never part of the product: nothing here is installed.

mod bench;
mod binaries;
mod chart;
mod cluster;
mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod invariants;
mod lint;
mod mutate;
mod render;
mod sanitize;
mod setup;
mod shell;
mod sizes;
mod test;
mod unsafety;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and show the mesh.")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install the eBPF toolchain and the system packages that building, tests and the demo need.
    Setup,
    /// Build the eBPF programs into TARGET/bpf/mesh-ebpf.o.
    BuildEbpf,
    /// Build the release binaries that the demo and the stories run.
    Build,
    /// Two nodes on this machine, real traffic, a verified account of it; stays up until Ctrl-C.
    Demo {
        /// Verify every statement, clean up and exit.
        #[arg(long)]
        check: bool,
    },
    /// Unit and property tests of all crates, then the stories; FILTER selects tests by name.
    Test {
        /// Part of a test's name.
        filter: Option<String>,
        /// Only the tests that need Kubernetes, on API servers of their own; needs Go.
        #[arg(long)]
        cluster: bool,
        /// Only the stories that take minutes.
        #[arg(long, conflicts_with = "cluster")]
        long: bool,
    },
    /// A real Kubernetes on this machine; needs Go.
    Cluster {
        #[command(subcommand)]
        verb: cluster::Verb,
    },
    /// The programs for users, and the container image of them, without a container engine.
    Dist(dist::Arguments),
    /// Write the files of deploy/ that are made from others.
    Render,
    /// Direct, this mesh and Envoy in one interleaved run, or the control daemon with 20,000 workloads; arguments go to the
    /// benchmark (`-- --help`).
    Bench {
        /// What is measured.
        #[arg(value_enum, default_value_t)]
        what: bench::What,
        /// Arguments of the benchmark.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Faults in random order under load, and a table of what each cost: `--minutes N`, `--seed S`.
    Torture {
        /// Arguments of the program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Load and faults for a long time; fails when what the agents hold grows: `--minutes N`, `--seed S`.
    Soak {
        /// Arguments of the program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures slow readers, idle connections, crowds and many pods, and prints the figures.
    Limits,
    /// Fuzzes every parser that meets bytes from outside, or some TARGETs; fails when one crashes, leaks or hangs.
    Fuzz {
        /// For how long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// How many inputs are enough before that.
        #[arg(long)]
        executions: Option<u64>,
        /// Files of fuzz/fuzz_targets, without `.rs`.
        targets: Vec<String>,
    },
    /// All unsafe code outside the kernel under AddressSanitizer: unit tests, stories and the demo.
    Sanitize,
    /// Deliberately broken variants of the product (tests/mutations), or the one NAMEd: a story has to notice each.
    Mutate {
        /// A file of tests/mutations, without `.patch`.
        name: Option<String>,
    },
    /// Formatting, clippy, layering, sizes, and the eBPF programs without warnings.
    Lint,
    /// What continuous integration runs: test, lint, demo --check.
    Ci,
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Setup => setup::everything(),
        Verb::BuildEbpf => ebpf::build(),
        Verb::Build => binaries::build(),
        Verb::Demo { check } => demo::run(check),
        Verb::Test { filter, cluster: true, .. } => test::on_kubernetes(filter.as_deref()),
        Verb::Test { filter, long: true, .. } => test::long(filter.as_deref()),
        Verb::Test { filter, .. } => test::run(filter.as_deref()),
        Verb::Cluster { verb } => cluster::run(&verb),
        Verb::Dist(arguments) => dist::run(&arguments),
        Verb::Render => render::run(),
        Verb::Bench { what, arguments } => bench::run(what, &arguments),
        Verb::Torture { arguments } => demo::torture(&arguments),
        Verb::Soak { arguments } => demo::soak(&arguments),
        Verb::Limits => demo::limits(),
        Verb::Fuzz { seconds, executions, targets } => fuzz::run(fuzz::Enough { seconds, executions }, &targets),
        Verb::Sanitize => sanitize::run(),
        Verb::Mutate { name } => mutate::run(name.as_deref()),
        Verb::Lint => lint::run(),
        Verb::Ci => {
            test::run(None)?;
            lint::run()?;
            demo::run(true)
        }
    }
}
