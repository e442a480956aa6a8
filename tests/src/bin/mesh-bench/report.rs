//! The tables: medians per variant, and medians of the ratios of the same round.

use std::{collections::BTreeMap, fmt::Write, fs, process::Command, time::Duration};

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
    /// (place, measure, quantity, variant) -> samples in the order of the rounds.
    samples: BTreeMap<(&'static str, &'static str, &'static str, &'static str), Vec<f64>>,
    pub memory_idle: Memory,
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
    target("same node", "throughput, 1 stream", "rate", "direct", Bound::AtLeast(0.95)),
    target("same node", "request/response, 64 connections", "rate", "direct", Bound::AtLeast(0.95)),
    target("same node", "new connections, 32 at once", "rate", "direct", Bound::AtLeast(0.95)),
    target("between nodes", "request/response, 64 connections", "rate", "envoy", Bound::AtLeast(1.4)),
    target("between nodes", "new connections, 32 at once", "rate", "envoy", Bound::AtLeast(4.0)),
    target("between nodes", "throughput, 1 stream", "rate", "envoy", Bound::AtLeast(0.9)),
    target("between nodes", "request/response, 1 connection", "p50 us", "envoy", Bound::AtMost(1.0)),
];
const IDLE_MIB: f64 = 16.0;

impl Report {
    pub fn new(length: Duration) -> Self {
        Self { length, samples: BTreeMap::new(), memory_idle: Vec::new(), memory_loaded: Vec::new() }
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
            "rows": rows,
            "memory_idle_mib": self.memory_idle,
            "memory_1000_connections_mib": self.memory_loaded,
        });
        Ok(serde_json::to_vec_pretty(&report)?)
    }

    /// The tables for people.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}; {:.1} s per measurement.\n", machine(), self.length.as_secs_f64());
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
        for (when, memory) in [("idle", &self.memory_idle), ("with 1,000 connections", &self.memory_loaded)] {
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
            let (wanted, is_met) = match bound {
                Bound::AtLeast(least) => (format!("at least {least}"), ratio.value >= least),
                Bound::AtMost(most) => (format!("at most {most}"), ratio.value <= most),
            };
            let verdict = if is_met { "met" } else { "not met" };
            let width = ratio.high - ratio.low;
            let _ = writeln!(
                text,
                "| {place}, {measure}, {quantity}, mesh/{other} | {wanted} | {:.2} ({:.2} to {:.2}, {width:.2} wide) | {verdict} |",
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
