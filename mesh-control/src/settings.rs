//! The command line, checked. Nothing else reads flags or the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, ValueEnum};

use crate::objects::{
    metadata::{Name, is_label, is_subdomain},
    settings::is_trust_domain,
};

/// The mesh's control daemon: reads the desired state from Kubernetes or from a folder of its manifests, tells node agents,
/// and signs their workloads' certificates.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "mesh-control",
    version,
    after_help = "mesh-control rotate-root --help: replace the root of a daemon that runs"
)]
pub struct Settings {
    /// Where the desired state is.
    #[command(flatten)]
    pub source: SourceSettings,
    /// Where the CA's key, root-cert.pem and the manifests' last good forms are kept; with --kubernetes nothing is
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes", conflicts_with = "kubernetes")]
    pub state_dir: Option<PathBuf>,
    /// Options of `--kubernetes`.
    #[command(flatten)]
    pub kubernetes: KubernetesSettings,
    /// Use the CA of this folder: ca-cert.pem, ca-key.pem, root-cert.pem and, with intermediates, cert-chain.pem
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Address of discovery and certificate service
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// Address of /metrics and /healthz/ready
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15014")]
    pub metrics_address: SocketAddr,
    /// Address of /debug/config and /debug/agents, which nobody is asked a name for: keep it where only operators come
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15013")]
    pub debug_address: SocketAddr,
    /// File of lines NODE TOKEN, mode 0600; read again when it changes. With --kubernetes the API server says whose a
    /// token is
    #[arg(long, value_name = "FILE", required_unless_present = "kubernetes", conflicts_with = "kubernetes")]
    pub node_tokens: Option<PathBuf>,
    /// Another name or address in this server's certificate, beside mesh-control and the address of --listen
    #[arg(long, value_name = "NAME")]
    pub tls_name: Vec<String>,
    /// Trust domain of all identities, unless a MeshConfig names one
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: String,
    /// Longest and usual lifetime of certificates, like 24h, 90m or 600s; at least 10s
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub certificate_lifetime: Duration,
    /// What to log, as tracing's filters are written
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How to log
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Where the desired state is: exactly one of the two.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct SourceSettings {
    /// Folder of YAML manifests; watched
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// The API server of the cluster that this pod runs in, or of --kubeconfig
    #[arg(long)]
    pub kubernetes: bool,
}

/// What is needed to speak with an API server.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesSettings {
    /// Credentials and address of the API server, for a daemon that is no pod of the cluster
    #[arg(long, value_name = "FILE", conflicts_with = "config_dir")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the mesh's own objects: the Secret mesh-ca with the root's key, the ConfigMap mesh-ca-root, the Lease
    /// mesh-control. Without it that of the pod, or of the kubeconfig
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "config_dir", value_parser = namespace)]
    pub namespace: Option<String>,
    /// ServiceAccount of the node agents: NAMESPACE/NAME, or NAME in the mesh's own namespace
    #[arg(long, value_name = "ACCOUNT", default_value = "mesh-agent", value_parser = account)]
    pub agent_account: String,
    /// Audience that a node agent's token must have
    #[arg(long, value_name = "AUDIENCE", default_value = "mesh-control")]
    pub token_audience: String,
    /// Name of this replica in the Lease. Without it the host's name, which is the pod's
    #[arg(long, value_name = "NAME", conflicts_with = "config_dir")]
    pub replica: Option<String>,
}

impl KubernetesSettings {
    /// The node agents' ServiceAccount, where the mesh's own namespace is `home`.
    pub fn agent(&self, home: &str) -> Name {
        let (namespace, name) = self.agent_account.split_once('/').unwrap_or((home, &self.agent_account));
        Name::new(namespace, name)
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Settings {
    /// All names of this server's certificate.
    pub fn server_names(&self) -> Vec<String> {
        let mut names = vec!["mesh-control".to_owned()];
        let listen = self.listen.ip();
        // "Any address" is no address that a client could have dialled.
        names.extend(Some(listen.to_string()).filter(|_| !listen.is_unspecified()));
        names.extend(self.tls_name.iter().cloned());
        names.dedup();
        names
    }
}

fn namespace(text: &str) -> Result<String, String> {
    if is_label(text) { Ok(text.to_owned()) } else { Err("is not the name of a namespace".to_owned()) }
}

fn account(text: &str) -> Result<String, String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    let is_good = is_label(namespace) && is_subdomain(name);
    if is_good { Ok(text.to_owned()) } else { Err("is not NAME or NAMESPACE/NAME of a ServiceAccount".to_owned()) }
}

fn trust_domain(text: &str) -> Result<String, String> {
    if is_trust_domain(text) {
        Ok(text.to_owned())
    } else {
        Err("lower-case letters, digits, '.', '-' and '_' only".to_owned())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write a whole number and one of s, m, h, d, like 24h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a whole number and one of s, m, h, d, like 24h".to_owned())?;
    let duration = number.checked_mul(seconds).map(Duration::from_secs).ok_or("is too long")?;
    if duration < crate::ca::authority::SHORTEST { Err("is shorter than 10 s".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_a_floor() {
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("90m"), Ok(Duration::from_secs(5_400)));
        for wrong in ["", "24", "h", "1.5h", "-1h", "9s", "999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_state_comes_from_a_folder_or_from_kubernetes_and_each_has_options_of_its_own() {
        let parse = |line: &str| Settings::try_parse_from(line.split(' '));
        assert!(parse("mesh-control --kubernetes").is_ok());
        assert!(parse("mesh-control --kubernetes --kubeconfig k --namespace mesh-system").is_ok());
        let wrong = [
            "mesh-control",
            "mesh-control --kubernetes --config-dir c",
            "mesh-control --kubernetes --state-dir s",
            "mesh-control --kubernetes --node-tokens t",
            "mesh-control --config-dir c --node-tokens t",
            "mesh-control --config-dir c --state-dir s",
            "mesh-control --config-dir c --state-dir s --node-tokens t --kubeconfig k",
            "mesh-control --kubernetes --agent-account a/b/c",
        ];
        for line in wrong {
            assert!(parse(line).is_err(), "{line}");
        }
        let settings = parse("mesh-control --kubernetes --agent-account agents/mine").expect("good");
        assert_eq!(settings.kubernetes.agent("home"), Name::new("agents", "mine"));
        let settings = parse("mesh-control --kubernetes").expect("good");
        assert_eq!(settings.kubernetes.agent("home"), Name::new("home", "mesh-agent"));
    }

    #[test]
    fn the_server_is_named_by_the_address_it_listens_on() {
        let line =
            ["mesh-control", "--config-dir", "c", "--state-dir", "s", "--node-tokens", "t", "--tls-name", "x.example"];
        let any = Settings::parse_from(line);
        assert_eq!(any.server_names(), ["mesh-control", "x.example"]);
        let one = Settings::parse_from(line.into_iter().chain(["--listen", "10.0.0.1:15012"]));
        assert_eq!(one.server_names(), ["mesh-control", "10.0.0.1", "x.example"]);
    }
}
