//! Command line, log and signals of the control daemon; everything else is in the library.

use std::{future::Future, io::IsTerminal, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use mesh_control::{
    daemon::Daemon,
    descriptors,
    operator::RotateRoot,
    privileges,
    settings::{LogFormat, Settings},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

/// Asks a daemon that runs; without it the program is the daemon.
const VERB: &str = "rotate-root";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-control: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// One line for the operator, who has no use for a backtrace; a cause that the text already ends with is not repeated.
fn with_causes(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") })
}

async fn run() -> anyhow::Result<()> {
    let mut words = std::env::args_os();
    if words.nth(1).is_some_and(|word| word == VERB) {
        // clap names the program by the first word.
        println!("{}", RotateRoot::parse_from(std::iter::once(VERB.into()).chain(words)).run()?);
        return Ok(());
    }
    let settings = Settings::parse();
    privileges::shed()?;
    start_log(&settings)?;
    descriptors::raise_limit()?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(stop_on_signal(stop)?);
    Daemon::start(&settings, stopping).await?.serve().await
}

fn start_log(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log).context("--log")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn stop_on_signal(stop: watch::Sender<bool>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        stop.send_replace(true);
    })
}
