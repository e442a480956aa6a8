//! `cargo xtask torture`: faults in random order under constant load; prints the table and fails when a promise was not kept.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use mesh_tests::torture::{self, Plan};

#[derive(Parser)]
#[command(about = "Kill, hang, starve and cut off the parts of a mesh under load, and see what it costs.")]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 15)]
    minutes: u64,
    /// Settles order and overlap; a random one otherwise.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}, {} min", arguments.minutes);
    let plan = Plan { seed, duration: Some(Duration::from_secs(60 * arguments.minutes)) };
    let table = torture::run(plan, |row| println!("{row}"));
    println!("\n{table}");
    let findings = table.findings();
    for finding in &findings {
        println!("not kept: {finding}");
    }
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
