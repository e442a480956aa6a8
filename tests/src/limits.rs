//! What a mesh bears, measured: readers that hardly read beside others, idle connections, a crowd before a dead endpoint, many
//! pods on a node. Figures only; what they must be is said by who asks.

use std::time::{Duration, Instant};

use crate::{
    App, LIMIT, Mesh, Setup, eventually,
    node::Node,
    process::{Process, binary, printed},
    protocol::{Behaviour, CrowdReport, ReadersReport},
};

/// Where the load's server listens.
const PORT: u16 = 80;
/// Streams of the tunnel that slow readers share with others.
const STREAMS: usize = 100;
/// Memory has come to rest when it has not changed by more than this for so long.
const REST: (u64, Duration) = (128 << 10, Duration::from_secs(1));

/// A mesh with a client and a server of the load on two nodes.
pub struct Load {
    /// On node-a.
    pub client: App,
    /// On node-b.
    pub server: App,
    _serving: Process,
    /// Dropped last.
    pub mesh: Mesh,
}

impl Load {
    /// One worker per agent, so that all streams share a tunnel and all figures are of one thread.
    pub fn start() -> Self {
        let agent_arguments = ["--workers", "1"].map(str::to_owned).into();
        let mesh = Mesh::with(Setup { agent_arguments, ..Setup::default() });
        let (client, server) = (mesh.app("client").on("node-a"), mesh.app("server").on("node-b"));
        let load = Self { _serving: serves(&server), client, server, mesh };
        eventually("the load's server answers", LIMIT, || match load.crowd(1).answered {
            1 => Ok(()),
            _ => Err("not yet".to_owned()),
        });
        load
    }

    /// What is left of the speed of a hundred streams' readers when `slow` of them hardly read: by turns, `rounds` times.
    ///
    /// # Panics
    /// When a slow reader was cut.
    pub fn with_slow_readers(&self, slow: usize, rounds: usize) -> ReadersReport {
        let (fast, slow, rounds) = ((STREAMS - slow).to_string(), slow.to_string(), rounds.to_string());
        self.asks(PORT, &["readers", "--fast", &fast, "--slow", &slow, "--rounds", &rounds])
    }

    /// Opens that many connections to the server at once, each for one line.
    pub fn crowd(&self, connections: usize) -> CrowdReport {
        self.crowd_at(PORT, connections)
    }

    /// The same to any port.
    pub fn crowd_at(&self, port: u16, connections: usize) -> CrowdReport {
        self.asks(port, &["crowd", "--connections", &connections.to_string()])
    }

    /// What one idle connection costs each of the two agents, bytes.
    ///
    /// # Panics
    /// When not all are open in time.
    pub fn memory_per_idle_connection(&self, connections: usize) -> [u64; 2] {
        let nodes = ["node-a", "node-b"].map(|name| self.mesh.node(name));
        let (before, open_before) = (nodes.map(memory_at_rest), nodes.map(open));
        let (program, target, count) = (load_program(), self.server.at(PORT).to_string(), connections.to_string());
        let words = ["client", "--mode", "hold", "--seconds", "120", "--target", &target, "--connections", &count];
        let mut holding = self.client.start(&[&[program.as_str()], &words[..]].concat(), "hold.log");
        eventually(&format!("{connections} connections are open"), 4 * LIMIT, || {
            let open = nodes.map(open);
            let are_all = open.iter().zip(open_before).all(|(now, before)| now - before >= connections as f64);
            if are_all { Ok(()) } else { Err(format!("{open:?} are; {}", holding.log())) }
        });
        let after = nodes.map(memory_at_rest);
        holding.kill();
        [0, 1].map(|node| after[node].saturating_sub(before[node]) / connections as u64)
    }

    fn asks<T: serde::de::DeserializeOwned>(&self, port: u16, words: &[&str]) -> T {
        let (program, target) = (load_program(), self.server.at(port).to_string());
        let line = [&[program.as_str(), words[0], "--target", &target], &words[1..]].concat();
        let answer = printed(&self.client.run(&line));
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }
}

fn load_program() -> String {
    binary("mesh-load").display().to_string()
}

fn serves(app: &App) -> Process {
    let listen = format!("0.0.0.0:{PORT}");
    app.start(&[&load_program(), "serve", "--listen", &listen], "serve.log")
}

/// Connections that the agent carries.
fn open(node: &Node) -> f64 {
    let metrics = node.metrics();
    metrics.sum("istio_tcp_connections_opened_total", &[]) - metrics.sum("istio_tcp_connections_closed_total", &[])
}

/// Memory of an agent once it has come to rest.
pub fn memory_at_rest(node: &Node) -> u64 {
    let (mut rest, mut since) = (node.agent_memory(), Instant::now());
    eventually("the agent's memory stays as it is", 2 * LIMIT, || {
        let now = node.agent_memory();
        if now.abs_diff(rest) > REST.0 {
            (rest, since) = (now, Instant::now());
        }
        if since.elapsed() >= REST.1 { Ok(now) } else { Err(format!("{now} bytes")) }
    })
}

/// What many pods cost their node's agent.
#[derive(Debug)]
pub struct ManyPods {
    /// How many.
    pub pods: usize,
    /// Of the calls that enrolled them, all together.
    pub enrolled: Duration,
    /// From the start of an agent to its readiness, with all of them: the best of three.
    pub ready: Duration,
    /// How long of that the agent's threads, which start one after the other's work, waited for a processor.
    pub disturbed: Duration,
    /// Of the calls that withdrew them, all together.
    pub withdrawn: Duration,
    /// For each, bytes of the agent.
    pub memory: u64,
    /// For each, descriptors of the agent.
    pub descriptors: usize,
}

/// Enrols that many on a node, has each answer and call once, restarts the agent, has each answer again, withdraws all.
///
/// # Panics
/// When one does not answer, or anything is refused.
pub fn many_pods(count: usize) -> ManyPods {
    let mesh = Mesh::new();
    let far = mesh.app("far").on("node-b").echoing_on(PORT);
    let node = mesh.node("node-a");
    let pods: Vec<App> = (0..count).map(|number| mesh.app(&format!("pod-{number}")).late().on("node-a")).collect();
    let (memory, descriptors) = (memory_at_rest(node), node.agent_descriptors());
    let begun = Instant::now();
    for pod in &pods {
        node.admin().enrol(pod.enrolment()).unwrap_or_else(|status| panic!("{}: {status:?}", pod.name()));
    }
    let enrolled = begun.elapsed();
    let pods: Vec<App> = pods.into_iter().map(|pod| pod.serving(PORT, Behaviour::Echo)).collect();
    all_talk(&pods, &far);
    let memory = memory_at_rest(node).saturating_sub(memory) / count as u64;
    let descriptors = (node.agent_descriptors() - descriptors) / count;

    let restart = || {
        node.kill_agent();
        let begun = Instant::now();
        node.start_agent();
        node.is_ready();
        let ready = begun.elapsed();
        (ready, ready.min(node.agent_waited()))
    };
    let (ready, disturbed) =
        (0..3).map(|_| restart()).min_by_key(|(ready, disturbed)| *ready - *disturbed).expect("three");
    // From now on nothing fails.
    for pod in &pods {
        far.dial(pod).is_answered();
        pod.dial(&far).is_answered();
    }

    let begun = Instant::now();
    for pod in &pods {
        node.admin().withdraw(pod.uid()).expect("it is enrolled");
    }
    ManyPods { pods: count, enrolled, ready, disturbed, withdrawn: begun.elapsed(), memory, descriptors }
}

fn all_talk(pods: &[App], far: &App) {
    for pod in pods {
        far.reaches(pod.at(PORT));
        pod.reaches(far.at(PORT));
    }
}
