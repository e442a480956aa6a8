//! What is measured, and one measurement of one variant.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::{
    App,
    cost::{self, Processes},
    process::Process,
};
use serde::Deserialize;

/// One row of the tables.
#[derive(Debug)]
pub struct Measure {
    /// As the row is called.
    pub name: &'static str,
    /// The load generator's mode.
    pub mode: &'static str,
    pub connections: usize,
    /// What counts: operations or bytes.
    pub counts_bytes: bool,
    pub is_for_same_node: bool,
}

const fn measure(name: &'static str, mode: &'static str, connections: usize, same_node: bool) -> Measure {
    Measure { name, mode, connections, counts_bytes: matches!(mode.as_bytes(), b"stream"), is_for_same_node: same_node }
}

/// All rows, in order.
pub const MEASURES: &[Measure] = &[
    measure("throughput, 1 stream", "stream", 1, true),
    measure("throughput, 4 streams", "stream", 4, false),
    measure("request/response, 1 connection", "request", 1, false),
    measure("request/response, 16 connections", "request", 16, false),
    measure("request/response, 64 connections", "request", 64, true),
    measure("new connections, 32 at once", "connect", 32, true),
    measure("HTTP 1 KiB, 64 connections", "http", 64, false),
];

/// One way from a client to a server.
pub struct Variant<'a> {
    pub name: &'static str,
    pub client: &'a App,
    pub target: SocketAddr,
    /// Whose CPU time counts as the proxies'.
    pub proxies: &'a Processes,
    pub load: &'a str,
}

/// What one measurement gave.
#[derive(Debug)]
pub struct Sample {
    pub variant: &'static str,
    /// Operations or bytes per second.
    pub rate: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU seconds of the proxies per GiB, or per 10,000 operations; none without proxies.
    pub proxy_cost: Option<f64>,
    /// The same for the whole machine.
    pub machine_cost: f64,
}

/// The load generator's line.
#[derive(Deserialize)]
pub struct Load {
    pub seconds: f64,
    pub operations: u64,
    pub bytes: u64,
    pub errors: u64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Longer than anybody looks at connections that are held.
const HOLD: Duration = Duration::from_secs(600);

const GIB: f64 = (1_u64 << 30) as f64;
const TEN_THOUSAND: f64 = 10_000.0;

impl Variant<'_> {
    /// Measures once. A run with errors is no measurement.
    pub fn measure(&self, measure: &Measure, length: Duration) -> Result<Sample> {
        let before = (self.proxies.cpu(), cost::machine_cpu());
        let load = self.load(measure.mode, measure.connections, length)?;
        let after = (self.proxies.cpu(), cost::machine_cpu());
        ensure!(load.errors == 0, "{} errors in {}, {}", load.errors, self.name, measure.name);
        let count = if measure.counts_bytes { load.bytes } else { load.operations } as f64;
        let unit = if measure.counts_bytes { GIB } else { TEN_THOUSAND };
        // The load runs a tenth longer than it counts.
        let counted = 1.0 / 1.1;
        let cost = |before: Duration, after: Duration| (after - before).as_secs_f64() * counted / (count / unit);
        Ok(Sample {
            variant: self.name,
            rate: count / load.seconds,
            p50_us: load.p50_us,
            p99_us: load.p99_us,
            proxy_cost: (!self.proxies.is_empty()).then(|| cost(before.0, after.0)),
            machine_cost: cost(before.1, after.1),
        })
    }

    /// Runs the load generator in the client's pod.
    pub fn load(&self, mode: &str, connections: usize, length: Duration) -> Result<Load> {
        let words = self.words(mode, connections, length);
        let output = self.client.run(&words.each_ref().map(|word| &**word));
        if !output.status.success() {
            bail!("load through {}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("the load generator's line")
    }

    /// Holds connections open until what it answers is dropped.
    pub fn hold(&self, connections: usize) -> Process {
        let words = self.words("hold", connections, HOLD);
        self.client.start(&words.each_ref().map(|word| &**word), &format!("hold-{}.log", self.name))
    }

    fn words(&self, mode: &str, connections: usize, length: Duration) -> [String; 10] {
        let (target, connections) = (self.target.to_string(), connections.to_string());
        let seconds = length.as_secs_f64().to_string();
        [self.load, "client", "--target", &target, "--mode", mode, "--connections", &connections, "--seconds", &seconds]
            .map(str::to_owned)
    }
}
