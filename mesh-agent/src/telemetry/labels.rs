//! Istio's labels of a connection, in Istio's order; what is not known is `unknown`.

use std::{net::SocketAddr, sync::Arc};

use mesh_api::Identity;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

use crate::{
    hbone::Baggage,
    view::{Service, Workload},
};

/// Whose view of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "Istio's words")]
pub enum Reporter {
    Source,
    Destination,
}

/// `connection_security_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Security {
    /// Mutual TLS between nodes.
    MutualTls,
    /// On one node: not encrypted, both ends proved by the kernel.
    NodeLocal,
    /// In the clear.
    #[default]
    None,
}

impl Security {
    /// The label.
    pub fn label(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::NodeLocal => "node_local",
            Self::None => "none",
        }
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Default)]
pub struct Party {
    /// What the View says about it.
    pub workload: Option<Arc<Workload>>,
    /// What was proved about it.
    pub identity: Option<Identity>,
    /// What it says about itself; shown only where the View does not know it.
    pub claimed: Option<Baggage>,
    /// Its socket, or the address that was dialled for it.
    pub address: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PartyLabels {
    workload: String,
    canonical_service: String,
    canonical_revision: String,
    namespace: String,
    principal: String,
    cluster: String,
}

/// The labels of one series.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    reporter: Reporter,
    source: PartyLabels,
    service: String,
    service_namespace: String,
    service_name: String,
    destination: PartyLabels,
    security: Security,
}

fn known(text: &str) -> String {
    if text.is_empty() { "unknown".into() } else { text.into() }
}

impl PartyLabels {
    fn new(party: &Party) -> Self {
        let identity = party.identity.as_ref();
        let principal = identity.map_or_else(|| "unknown".into(), Identity::to_string);
        if let Some(workload) = &party.workload {
            return Self {
                workload: known(&workload.workload_name),
                canonical_service: known(&workload.canonical_name),
                canonical_revision: known(&workload.canonical_revision),
                namespace: known(&workload.namespace),
                principal,
                cluster: known(&workload.cluster),
            };
        }
        let claimed = party.claimed.clone().unwrap_or_default();
        Self {
            workload: known(&claimed.workload),
            canonical_service: known(&claimed.canonical_name),
            canonical_revision: known(&claimed.canonical_revision),
            // Proved rather than claimed.
            namespace: known(identity.map_or(&*claimed.namespace, Identity::namespace)),
            principal,
            cluster: known(&claimed.cluster),
        }
    }

    fn encode(&self, end: End, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        let [workload, service, revision, namespace, principal, app, version, cluster] = match end {
            End::Source => SOURCE,
            End::Destination => DESTINATION,
        };
        add(encoder, workload, &self.workload)?;
        add(encoder, service, &self.canonical_service)?;
        add(encoder, revision, &self.canonical_revision)?;
        add(encoder, namespace, &self.namespace)?;
        add(encoder, principal, &self.principal)?;
        add(encoder, app, &self.canonical_service)?;
        add(encoder, version, &self.canonical_revision)?;
        add(encoder, cluster, &self.cluster)
    }
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

const SOURCE: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];

const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

fn add(encoder: &mut LabelSetEncoder<'_>, key: &'static str, value: &str) -> std::fmt::Result {
    use prometheus_client::encoding::EncodeLabel;
    (key, value).encode(encoder.encode_label())
}

impl Labels {
    pub(super) fn new(
        reporter: Reporter,
        (source, destination): (&Party, &Party),
        service: Option<&Service>,
        security: Security,
    ) -> Self {
        let unknown = || "unknown".to_owned();
        Self {
            reporter,
            source: PartyLabels::new(source),
            service: service.map_or_else(unknown, |service| known(&service.name.hostname)),
            service_namespace: service.map_or_else(unknown, |service| known(&service.name.namespace)),
            service_name: service.map_or_else(unknown, |service| known(&service.short_name)),
            destination: PartyLabels::new(destination),
            security,
        }
    }
}

/// A series' labels and the flag that only some of its metrics differ by.
pub(super) struct Flagged<'a>(pub(super) &'a Labels, pub(super) &'static str);

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        let Self(labels, flags) = self;
        let reporter = match labels.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        add(encoder, "reporter", reporter)?;
        labels.source.encode(End::Source, encoder)?;
        add(encoder, "destination_service", &labels.service)?;
        add(encoder, "destination_service_namespace", &labels.service_namespace)?;
        add(encoder, "destination_service_name", &labels.service_name)?;
        labels.destination.encode(End::Destination, encoder)?;
        add(encoder, "request_protocol", "tcp")?;
        add(encoder, "response_flags", flags)?;
        add(encoder, "connection_security_policy", labels.security.label())
    }
}
