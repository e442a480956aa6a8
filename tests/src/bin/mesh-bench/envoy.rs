//! Envoy as it is compared with: one beside the client, one beside the server, TCP proxy, mutual TLS 1.3 between them.
//! The client dials the near one on loopback, so no redirection is counted against Envoy.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use serde_json::{Value, json};

/// Keys and certificates of the two Envoys, as files.
pub struct Credentials {
    directory: PathBuf,
}

impl Credentials {
    /// Makes a root and a certificate each for `client` and `server`, with the SPIFFE names that a mesh would give them.
    pub fn issue(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "bench root");
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
        fs::write(directory.join("root.pem"), root.pem())?;
        for name in ["client", "server"] {
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::default();
            leaf.subject_alt_names = vec![SanType::URI(spiffe(name).as_str().try_into()?)];
            fs::write(directory.join(format!("{name}.pem")), leaf.signed_by(&key, &root)?.pem())?;
            fs::write(directory.join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Writes the configuration of the Envoy beside the client: plaintext in on `listen`, mutual TLS out to `upstream`.
    pub fn near(&self, listen: SocketAddr, upstream: SocketAddr) -> Result<PathBuf> {
        let tls = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": self.tls_context("client", "server"),
            }
        });
        self.write("near.json", &configuration(listen, None, upstream, Some(tls)))
    }

    /// Writes the configuration of the Envoy beside the server: mutual TLS in on `listen`, plaintext out to `upstream`.
    pub fn far(&self, listen: SocketAddr, upstream: SocketAddr) -> Result<PathBuf> {
        let tls = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": self.tls_context("server", "client"),
            }
        });
        self.write("far.json", &configuration(listen, Some(tls), upstream, None))
    }

    fn tls_context(&self, own: &str, peer: &str) -> Value {
        let file = |name: String| json!({ "filename": self.directory.join(name) });
        json!({
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{
                "certificate_chain": file(format!("{own}.pem")),
                "private_key": file(format!("{own}.key")),
            }],
            "validation_context": {
                "trusted_ca": file("root.pem".into()),
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": spiffe(peer) } }],
            },
        })
    }

    fn write(&self, name: &str, configuration: &Value) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, serde_json::to_vec_pretty(configuration)?)?;
        Ok(path)
    }
}

fn spiffe(name: &str) -> String {
    format!("spiffe://cluster.local/ns/bench/sa/{name}")
}

fn configuration(
    listen: SocketAddr,
    listener_tls: Option<Value>,
    upstream: SocketAddr,
    upstream_tls: Option<Value>,
) -> Value {
    let address = |ip: IpAddr, port: u16| json!({ "socket_address": { "address": ip, "port_value": port } });
    let mut filter_chain = json!({
        "filters": [{
            "name": "tcp",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "tcp",
                "cluster": "upstream",
            }
        }]
    });
    if let Some(tls) = listener_tls {
        filter_chain["transport_socket"] = tls;
    }
    let mut cluster = json!({
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "5s",
        // The defaults (1,024) would refuse some of the thousand held connections during churn.
        "circuit_breakers": { "thresholds": [{ "max_connections": 100_000, "max_pending_requests": 100_000 }] },
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(upstream.ip(), upstream.port()) } }] }]
        }
    });
    if let Some(tls) = upstream_tls {
        cluster["transport_socket"] = tls;
    }
    json!({
        "static_resources": {
            "listeners": [{
                "name": "in",
                "address": address(listen.ip(), listen.port()),
                "filter_chains": [filter_chain],
            }],
            "clusters": [cluster],
        }
    })
}
