//! The load of the benchmark: a server and a closed-loop client, the same binary on every variant that is compared.
//! Prints one JSON line; never judges a figure. Both have a thread for each processor: with one each, the end that has more
//! to do would set the rate alone, and what the other is spared would not be seen.

mod client;
mod crowd;
mod readers;
mod server;

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(about = "Load generator and server of the benchmark")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answers on this address until killed.
    Serve {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Loads a server and prints what it measured.
    Client {
        /// The server as the client dials it.
        #[arg(long)]
        target: SocketAddr,
        /// What one operation is.
        #[arg(long)]
        mode: Mode,
        /// Connections (or, for `connect`, loops) at once.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Length of the measurement in seconds, after a tenth of it as warm-up.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Reads as fast as it can over some connections, with and without others that hardly read; prints both rates.
    Readers {
        /// The server as the client dials it.
        #[arg(long)]
        target: SocketAddr,
        /// Connections that read as fast as they can.
        #[arg(long)]
        fast: usize,
        /// Connections that hardly read, every other time.
        #[arg(long)]
        slow: usize,
        /// How often each is measured.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Length of one measurement in seconds.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Opens all connections at once, sends a line over each, and prints what came of them.
    Crowd {
        /// The server as the client dials it.
        #[arg(long)]
        target: SocketAddr,
        /// Connections.
        #[arg(long)]
        connections: usize,
    },
}

/// What one operation is.
#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Bytes one way, 256 KiB a write.
    Stream,
    /// 128 bytes there and back on an open connection.
    Request,
    /// Connect, 128 bytes there and back, close.
    Connect,
    /// A keep-alive HTTP/1.1 request with a 1 KiB answer.
    Http,
    /// Connections that are opened and held without a byte for the given time.
    Hold,
}

fn main() -> Result<()> {
    raise_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match Arguments::parse().verb {
        Verb::Serve { listen } => server::serve(listen),
        Verb::Client { target, mode, connections, seconds } => {
            let report = client::load(target, mode, connections, Duration::from_secs_f64(seconds))?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
        Verb::Readers { target, fast, slow, rounds, seconds } => {
            let length = Duration::from_secs_f64(seconds);
            let report = runtime.block_on(readers::compare(target, [fast, slow], rounds, length))?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
        Verb::Crowd { target, connections } => {
            println!("{}", serde_json::to_string(&runtime.block_on(crowd::come(target, connections)))?);
            Ok(())
        }
    }
}

/// Ten thousand connections need as many descriptors.
fn raise_limit() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?)
}
