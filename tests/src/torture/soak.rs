//! Soak: the load and the faults for a long time, beside connections that are idle and readers that stall, and after each fault
//! a look at what the agents hold. What grows is a leak. Faults that end an agent are left out: a new process holds nothing.

use std::{
    fmt,
    time::{Duration, Instant},
};

use super::{
    Deck, calm,
    load::Load,
    stage::{ECHO, SOURCE, Stage},
    strike,
};
use crate::node::Node;

/// A fault lasts at most this long: many of them say more than long ones.
const LONGEST: Duration = Duration::from_secs(10);
/// Beside the calls of the load.
const IDLE: usize = 200;
const STALLED: usize = 8;
/// Of the samples so many of a hundred are warm-up: caches, pools and the allocator take what they will keep.
const WARM_UP: usize = 25;
/// With fewer after warm-up a median says nothing.
const FEWEST: usize = 6;

/// What is looked at, its unit, and what it may differ by at rest: the load is never the same twice.
const FIGURES: [(&str, u64); 4] = [("memory, KiB", 4096), ("descriptors", 24), ("map entries", 64), ("tasks", 24)];
/// More than this part of what was there is growth, if it is more than a figure may differ by.
const PART: u64 = 10;

/// What both agents hold at a moment: the figures of node-a, then of node-b.
#[derive(Debug, Clone)]
pub struct Sample {
    at: Duration,
    fault: String,
    figures: [[u64; FIGURES.len()]; 2],
}

/// All of a run.
#[derive(Debug, Default)]
pub struct Soak {
    samples: Vec<Sample>,
    broken: Vec<String>,
}

/// Runs for that long; `tell` hears of each sample.
///
/// # Panics
/// When the mesh cannot be made, or a part of it does not come back at all.
pub fn soak(duration: Duration, seed: u64, mut tell: impl FnMut(&Sample)) -> Soak {
    let stage = Stage::set();
    let load = Load::start(&stage);
    let _idle: Vec<_> = (0..IDLE).map(|_| stage.web.client().opens(stage.far.at(ECHO))).collect();
    let _stalled: Vec<_> = (0..STALLED).map(|_| stage.web.client().opens(stage.far.at(SOURCE))).collect();
    calm(&load).unwrap_or_else(|reason| panic!("it does not work without any fault: {reason}"));
    let mut deck = Deck::new(seed, |fault| !fault.ends_agent);
    let mut soak = Soak::default();
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let row = strike(&stage, &load, &deck.draw(), LONGEST);
        soak.broken.extend(row.findings.iter().map(|finding| format!("{}: {finding}", row.fault)));
        let figures = ["node-a", "node-b"].map(|node| figures(stage.mesh.node(node)));
        let sample = Sample { at: begun.elapsed(), fault: row.fault, figures };
        tell(&sample);
        soak.samples.push(sample);
    }
    soak
}

fn figures(node: &Node) -> [u64; FIGURES.len()] {
    let metrics = node.metrics();
    let sum = |name| metrics.sum(name, &[]) as u64;
    [node.agent_memory() >> 10, node.agent_descriptors() as u64, sum("mesh_map_entries"), sum("mesh_tasks")]
}

impl Soak {
    /// Promises that were not kept, and figures that have grown: after warm-up the median of the last third of the samples is
    /// compared with that of the first third.
    pub fn findings(&self) -> Vec<String> {
        let after = &self.samples[self.samples.len() * WARM_UP / 100..];
        let mut findings = self.broken.clone();
        if after.len() < FEWEST {
            findings.push(format!("{} samples after warm-up are too few to see a trend: soak for longer", after.len()));
            return findings;
        }
        for (node, name) in ["node-a", "node-b"].iter().enumerate() {
            for (index, (figure, slack)) in FIGURES.iter().enumerate() {
                let of =
                    |samples: &[Sample]| median(samples.iter().map(|sample| sample.figures[node][index]).collect());
                let (first, last) = (of(&after[..after.len() / 3]), of(&after[after.len() - after.len() / 3..]));
                if last > first + (first / PART).max(*slack) {
                    findings.push(format!("{name}: {figure} grew from {first} to {last}"));
                }
            }
        }
        findings
    }

    /// The head of the table that samples are the rows of.
    pub fn head() -> String {
        let columns: String = ["a", "b"]
            .iter()
            .flat_map(|node| FIGURES.iter().map(move |(figure, _)| format!(" {node}: {figure} |")))
            .collect();
        format!("| after, s | fault |{columns}\n|{}", "---|".repeat(2 + 2 * FIGURES.len()))
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "| {} | {} |", self.at.as_secs(), self.fault)?;
        self.figures.as_flattened().iter().try_for_each(|figure| write!(formatter, " {figure} |"))
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::{Sample, Soak};
    use std::time::Duration;

    fn of(memory: impl Fn(u64) -> u64) -> Vec<String> {
        let sample = |number| Sample {
            at: Duration::from_secs(number),
            fault: String::new(),
            figures: [[memory(number), 300, 1000 + number % 7, 200], [20_000, 300, 1000, 200]],
        };
        Soak { samples: (0..40).map(sample).collect(), broken: Vec::new() }.findings()
    }

    #[test]
    fn what_grows_is_found_and_warm_up_and_noise_are_not() {
        assert_eq!(of(|number| 40_000 + 10_000 * u64::from(number > 5) + 977 * (number % 5)), [""; 0]);
        let leak = of(|number| 40_000 + 400 * number);
        assert_eq!(leak.len(), 1, "{leak:?}");
        assert!(leak[0].starts_with("node-a: memory, KiB grew from 4"), "{leak:?}");
    }
}
