//! `cargo xtask soak`: load and faults for a long time; prints what the agents hold after each fault and fails when it grows.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use mesh_tests::torture::{Soak, soak};

#[derive(Parser)]
#[command(about = "Everything at once for a long time: nothing that an agent holds may grow.")]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Settles order and overlap of the faults; a random one otherwise.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}, {} min\n\n{}", arguments.minutes, Soak::head());
    let soak = soak(Duration::from_secs(60 * arguments.minutes), seed, |sample| println!("{sample}"));
    let findings = soak.findings();
    for finding in &findings {
        println!("not kept: {finding}");
    }
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
