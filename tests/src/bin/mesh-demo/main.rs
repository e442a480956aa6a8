//! `cargo xtask demo`: a mesh of two nodes on this machine and an account of what it does. Nothing is printed as true that
//! was not looked at; with `--check` the exit code says whether all of it was.

mod account;
mod scenes;
mod signals;
mod stage;

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use clap::Parser;
use mesh_tests::Mesh;

use crate::{account::Account, signals::Interrupt, stage::Stage};

#[derive(Parser)]
#[command(about = "Two nodes, real agents, real traffic, and a verified account of it.")]
struct Arguments {
    /// Verify every statement, clean up and exit: 0 only if all were true.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let interrupt = Interrupt::catch();
    let mut account = Account::new(&interrupt);
    let trace = play(&mut account, &arguments, &interrupt);
    account.chapter("Leaving");
    // The cgroup is gone only when no process is in it.
    account.claim("no namespace, cgroup, pin, mount, program or process of the demo is left", || trace.is_gone());
    let code = account.close();
    // What was not looked at was not verified.
    if arguments.check && interrupt.has_come() { ExitCode::FAILURE } else { code }
}

/// Sets the stage, plays, and takes the stage down again; returns what to look for afterwards.
fn play(account: &mut Account<'_>, arguments: &Arguments, interrupt: &Interrupt) -> Trace {
    account.chapter("Setting up: two nodes, a control daemon, an agent on each node");
    let stage = Stage::set(Mesh::new());
    let paths = vec![stage.mesh.directory().to_owned(), stage.cgroup()];
    let mut trace = Trace { prefix: stage.prefix(), paths, programs: stage.programs() };
    scenes::play(account, &stage);
    // An agent that was started again has loaded its own.
    trace.programs.extend(stage.programs());
    if !arguments.check && !account.is_interrupted() {
        stage.invite();
        interrupt.wait();
    }
    trace
}

/// Where something of the demo could be left.
struct Trace {
    prefix: String,
    paths: Vec<PathBuf>,
    /// Numbers of the programs on the nodes' cgroups.
    programs: Vec<u64>,
}

impl Trace {
    fn is_gone(&self) -> Result<String, String> {
        let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let left = namespaces
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&self.prefix)));
        let left: Vec<_> = left.chain(self.paths.iter().filter(|path| path.exists()).cloned()).collect();
        let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
        let is_mounted = self.paths.iter().any(|path| mounts.contains(&*path.to_string_lossy()));
        let is_loaded = |id: &&u64| {
            let shown = Command::new("bpftool").args(["prog", "show", "id", &id.to_string()]).output();
            shown.is_ok_and(|output| output.status.success())
        };
        let loaded: Vec<_> = self.programs.iter().filter(is_loaded).collect();
        if left.is_empty() && !is_mounted && loaded.is_empty() && !self.programs.is_empty() {
            Ok(String::new())
        } else {
            Err(format!("{left:?}, mounted: {is_mounted}, programs {loaded:?} of {:?}", self.programs))
        }
    }
}
