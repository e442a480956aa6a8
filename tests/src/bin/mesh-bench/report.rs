//! The tables: medians per variant, and medians of the ratios of the same round.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    fs,
    process::Command,
    time::Duration,
};

use anyhow::Result;
use serde_json::json;

use crate::{
    measure::{MEASURES, Measure, Sample},
    rig::Memory,
    statistics::{Median, median},
};

/// All samples of a run.
pub struct Report {
    length: Duration,
    pair_length: Duration,
    /// (place, measure, quantity, variant) -> samples in the order of the rounds.
    samples: BTreeMap<(&'static str, &'static str, &'static str, &'static str), Vec<f64>>,
    /// Before the first measurement; every variant has answered once.
    pub memory_idle: Memory,
    /// After the last one.
    pub memory_after: Memory,
    pub memory_loaded: Memory,
}

const PLACES: [&str; 2] = ["between nodes", "same node"];
const QUANTITIES: [&str; 5] = ["rate", "p50 us", "p99 us", "CPU-s proxies", "CPU-s machine"];
const VARIANTS: [&str; 3] = ["direct", "mesh", "envoy"];

/// What a ratio is to reach.
struct Target {
    place: &'static str,
    measure: &'static str,
    quantity: &'static str,
    other: &'static str,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// At least this, and shown by enough rounds with an interval no wider than this.
    Surely(f64, f64),
}

/// Rounds without which nothing is sure.
const SURE_ROUNDS: usize = 20;

impl Bound {
    fn is_met(self, ratio: Median) -> bool {
        match self {
            Self::AtLeast(least) => ratio.value >= least,
            Self::AtMost(most) => ratio.value <= most,
            Self::Surely(least, width) => {
                ratio.value >= least && ratio.high - ratio.low <= width && ratio.rounds >= SURE_ROUNDS
            }
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
            Self::Surely(least, width) => write!(f, "at least {least}, at most {width} wide"),
        }
    }
}

const fn target(
    place: &'static str,
    measure: &'static str,
    quantity: &'static str,
    other: &'static str,
    bound: Bound,
) -> Target {
    Target { place, measure, quantity, other, bound }
}

/// What this version is to reach; the tables above have everything else.
const TARGETS: &[Target] = &[
    target("same node", "throughput, 1 stream", "rate", "direct", Bound::Surely(0.95, 0.06)),
    target("same node", "request/response, 64 connections", "rate", "direct", Bound::Surely(0.95, 0.06)),
    target("same node", "new connections, 32 at once", "rate", "direct", Bound::Surely(0.95, 0.06)),
    target("between nodes", "request/response, 64 connections", "rate", "envoy", Bound::AtLeast(1.4)),
    target("between nodes", "new connections, 32 at once", "rate", "envoy", Bound::AtLeast(4.0)),
    target("between nodes", "throughput, 1 stream", "rate", "envoy", Bound::AtLeast(0.9)),
    target("between nodes", "request/response, 1 connection", "p50 us", "envoy", Bound::AtMost(1.0)),
];
const IDLE_MIB: f64 = 16.0;

impl Report {
    pub fn new(length: Duration, pair_length: Duration) -> Self {
        let [memory_idle, memory_after, memory_loaded] = Default::default();
        Self { length, pair_length, samples: BTreeMap::new(), memory_idle, memory_after, memory_loaded }
    }

    /// Adds a sample; samples of one round must be added in the order of the rounds.
    pub fn add(&mut self, place: &'static str, measure: &Measure, sample: &Sample) {
        // How long a write takes says nothing about a stream.
        let latency = |us| (!measure.counts_bytes).then_some(us);
        let values = [
            Some(sample.rate),
            latency(sample.p50_us),
            latency(sample.p99_us),
            sample.proxy_cost,
            Some(sample.machine_cost),
        ];
        for (quantity, value) in QUANTITIES.into_iter().zip(values) {
            if let Some(value) = value {
                self.samples.entry((place, measure.name, quantity, sample.variant)).or_default().push(value);
            }
        }
    }

    /// Every sample and ratio.
    pub fn json(&self) -> Result<Vec<u8>> {
        let rows: Vec<_> = self
            .samples
            .iter()
            .map(|((place, measure, quantity, variant), samples)| {
                let ratios: BTreeMap<_, _> = VARIANTS
                    .iter()
                    .filter_map(|other| Some((other, self.ratio(place, measure, quantity, variant, other)?)))
                    .collect();
                json!({
                    "place": place, "measure": measure, "quantity": quantity, "variant": variant,
                    "median": median(samples), "ratio_to": ratios, "samples": samples,
                })
            })
            .collect();
        let report = json!({
            "machine": machine(),
            "seconds_per_measurement": self.length.as_secs_f64(),
            "seconds_per_half_pair": self.pair_length.as_secs_f64(),
            "rows": rows,
            "memory_idle_mib": self.memory_idle,
            "memory_after_load_mib": self.memory_after,
            "memory_1000_connections_mib": self.memory_loaded,
        });
        Ok(serde_json::to_vec_pretty(&report)?)
    }

    /// The tables for people.
    pub fn markdown(&self) -> String {
        let (length, pair_length) = (self.length.as_secs_f64(), self.pair_length.as_secs_f64());
        let mut text = format!("{}; {length:.1} s per measurement, {pair_length:.1} s on one node.\n", machine());
        for place in PLACES {
            let _ = write!(text, "\n### {}{}\n\n", place[..1].to_uppercase(), &place[1..]);
            text.push_str(
                "| measure | | direct | mesh | envoy | mesh/direct | mesh/envoy |\n|---|---|---|---|---|---|---|\n",
            );
            for measure in MEASURES {
                for quantity in QUANTITIES {
                    self.row(&mut text, place, measure, quantity);
                }
            }
        }
        self.targets(&mut text);
        let memory = [
            ("idle", &self.memory_idle),
            ("after the load", &self.memory_after),
            ("with 1,000 connections", &self.memory_loaded),
        ];
        for (when, memory) in memory {
            let _ = write!(text, "\nResident memory {when}, MiB (client's side, server's side):");
            for (variant, mib) in memory {
                let _ = write!(text, " {variant} {:.1}, {:.1};", mib[0], mib[1]);
            }
            text.push('\n');
        }
        text
    }

    fn row(&self, text: &mut String, place: &'static str, measure: &Measure, quantity: &'static str) {
        let cells = VARIANTS.map(|variant| {
            let samples = self.samples.get(&(place, measure.name, quantity, variant))?;
            let scale = if quantity == "rate" && measure.counts_bytes { 8e-9 } else { 1.0 };
            median(samples).map(|median| figure(median.value * scale))
        });
        if cells.iter().all(Option::is_none) {
            return;
        }
        let unit = match (quantity, measure.counts_bytes) {
            ("rate", true) => "Gbit/s".to_owned(),
            ("rate", false) => "per second".to_owned(),
            (quantity, true) if quantity.starts_with("CPU") => format!("{quantity} per GiB"),
            (quantity, false) if quantity.starts_with("CPU") => format!("{quantity} per 10,000"),
            (quantity, _) => quantity.to_owned(),
        };
        let cells = cells.map(|cell| cell.unwrap_or_else(|| "-".into()));
        let ratios = ["direct", "envoy"].map(|other| {
            let ratio = self.ratio(place, measure.name, quantity, "mesh", other);
            ratio.map_or("-".into(), |ratio| format!("{:.2} ({:.2} to {:.2})", ratio.value, ratio.low, ratio.high))
        });
        let _ = writeln!(text, "| {} | {unit} | {} | {} |", measure.name, cells.join(" | "), ratios.join(" | "));
    }

    fn targets(&self, text: &mut String) {
        text.push_str("\n### Targets\n\n| | target | measured | |\n|---|---|---|---|\n");
        for target in TARGETS {
            let Target { place, measure, quantity, other, bound } = *target;
            let Some(ratio) = self.ratio(place, measure, quantity, "mesh", other) else { continue };
            let verdict = if bound.is_met(ratio) { "met" } else { "not met" };
            let width = ratio.high - ratio.low;
            let _ = writeln!(
                text,
                "| {place}, {measure}, {quantity}, mesh/{other} | {bound} | {:.2} ({:.2} to {:.2}, {width:.2} wide) | {verdict} |",
                ratio.value, ratio.low, ratio.high
            );
        }
        let idle = self.memory_idle.iter().find(|(variant, _)| *variant == "mesh");
        if let Some(most) = idle.and_then(|(_, mib)| mib.iter().copied().reduce(f64::max)) {
            let verdict = if most <= IDLE_MIB { "met" } else { "not met" };
            let _ = writeln!(
                text,
                "| resident memory of an idle agent, MiB | at most {IDLE_MIB} | {most:.1} | {verdict} |"
            );
        }
    }

    /// Median of the ratios of the same round.
    fn ratio(&self, place: &str, measure: &str, quantity: &str, variant: &str, other: &str) -> Option<Median> {
        let of = |variant| {
            let mut all = self.samples.iter();
            all.find(|(key, _)| **key == (place, measure, quantity, variant)).map(|(_, samples)| samples)
        };
        let ratios: Vec<f64> = of(variant)?.iter().zip(of(other)?).map(|(one, other)| one / other).collect();
        median(&ratios)
    }
}

fn figure(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// Date, processor, count and kernel: what a figure is worth little without.
fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = rustix::system::uname();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let date = Command::new("date").args(["-u", "+%F"]).output().map(|output| output.stdout).unwrap_or_default();
    let date = String::from_utf8_lossy(&date);
    format!("{}, {count} x {model}, Linux {}", date.trim(), kernel.release().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::{Bound, Median};

    #[test]
    fn a_target_that_must_be_sure_needs_many_rounds_and_a_narrow_interval() {
        let ratio = |value, low, high, rounds| Median { value, low, high, rounds };
        let sure = Bound::Surely(0.95, 0.06);
        for (ratio, is_met) in [
            (ratio(0.97, 0.95, 1.0, 20), true),
            (ratio(0.94, 0.92, 0.97, 80), false),
            (ratio(0.97, 0.93, 1.0, 80), false),
            (ratio(0.97, 0.95, 1.0, 19), false),
        ] {
            assert_eq!(sure.is_met(ratio), is_met, "{ratio:?}");
        }
        assert!(
            Bound::AtLeast(1.4).is_met(ratio(1.4, 0.1, 9.0, 4)) && Bound::AtMost(1.0).is_met(ratio(1.0, 0.1, 9.0, 4))
        );
    }
}
