//! Command line of the agent; everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::{
    admin::LogControl,
    agent::{self, Agent},
    config::{CommandLine, Config, Verb},
    control::causes,
};

#[cfg(not(sanitized))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        // One text for the operator, who has no use for a backtrace.
        eprintln!("mesh-agent: {}", causes(error.as_ref()));
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    match CommandLine::parse().verb {
        Verb::Run(arguments) => {
            let config = Config::check(&arguments)?;
            let log = LogControl::install(&arguments.log, arguments.log_format)?;
            Agent::new(config, log)?.run()?;
        }
        Verb::Check(arguments) => return Ok(agent::check(&arguments)?),
        Verb::Detach(arguments) => agent::detach(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}
