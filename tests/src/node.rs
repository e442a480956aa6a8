//! A node: a network namespace on the link, a cgroup for its pods, its own processes and its agent.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Output},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    addresses::Pair,
    admin::Admin,
    cgroup::Cgroup,
    cost,
    daemon::Daemon,
    eventually::{LIMIT, eventually},
    link::Link,
    namespace::Namespace,
    process::{Place, binary, printed},
    slot::Slot,
    starve::NoDescriptors,
    web::{self, Metrics},
};

const METRICS_PORT: u16 = 15020;
const READY_PORT: u16 = 15021;

/// A node of a mesh.
pub struct Node {
    name: String,
    number: u8,
    addresses: Pair,
    cgroup: Cgroup,
    agent_place: Place,
    system: Place,
    directory: PathBuf,
    arguments: Vec<String>,
    daemon: Daemon,
}

impl Node {
    pub(crate) fn create(slot: &Slot, link: &Link, name: &str, number: u8) -> Self {
        let namespace = Namespace::create(slot.name(name));
        let cgroup = slot.cgroup().child(name).create();
        let place = |group: &str| Place { namespace: namespace.clone(), cgroup: cgroup.child(group).create() };
        let (agent_place, system) = (place("agent"), place("system"));
        cgroup.child("kubepods").create();
        namespace.set("ipv4/ip_forward", "1");
        namespace.set("ipv6/conf/all/forwarding", "1");
        namespace.ip("addr add 169.254.1.1/32 dev lo");
        let addresses = Pair::new(slot.number(), number, 1);
        link.join(&system, name, addresses);
        let directory = slot.directory().join(name);
        std::fs::create_dir_all(directory.join("bpf")).expect("a directory for the node");
        let arguments = Vec::new();
        let daemon = Daemon::new(format!("the agent of {name}"), directory.join("agent.log"));
        Self { name: name.to_owned(), number, addresses, cgroup, agent_place, system, directory, arguments, daemon }
    }

    /// Settles with which arguments the agent is started, every time.
    pub(crate) fn configure(&mut self, control: SocketAddr, root: &Path, token: &Path, extra: &[String]) {
        let shown = |path: &Path| path.display().to_string();
        let arguments = [
            ("--node", self.name.clone()),
            ("--cgroup-root", shown(self.cgroup.path())),
            ("--bpffs", shown(&self.directory.join("bpf"))),
            ("--run-dir", shown(&self.directory)),
            ("--state-dir", shown(&self.directory.join("state"))),
            ("--control", format!("https://{control}")),
            ("--control-root", shown(root)),
            ("--node-token", shown(token)),
            ("--access-log", "json".to_owned()),
        ];
        self.arguments = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        self.arguments.extend_from_slice(extra);
    }

    /// As in its manifest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 1 for the first.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its own addresses.
    pub fn addresses(&self) -> Pair {
        self.addresses
    }

    /// Where the node's own processes run, a kubelet for one.
    pub fn system(&self) -> &Place {
        &self.system
    }

    /// What the agent gets as --cgroup-root.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// What the agent gets as --run-dir; its subdirectory `bpf` is --bpffs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the agent keeps of the View over a restart.
    pub fn cached_view(&self) -> PathBuf {
        self.directory.join("state").join(format!("{}.view", self.name))
    }

    /// Where the agent keeps keys over a restart of its own.
    pub fn keys(&self) -> PathBuf {
        self.directory.join("keys")
    }

    /// The agent's admin service.
    pub fn admin(&self) -> Admin {
        Admin::new(self.directory.join("admin.sock"))
    }

    /// Starts the agent without waiting for anything.
    pub fn start_agent(&self) {
        self.daemon.start(&self.agent_place, &self.agent(&binary("mesh-agent"), &[]));
    }

    /// The agent's program.
    pub fn agent_program(&self) -> PathBuf {
        binary("mesh-agent")
    }

    /// The line that starts an agent: the one that the node has but for some arguments.
    fn agent(&self, program: &Path, changes: &[(&str, &str)]) -> Vec<String> {
        let mut arguments = self.arguments.clone();
        for (name, value) in changes {
            match arguments.iter().position(|argument| argument == name) {
                Some(at) => (*value).clone_into(&mut arguments[at + 1]),
                None => arguments.extend([*name, *value].map(str::to_owned)),
            }
        }
        [program.display().to_string(), "run".to_owned()].into_iter().chain(arguments).collect()
    }

    /// Starts an agent beside the one that runs; returns when it has taken over.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn upgrade_agent(&self, changes: &[(&str, &str)]) {
        self.tries_to_upgrade(&binary("mesh-agent"), changes).expect("it takes over");
    }

    /// The same with a program of one's own.
    ///
    /// # Errors
    /// It ended, and said why.
    pub fn tries_to_upgrade(&self, program: &Path, changes: &[(&str, &str)]) -> Result<(), String> {
        self.daemon.is_followed(&self.agent_place, &self.agent(program, changes), "agent::start: in charge")
    }

    /// How many agents that another has taken over from still run.
    pub fn draining_agents(&self) -> usize {
        self.daemon.former()
    }

    /// Asks those to end (SIGTERM).
    pub fn end_draining_agents(&self) {
        self.daemon.end_former();
    }

    /// Waits until the agent says that it is ready.
    ///
    /// # Panics
    /// When it ends, or is not ready in time.
    pub fn is_ready(&self) {
        self.daemon.is_ready(&self.system.namespace, local(READY_PORT));
    }

    /// Waits until the agent has a stream of control again: soon after control is back.
    ///
    /// # Panics
    /// When it has none in time.
    #[track_caller]
    pub fn hears_control(&self) {
        eventually(&format!("the agent of {} hears control", self.name), LIMIT, || {
            let status = self.admin().status().map_err(|status| status.to_string())?;
            if status.control == "connected" { Ok(()) } else { Err(status.last_error) }
        });
    }

    /// Puts the agent's wall clock off, like `+2h`: from its next start on, and at once if it was started so before.
    pub fn sets_clock(&self, offset: &str) {
        self.daemon.set_clock(offset);
    }

    /// From its next start on its clock is the machine's again.
    ///
    /// # Panics
    /// When it was not put off.
    pub fn forgets_clock(&self) {
        self.daemon.forget_clock();
    }

    /// Kills the agent as a crash would.
    pub fn kill_agent(&self) {
        self.daemon.kill();
    }

    /// Ends the agent as a bug in it would (SIGABRT); how it ended.
    pub fn abort_agent(&self) -> ExitStatus {
        self.daemon.aborts()
    }

    /// Waits until the agent has ended by itself; how it did.
    ///
    /// # Panics
    /// When it does not.
    pub fn agent_ends(&self) -> ExitStatus {
        self.daemon.ends()
    }

    /// Whether it has, by now.
    pub fn has_agent_ended(&self) -> bool {
        self.daemon.has_ended()
    }

    /// Leaves the agent no descriptor to open anything with but in its gaps, until what is returned is dropped.
    pub fn leaves_no_descriptor(&self) -> NoDescriptors {
        NoDescriptors::of(self.agent_id())
    }

    /// Memory of the agent that is its own and in use (VmRSS), bytes.
    ///
    /// # Panics
    /// When it does not run.
    pub fn agent_memory(&self) -> u64 {
        cost::resident(self.agent_id())
    }

    /// How long the agent's threads, all together, were ready to run and had no processor.
    ///
    /// # Panics
    /// When it does not run.
    pub fn agent_waited(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.agent_id())).expect("the agent runs").flatten();
        // Time on a processor, time waited for one, both in ns. Source: Linux, Documentation/scheduler/sched-stats.rst.
        let waited = |text: String| text.split(' ').nth(1)?.parse::<u64>().ok();
        let waited =
            threads.filter_map(|thread| waited(std::fs::read_to_string(thread.path().join("schedstat")).ok()?));
        Duration::from_nanos(waited.sum())
    }

    /// Descriptors that the agent has open.
    ///
    /// # Panics
    /// When it does not run.
    pub fn agent_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.agent_id())).expect("the agent runs").count()
    }

    /// Asks the agent to end and waits for it.
    pub fn stop_agent(&self) {
        self.daemon.stop();
    }

    /// Stops the agent in its tracks (SIGSTOP): it holds its sockets and does nothing.
    pub fn hang_agent(&self) {
        self.daemon.signal(Signal::STOP);
    }

    /// Lets a hung agent go on.
    pub fn resume_agent(&self) {
        self.daemon.signal(Signal::CONT);
    }

    /// The agent's process number.
    pub fn agent_id(&self) -> u32 {
        self.daemon.id()
    }

    /// Everything the agents of this node have logged.
    pub fn agent_log(&self) -> String {
        self.daemon.log()
    }

    /// The access-log lines so far.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let log = self.agent_log();
        let values = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        values.filter(|value| value["source_identity"].is_string() || value["duration_ms"].is_number()).collect()
    }

    /// The agent's metrics.
    ///
    /// # Panics
    /// When it does not serve them.
    pub fn metrics(&self) -> Metrics {
        let answer = web::ask(&self.system.namespace, local(METRICS_PORT), "/metrics");
        Metrics::parse(&answer.expect("the agent serves metrics").body)
    }

    /// Waits until the series with `labels` add up to `count`.
    ///
    /// # Panics
    /// When they do not, in time.
    #[track_caller]
    pub fn counted(&self, metric: &str, count: u64, labels: &[(&str, &str)]) {
        eventually(&format!("{metric}{labels:?} is {count} on {}", self.name), Duration::from_secs(10), || {
            let metrics = self.metrics();
            let sum = metrics.sum(metric, labels);
            if sum == count as f64 {
                return Ok(());
            }
            Err(format!("it is {sum}: {:?}", metrics.select(metric, &[]).collect::<Vec<_>>()))
        });
    }

    /// Runs `meshctl` against this node's agent.
    pub fn meshctl(&self, words: &[&str]) -> Output {
        let program = binary("meshctl").display().to_string();
        let socket = self.admin().socket().display().to_string();
        let mut line = vec![program.as_str(), "--socket", &socket];
        line.extend_from_slice(words);
        self.system.run(&line)
    }

    /// What `meshctl -o json` answers.
    ///
    /// # Panics
    /// When it fails, or prints something else than JSON.
    #[track_caller]
    pub fn meshctl_json(&self, words: &[&str]) -> serde_json::Value {
        let text = printed(&self.meshctl(&[&["-o", "json"], words].concat()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON: {error}: {text}"))
    }

    /// Runs `mesh-agent detach` for this node.
    pub fn detach(&self) -> Output {
        let program = binary("mesh-agent").display().to_string();
        let mut line = vec![program, "detach".to_owned()];
        let wanted = ["--cgroup-root", "--bpffs", "--run-dir"];
        let pairs = self.arguments.chunks(2).filter(|pair| wanted.contains(&pair[0].as_str()));
        line.extend(pairs.flatten().cloned());
        self.system.run(&line)
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
