//! The command line as given; nothing is checked here beyond its shape.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{kernel::MapSizes, telemetry::AccessFormat};

/// The per-node agent of the mesh.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What the agent can be told to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Steer this node's pods until told to stop.
    Run(Box<RunArguments>),
    /// Say whether this node can run the agent, without one running; exit code 1 when something is missing.
    Check(CheckArguments),
    /// Remove all programs, maps and pins of this node: plain networking is back.
    Detach(DetachArguments),
}

/// Arguments of `run`, as given.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Name of this node, as the control daemon knows it.
    #[arg(long)]
    pub node: String,
    /// The cgroup (v2) above all pods of the node and the agent, below the mount of cgroup2; hooks are attached there. Default
    /// with --kubernetes: the root of the node's hierarchy, wherever it is mounted.
    #[arg(long)]
    pub cgroup_root: Option<PathBuf>,
    /// Directory of the agent's own on a bpffs; one is mounted there when it is on none.
    #[arg(long)]
    pub bpffs: PathBuf,
    /// The network namespace of the node itself, whose sockets the kubelet's probes come from. Default: the agent's own; with
    /// --kubernetes /proc/1/ns/net, for which the agent's pod has hostPID.
    #[arg(long, value_name = "FILE")]
    pub node_network_namespace: Option<PathBuf>,
    /// Directory of the admin socket and of what outlives a restart; on a tmpfs, because keys are below it.
    #[arg(long)]
    pub run_dir: PathBuf,
    /// Directory of what outlives the machine's restart too: the last View, without secrets.
    #[arg(long, default_value = "/var/lib/mesh-agent")]
    pub state_dir: PathBuf,
    /// The control daemon, https://HOST:PORT.
    #[arg(long)]
    pub control: String,
    /// PEM file of the roots that the control daemon is verified against; read again at every connection.
    #[arg(long)]
    pub control_root: PathBuf,
    /// Name in the control daemon's certificate.
    #[arg(long, default_value = "mesh-control")]
    pub control_name: String,
    /// File with this node's token alone, the one that mesh-control's --node-tokens has for it; read again at every connection.
    #[arg(long)]
    pub node_token: PathBuf,
    /// Where Prometheus scrapes /metrics.
    #[arg(long, default_value = "0.0.0.0:15020")]
    pub metrics_address: String,
    /// Where /healthz/ready answers.
    #[arg(long, default_value = "0.0.0.0:15021")]
    pub ready_address: String,
    /// Where operators look; must be a loopback address.
    #[arg(long, default_value = "127.0.0.1:15000")]
    pub admin_address: String,
    /// Worker threads; default: cores by the cgroup's CPU quota, at most 4.
    #[arg(long)]
    pub workers: Option<u32>,
    /// Log filter, e.g. info,mesh_agent::path=debug; `meshctl log` changes it while running.
    #[arg(long, default_value = "info")]
    pub log: String,
    /// Shape of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// One line per connection, on standard output.
    #[arg(long, default_value = "text", value_name = "text|json|off")]
    pub access_log: AccessFormat,
    /// How long new direct connections of a node are allowed after the agent's last heartbeat (a whole number with ms, s, m or h; 0 refuses at once).
    #[arg(long, default_value = "60s")]
    pub direct_max_age: String,
    /// How long connections may go on after SIGTERM, or after another agent has taken over; a whole number with ms, s, m or h.
    #[arg(long, default_value = "5s")]
    pub drain_time: String,
    /// What to do when another agent has taken over and connections have drained: `wait` for SIGTERM, holding nothing, where a
    /// supervisor would start again what exits (the kubelet).
    #[arg(long, value_enum, default_value_t = AfterTakeOver::Exit)]
    pub after_take_over: AfterTakeOver,
    /// Enrolment on Kubernetes.
    #[command(flatten)]
    pub kubernetes: KubernetesArguments,
    /// Sizes of the kernel's maps.
    #[command(flatten)]
    pub maps: MapArguments,
}

/// Enrolment on Kubernetes.
#[derive(Debug, Args)]
pub struct KubernetesArguments {
    /// Enrol and withdraw this node's pods by what the API server says of them: --node is the name of the Node.
    #[arg(long)]
    pub kubernetes: bool,
    /// Credentials and address of the API server, for an agent that is no pod of the cluster.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The agent's own DaemonSet. When it is gone or being deleted at SIGTERM, the agent detaches from the node.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub daemon_set: Option<String>,
    /// The node's directory of CNI configurations, /etc/cni/net.d on most: the agent adds its plug-in to the first, keeps it
    /// there, and takes it out when it detaches.
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// The node's directory of CNI programs, /opt/cni/bin on most: the agent installs its plug-in there.
    #[arg(long, value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Take the plug-in off the node instead: of one where it was installed before.
    #[arg(long)]
    pub cni_remove: bool,
    /// The plug-in's program, to be installed; default: mesh-cni beside the agent's own program.
    #[arg(long, value_name = "FILE")]
    pub cni_plugin: Option<PathBuf>,
    /// Namespaces whose pods start also while no agent answers, with commas between them. Default: kube-system, and the
    /// namespace of --daemon-set.
    #[arg(long, value_name = "NAMESPACES", value_delimiter = ',')]
    pub cni_exclude_namespaces: Vec<String>,
}

/// Sizes of the kernel's maps; they hold for maps that this start creates.
#[derive(Debug, Args)]
pub struct MapArguments {
    /// Most enrolled pods.
    #[arg(long, default_value_t = MapSizes::default().pods)]
    pub max_pods: u32,
    /// Most pairs of service address and port.
    #[arg(long, default_value_t = MapSizes::default().services)]
    pub max_services: u32,
    /// Most slots of all services together, old and new ones during a change.
    #[arg(long, default_value_t = MapSizes::default().backends)]
    pub max_service_slots: u32,
    /// Most pairs of policy class and port.
    #[arg(long, default_value_t = MapSizes::default().policies)]
    pub max_policy_pairs: u32,
    /// Most handshakes under way.
    #[arg(long, default_value_t = MapSizes::default().handshakes)]
    pub max_handshakes: u32,
    /// Most live connections that are listed.
    #[arg(long, default_value_t = MapSizes::default().flows)]
    pub max_flows: u32,
    /// Bytes of the ring buffer of connection records; a power of two.
    #[arg(long, default_value_t = MapSizes::default().event_bytes)]
    pub event_bytes: u32,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// As given to `run`.
    #[arg(long)]
    pub cgroup_root: PathBuf,
    /// As given to `run`.
    #[arg(long)]
    pub bpffs: PathBuf,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct DetachArguments {
    /// As given to `run`.
    #[arg(long)]
    pub bpffs: PathBuf,
    /// As given to `run`.
    #[arg(long)]
    pub run_dir: PathBuf,
    /// As given to `run`.
    #[arg(long)]
    pub cgroup_root: PathBuf,
    /// As given to `run`: the CNI plug-in is taken out, too.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// As given to `run`.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
}

/// What an agent does that another has followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AfterTakeOver {
    /// Ends, with exit code 0.
    Exit,
    /// Waits for SIGTERM.
    Wait,
}

/// Shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}
