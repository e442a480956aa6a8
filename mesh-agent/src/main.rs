//! Command line of the agent; everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::{
    admin::LogControl,
    agent::{self, Agent},
    config::{CommandLine, Config, Verb},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
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
