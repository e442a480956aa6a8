//! The load of the benchmark: a server and a closed-loop client, the same binary on every variant that is compared.
//! Prints one JSON line; never judges a figure. One thread each, so that a rate is a statement about CPU cost.

mod client;
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match Arguments::parse().verb {
        Verb::Serve { listen } => runtime.block_on(server::serve(listen)),
        Verb::Client { target, mode, connections, seconds } => {
            let report = runtime.block_on(client::load(target, mode, connections, Duration::from_secs_f64(seconds)))?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
    }
}
