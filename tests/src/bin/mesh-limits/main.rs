//! `cargo xtask limits`: measures what a mesh bears and prints it as a table. Judges nothing: bounds are the stories'.

use mesh_tests::limits::{Load, many_pods};

const ROUNDS: usize = 5;

/// Of rounds that whatever else the machine does can only make slower.
fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

fn main() {
    println!("| what | figure |\n|---|---|");
    let load = Load::start();
    for slow in [1, 10, 50] {
        let report = load.with_slow_readers(slow, ROUNDS);
        let (with, without) = (best(&report.with), best(&report.without));
        let gigabits = without * 8.0 / 1e9;
        println!(
            "| {slow} of 100 streams of a tunnel hardly read: speed of the others, of what it is without | {:.2} ({gigabits:.1} Gbit/s) |",
            with / without
        );
    }
    let dead_port = load.crowd_at(9, 5_000);
    println!(
        "| 5,000 at once to a port that nobody listens on: the last is refused after | {} ms |",
        dead_port.slowest_ms
    );
    let [near, far] = load.memory_per_idle_connection(10_000);
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    println!(
        "| 10,000 idle connections: memory of each in the agents of client and server | {:.1}, {:.1} KiB |",
        kib(near),
        kib(far)
    );
    load.mesh.link().silences(&["node-b"]);
    let silent = load.crowd(5_000);
    println!(
        "| 5,000 at once to a node that is silent: the last is refused after | {:.1} s |",
        silent.slowest_ms as f64 / 1e3
    );
    drop(load);
    let pods = many_pods(200);
    let each = |time: std::time::Duration| time.as_secs_f64() * 1e3 / pods.pods as f64;
    println!(
        "| 200 pods on a node: enrolling one, withdrawing one | {:.1}, {:.1} ms |",
        each(pods.enrolled),
        each(pods.withdrawn)
    );
    println!("| the same: ready after a restart | {:.2} s |", pods.ready.as_secs_f64());
    println!(
        "| the same: memory and descriptors of the agent, each | {:.0} KiB, {} |",
        kib(pods.memory),
        pods.descriptors
    );
}
