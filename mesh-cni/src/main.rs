//! One call of the plug-in: environment and standard input to standard output; everything else is in the library.

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use mesh_cni::{Failure, Refusal, run};

/// Results of chains of plug-ins are a few kilobytes.
const LARGEST_INPUT_BYTES: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().take(LARGEST_INPUT_BYTES).read_to_end(&mut input);
    let answer = match read {
        Ok(_) => run(|name| std::env::var(name).ok(), &input),
        Err(error) => Err(Refusal::without_version(Failure::Input(error.to_string()))),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(refusal) => (refusal.to_string(), ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
