//! One running instance with one identity, as the View knows it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh_api::Identity;

use super::{PolicyName, ServiceName};

/// Key of a workload: `cluster/group/kind/namespace/name/section`.
pub type Uid = Arc<str>;

/// How a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Mutual TLS to podIP:15008.
    Hbone,
    /// As it is: the workload is not in the mesh.
    Plaintext,
}

/// Where a workload runs; empty texts where unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Widest.
    pub region: String,
    /// Within the region.
    pub zone: String,
    /// Within the zone.
    pub subzone: String,
}

/// One running instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its key.
    pub uid: Uid,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// Who it is once it proves so.
    pub identity: Identity,
    /// Its own addresses; v4-mapped ones as IPv4.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on; empty where unknown.
    pub node: String,
    /// Shown only: all networks count as one.
    pub network: String,
    /// The cluster it belongs to.
    pub cluster: String,
    /// How it is reached from another node.
    pub protocol: Protocol,
    /// Its sockets are the node's own; it can neither be enrolled nor told from the node.
    pub is_host_network: bool,
    /// Whether it is ready for new connections.
    pub is_healthy: bool,
    /// Share of new connections relative to other endpoints; at least 1.
    pub weight: u32,
    /// For locality preference.
    pub locality: Locality,
    /// Of the Deployment or its like.
    pub workload_name: String,
    /// `deployment`, `cronjob`, `job` or `pod`.
    pub workload_type: &'static str,
    /// Istio's canonical service.
    pub canonical_name: String,
    /// Istio's canonical revision.
    pub canonical_revision: String,
    /// For each service it backs: service port -> the workload's port.
    pub services: BTreeMap<ServiceName, BTreeMap<u16, u16>>,
    /// Policies that select it by name; one that the View does not hold denies.
    pub policies: Vec<PolicyName>,
    /// Waypoints, application tunnels and whatever else this agent cannot do: why connections to it are refused.
    pub unsupported: Option<&'static str>,
}
