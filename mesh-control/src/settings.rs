//! The command line, checked. Nothing else reads flags or the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

use crate::objects::settings::is_trust_domain;

/// The mesh's control daemon: reads the desired state from a folder of Kubernetes manifests, tells node agents, and signs
/// their workloads' certificates.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "mesh-control",
    version,
    after_help = "mesh-control rotate-root --help: replace the root of a daemon that runs"
)]
pub struct Settings {
    /// Folder of YAML manifests; watched
    #[arg(long, value_name = "DIR")]
    pub config_dir: PathBuf,
    /// Where the CA's key, root-cert.pem and the manifests' last good forms are kept
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Use the CA of this folder: ca-cert.pem, ca-key.pem, root-cert.pem and, with intermediates, cert-chain.pem
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Address of discovery and certificate service
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// Address of /metrics, /healthz/ready, /debug/config and /debug/agents
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15014")]
    pub metrics_address: SocketAddr,
    /// File of lines NODE TOKEN, mode 0600; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub node_tokens: PathBuf,
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
    fn the_server_is_named_by_the_address_it_listens_on() {
        let line =
            ["mesh-control", "--config-dir", "c", "--state-dir", "s", "--node-tokens", "t", "--tls-name", "x.example"];
        let any = Settings::parse_from(line);
        assert_eq!(any.server_names(), ["mesh-control", "x.example"]);
        let one = Settings::parse_from(line.into_iter().chain(["--listen", "10.0.0.1:15012"]));
        assert_eq!(one.server_names(), ["mesh-control", "10.0.0.1", "x.example"]);
    }
}
