//! The command line: what can be asked and how it is written. Only syntax is judged here; whether a pod can be enrolled
//! is the agent's word, so that every client hears the same one.

use std::{net::IpAddr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{listing, table::glossary};

/// Talks to the mesh agent of this node: what is enrolled, what is encrypted, who denied it, is the certificate valid,
/// is the configuration in sync.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = EXIT_CODES)]
pub struct Arguments {
    /// The agent's Unix socket: RUN_DIR/admin.sock
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/mesh/admin.sock",
        global = true,
        help_heading = "Common options"
    )]
    pub socket: String,
    /// How to print: an aligned table, all columns, or JSON with stable field names
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table, global = true, help_heading = "Common options")]
    pub output: Format,
    /// Longest wait for one answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600),
          global = true, help_heading = "Common options")]
    pub timeout: u64,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  the answer is printed, and it is yes where it could be no
  1  the agent says no: a check failed, explain ends in denied or refused, enrol, withdraw or log was refused
  2  no answer: wrong usage, no agent on the socket, a connection that broke, no answer in time";

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Wide,
    Json,
}

/// What is asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enrol a running pod; returns when its connections are steered
    Enrol(Enrol),
    /// Withdraw a pod; returns when the agent holds nothing of it any more
    Withdraw {
        /// The uid it was enrolled with
        uid: String,
    },
    /// The enrolled pods of this node
    #[command(after_help = glossary(listing::PODS))]
    Pods(Watch),
    /// The workloads the node knows, of all nodes
    #[command(after_help = glossary(listing::WORKLOADS))]
    Workloads(Watch),
    /// The services the node knows
    #[command(after_help = glossary(listing::SERVICES))]
    Services(Watch),
    /// Every connection of an enrolled pod: who, where to, encrypted or not, decided by which policy
    #[command(after_help = glossary(listing::SOCKETS))]
    Sockets(Sockets),
    /// The authorization policies the node knows
    #[command(after_help = glossary(listing::POLICIES))]
    Policies(Watch),
    /// The certificates and roots the node holds
    #[command(after_help = glossary(listing::CERTIFICATES))]
    Certificates(Watch),
    /// What would happen to a connection, judged by the code that judges connections; exit code 1 unless allowed
    #[command(after_help = glossary(listing::VERDICT))]
    Explain {
        /// Caller: NAMESPACE/NAME of a workload, or an address
        #[arg(value_name = "SRC")]
        source: String,
        /// Called: NAMESPACE/NAME of a workload, host name or address, and a port; an IPv6 address in brackets
        #[arg(value_name = "DST:PORT")]
        destination: Destination,
    },
    /// Look at all that the mesh needs on this node; exit code 1 when a check failed
    #[command(after_help = glossary(listing::CHECKS))]
    Check,
    /// State of the agent, its connection to control, and how far it is in sync; with --control, of all agents
    #[command(after_help = status_glossary())]
    Status(Status),
    /// Print the agent's log filter, or change it until its next start
    Log {
        /// tracing's syntax, as info,mesh_agent::path=debug; without it the filter of now is printed
        #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
        filter: Option<String>,
    },
}

impl Command {
    /// The control daemons that are asked instead of the agent.
    pub fn controls(&self) -> &[String] {
        if let Self::Status(status) = self { &status.control } else { &[] }
    }

    /// Time between two answers, when the question is to be asked again and again.
    pub fn interval(&self) -> Option<Duration> {
        let watch = match self {
            Self::Pods(watch)
            | Self::Workloads(watch)
            | Self::Services(watch)
            | Self::Policies(watch)
            | Self::Certificates(watch) => watch,
            Self::Status(status) => &status.watch,
            Self::Sockets(sockets) => &sockets.watch,
            Self::Enrol(_) | Self::Withdraw { .. } | Self::Explain { .. } | Self::Check | Self::Log { .. } => {
                return None;
            }
        };
        watch.watch.then(|| Duration::from_secs(watch.interval))
    }
}

/// All that the agent needs to know of a pod.
#[derive(Debug, Args)]
pub struct Enrol {
    /// Unique name of this instance of the pod
    #[arg(long)]
    pub uid: String,
    /// Namespace of the pod
    #[arg(long)]
    pub namespace: String,
    /// Name of the pod
    #[arg(long)]
    pub name: String,
    /// Service account: with the namespace, what the identity is made of
    #[arg(long, value_name = "NAME")]
    pub service_account: String,
    /// Address of the pod; at most one per family
    #[arg(long = "address", value_name = "IP", required = true)]
    pub addresses: Vec<IpAddr>,
    #[command(flatten)]
    pub network_namespace: NetworkNamespace,
    /// Absolute path of the pod's cgroup (v2), below the agent's --cgroup-root
    #[arg(long = "cgroup", value_name = "PATH")]
    pub cgroup_path: String,
    /// Port that the node itself may dial in every mode (a kubelet's probe); may be repeated
    #[arg(long = "probe-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub probe_ports: Vec<u16>,
    /// Let outbound connections out in the clear while the agent is away; needs the mesh's allowFailOpen
    #[arg(long)]
    pub fail_open: bool,
}

/// Where the pod's network namespace is found: exactly one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct NetworkNamespace {
    /// Path of the pod's network namespace, as /run/netns/NAME
    #[arg(long = "network-namespace", value_name = "PATH")]
    pub path: Option<String>,
    /// Process in the pod's network namespace, as the agent's PID namespace numbers it
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,
}

/// What `sockets` lists.
#[derive(Debug, Args)]
pub struct Sockets {
    /// Only connections that nothing encrypts, and why
    #[arg(long, conflicts_with = "why_denied")]
    pub why_plaintext: bool,
    /// Only connections that were denied, by which policy and why
    #[arg(long)]
    pub why_denied: bool,
    /// Only those of one pod
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_name)]
    pub pod: Option<String>,
    #[command(flatten)]
    pub watch: Watch,
}

/// Whose state is shown.
#[derive(Debug, Args)]
pub struct Status {
    /// Ask a control daemon instead, at its debug address, for every agent that is connected to it: its version of the
    /// state, whether it refused some, and how far it lags; exit code 1 unless all are in sync. Once for each replica
    #[arg(long, value_name = "HOST:PORT")]
    pub control: Vec<String>,
    #[command(flatten)]
    pub watch: Watch,
}

fn status_glossary() -> String {
    format!("{}\n\nWith --control:\n{}", glossary(listing::STATUS), glossary(listing::AGENTS))
}

/// Asking again and again.
#[derive(Debug, Args)]
pub struct Watch {
    /// Refresh until interrupted; where the output is no terminal, answers follow each other (JSON: one per line)
    #[arg(short, long)]
    pub watch: bool,
    /// Time between two answers of --watch, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2, requires = "watch",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

/// Host and port of an `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub host: String,
    pub port: u16,
}

fn pod_name(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(text.into()),
        _ => Err("is not of the form NAMESPACE/NAME".into()),
    }
}

/// Why a text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    #[error("has no port; write DST:PORT")]
    NoPort,
    #[error("'{0}' is no port (1 to 65535)")]
    Port(String),
    #[error("has no host before the port")]
    NoHost,
    #[error("write an IPv6 address in brackets: [ADDRESS]:PORT")]
    Brackets,
}

impl std::str::FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(DestinationError::NoPort)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or(DestinationError::Brackets)?,
            None if host.contains([':', ']']) => return Err(DestinationError::Brackets),
            None => host,
        };
        if host.is_empty() {
            return Err(DestinationError::NoHost);
        }
        match port.parse::<u16>() {
            Ok(port) if port != 0 => Ok(Self { host: host.into(), port }),
            _ => Err(DestinationError::Port(port.into())),
        }
    }
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
