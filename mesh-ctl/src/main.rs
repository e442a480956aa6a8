//! `meshctl`: asks the agent of one node over its Unix socket and prints the answer. Keeps no state, opens nothing but
//! that socket, and never changes what the agent enforces except by `enrol`, `withdraw` and `log`.

mod arguments;
mod ask;
mod connection;
mod control;
mod failure;
mod listing;
mod print;
mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::{arguments::Arguments, print::Answer};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match ask::run(Arguments::parse()).await {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(failure::EXIT_NO),
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("meshctl: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
