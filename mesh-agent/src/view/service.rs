//! Name and virtual addresses for a set of workloads.

use std::{net::IpAddr, sync::Arc, time::Duration};

/// Key of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// Its full host name, e.g. `reviews.default.svc.cluster.local`.
    pub hostname: Arc<str>,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// What clients dial.
    pub service_port: u16,
    /// Where an endpoint does not say otherwise.
    pub target_port: u16,
}

/// Proximity by which endpoints are preferred or required: the same one as the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the parts of a place")]
pub enum RoutingScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// How an endpoint is chosen, before weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// The first matters most; an endpoint's rank is how many match in a row.
    pub preference: Vec<RoutingScope>,
    /// Endpoints that do not match the whole preference are never used (else: only when no better one is healthy).
    pub is_strict: bool,
    /// Unhealthy endpoints count as healthy.
    pub allows_unhealthy: bool,
}

/// What Kubernetes asks of a Service beyond Istio's message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// A source address stays with its endpoint for this long after its last connection.
    pub client_ip_affinity: Option<Duration>,
    /// Only endpoints on the caller's node.
    pub only_local_endpoints: bool,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its key.
    pub name: ServiceName,
    /// Short name, e.g. `reviews`.
    pub short_name: String,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<IpAddr>,
    /// Comes before others with one of its addresses, in namespaces that have none of them.
    pub is_canonical: bool,
    /// Ports that clients may dial.
    pub ports: Vec<Port>,
    /// Identities accepted beside the endpoint's own.
    pub subject_alt_names: Vec<String>,
    /// Locality and health.
    pub load_balancing: LoadBalancing,
    /// Affinity and locality as Kubernetes asks for them.
    pub traffic: Traffic,
    /// Waypoints, application tunnels and whatever else this agent cannot do: why connections to it are refused.
    pub unsupported: Option<&'static str>,
}
