//! `cargo xtask bench control`: a large mesh in a folder, agents that follow it, changes at a steady pace; how long until a
//! change has arrived, and what it costs. Prints a table; judges nothing.

mod agents;
mod folder;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use mesh_tests::{Mesh, Setup, control::Control, cost::Processes};
use tokio::task::LocalSet;

use self::{
    agents::{Agent, Credentials, Seen},
    folder::{Folder, name},
};

/// Changes that a stream misses before it is opened again.
const MISSED: usize = 5;
/// Until the last change has arrived everywhere, or the run is none.
const LATEST: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(about = "Measures the control daemon with many services, workloads, agents and changes.")]
struct Arguments {
    /// Services, with ten workloads each.
    #[arg(long, default_value_t = 2_000)]
    services: usize,
    /// Simulated agents; a real one is beside them.
    #[arg(long, default_value_t = 20)]
    agents: usize,
    /// Changes a second, each of another workload.
    #[arg(long, default_value_t = 50)]
    rate: usize,
    /// For how long there are changes, s.
    #[arg(long, default_value_t = 20)]
    seconds: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = Folder { services: arguments.services, nodes: arguments.agents };
    if arguments.rate * arguments.seconds + MISSED > folder.services {
        bail!("each change is of another service: there are {}", folder.services);
    }
    let mesh = Mesh::with(Setup { nodes: vec!["node-a".into()], ..Setup::default() });
    let control = mesh.control();
    let credentials: Vec<Credentials> = (0..arguments.agents)
        .map(|number| Credentials {
            control: control.address(),
            root: control.root(),
            token: control.admit(&name(number)),
        })
        .collect();
    let processes = [("control", control.id()), ("an agent", mesh.node("node-a").agent_id())]
        .map(|(name, id)| (name, Processes(vec![id])));
    let begun = Instant::now();
    folder.fill(control);
    control.place().namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = measure(&arguments, folder, control, &credentials, &processes, begun);
        runtime.block_on(LocalSet::new().run_until(run))
    })
}

async fn measure(
    arguments: &Arguments,
    folder: Folder,
    control: &Control,
    credentials: &[Credentials],
    processes: &[(&str, Processes)],
    begun: Instant,
) -> Result<()> {
    println!("| what | figure |\n|---|---|");
    let mut agents = Vec::new();
    for (number, credentials) in credentials.iter().enumerate() {
        agents.push(Agent::open(&name(number), credentials, HashMap::new()).await.context("open a stream")?);
    }
    for agent in &mut agents {
        while agent.pods < folder.pods() {
            tokio::time::timeout(LATEST, agent.read()).await.context("the first state does not come")??;
        }
    }
    let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {} services, {} workloads written: with all {} agents after | {:.1} s |",
        folder.services,
        folder.pods(),
        agents.len(),
        begun.elapsed().as_secs_f64()
    );
    println!("| the same: to each agent | {:.1} MiB |", mebibytes(agents[0].received.bytes));

    let first = agents[0].received.bytes;
    let before: Vec<Duration> = processes.iter().map(|(_, processes)| processes.cpu()).collect();
    let started = Instant::now();
    let (latencies, agents) = changes(arguments, folder, control, agents).await?;
    let length = started.elapsed().as_secs_f64();
    let share = |fraction: f64| {
        let at = ((latencies.len() - 1) as f64 * fraction) as usize;
        latencies[at].as_secs_f64() * 1e3
    };
    println!(
        "| {} changes a second for {} s: from the file's change to its arrival, p50 | {:.0} ms |",
        arguments.rate,
        arguments.seconds,
        share(0.5)
    );
    println!("| the same, p99 | {:.0} ms |", share(0.99));
    for ((name, processes), before) in processes.iter().zip(before) {
        let cpu = (processes.cpu() - before).as_secs_f64() / length;
        println!("| the same: processor time of {name} a second | {cpu:.2} s |");
        println!("| the same: resident memory of {name} | {:.0} MiB |", processes.memory_mib()[0]);
    }
    let bytes = (agents[0].received.bytes - first) / (arguments.rate * arguments.seconds);
    println!("| the same: to each agent and change | {bytes} bytes |");
    reconnect(arguments, folder, control, agents, &credentials[0]).await
}

/// Makes the changes while all agents read; how long each took to reach each agent, sorted.
async fn changes(
    arguments: &Arguments,
    folder: Folder,
    control: &Control,
    agents: Vec<Agent>,
) -> Result<(Vec<Duration>, Vec<Agent>)> {
    let count = arguments.rate * arguments.seconds;
    let readers: Vec<_> = agents
        .into_iter()
        .map(|mut agent| {
            tokio::task::spawn_local(async move {
                let mut seen: HashMap<usize, Seen> = HashMap::new();
                while seen.len() < count {
                    let read = tokio::time::timeout(LATEST, agent.read()).await.context("changes do not come")?;
                    seen.extend(read?.into_iter().map(|seen| (seen.revision, seen)));
                }
                Ok::<_, anyhow::Error>((agent, seen))
            })
        })
        .collect();
    let mut written = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / arguments.rate as u32);
    for change in 0..count {
        pace.tick().await;
        folder.write(control, change, change + 1);
        written.push(Instant::now());
    }
    let (mut latencies, mut agents) = (Vec::new(), Vec::new());
    for reader in readers {
        let (agent, seen) = reader.await??;
        latencies.extend(seen.values().map(|seen| seen.at - written[seen.revision - 1]));
        agents.push(agent);
    }
    latencies.sort_unstable();
    Ok((latencies, agents))
}

/// One agent is away while little changes, and comes back with what it has.
async fn reconnect(
    arguments: &Arguments,
    folder: Folder,
    control: &Control,
    mut agents: Vec<Agent>,
    credentials: &Credentials,
) -> Result<()> {
    let mut away = agents.remove(0);
    away.read_all().await?;
    let versions = std::mem::take(&mut away.versions);
    drop(away);
    let begin = arguments.rate * arguments.seconds;
    for change in begin..begin + MISSED {
        folder.write(control, change, change + 1);
    }
    let witness = &mut agents[0];
    let mut last = 0;
    while last < begin + MISSED {
        let seen = tokio::time::timeout(LATEST, witness.read()).await.context("changes do not come")??;
        last = seen.iter().map(|seen| seen.revision).max().unwrap_or(0).max(last);
    }
    let mut back = Agent::open(&name(0), credentials, versions).await?;
    back.read_all().await?;
    println!(
        "| a stream opened again, {MISSED} changes missed | {} bytes, {} resources |",
        back.received.bytes, back.received.resources
    );
    Ok(())
}
