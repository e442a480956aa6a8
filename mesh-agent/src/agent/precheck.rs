//! What this node lacks for the agent to run, told without a running agent: by `mesh-agent check`, and in the log when `run`
//! does not get its programs into the kernel. The same lines as `meshctl check` starts with; changes nothing.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::{
    config::CheckArguments,
    kernel::{Fact, FactResult, KernelSettings, precheck},
};

/// Prints every line; exit code 1 when one failed.
///
/// # Errors
/// Standard output cannot be written.
pub fn check(arguments: &CheckArguments) -> io::Result<ExitCode> {
    let facts = precheck(&arguments.cgroup_root, &arguments.bpffs);
    print(&facts, io::stdout().lock())?;
    let has_failed = facts.iter().any(|fact| fact.result == FactResult::Failed);
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(facts: &[Fact], mut out: impl Write) -> io::Result<()> {
    for fact in facts {
        writeln!(out, "{:<8} {:<15} {}", label(fact.result), fact.name, fact.text)?;
        if !fact.remedy.is_empty() {
            writeln!(out, "  next: {}", fact.remedy)?;
        }
    }
    Ok(())
}

fn label(result: FactResult) -> &'static str {
    match result {
        FactResult::Ok => "ok",
        FactResult::Warning => "warning",
        FactResult::Failed => "failed",
    }
}

/// Why the kernel side may not have started, for whoever reads the log.
pub(super) fn log(settings: &KernelSettings) {
    for Fact { name, result, text, remedy } in precheck(&settings.cgroup_root, &settings.bpffs) {
        match result {
            FactResult::Ok => tracing::info!(result = label(result), "check {name}: {text}"),
            FactResult::Warning => tracing::warn!(result = label(result), remedy, "check {name}: {text}"),
            FactResult::Failed => tracing::error!(result = label(result), remedy, "check {name}: {text}"),
        }
    }
}
