//! The View: an immutable snapshot of all that the control daemon told this node. One is taken at accept and lent to
//! every stage of the connection; nothing in it changes, nothing here does I/O.
//!
//! `Store` (control thread) takes resources in; `View` (all threads) is what it publishes.

mod convert;
mod convert_policy;
mod demand;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), expect(dead_code, reason = "fuzzing needs a part of it"))]
pub(crate) mod fixtures;
mod policy;
mod service;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
mod workload;

pub use demand::{Demand, DemandRequest};
pub use policy::{Action, AddressRange, Clause, Match, Policy, PolicyName, Rule, Scope, ServiceAccount, TextMatch};
pub use service::{LoadBalancing, Port, RoutingScope, Service, ServiceName, Traffic};
pub use snapshot::View;
pub use store::{Refusal, Store};
pub use workload::{Locality, Protocol, Uid, Workload};

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;

/// The current View, shared by all threads; empty until the first complete one (the agent is then *starting*).
pub type SharedView = Arc<ArcSwapOption<View>>;

/// What holds for the whole mesh. Comes from the control daemon; an agent fed by an istiod uses its own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSettings {
    /// Trust domain of every identity that is accepted.
    pub trust_domain: String,
    /// Addresses inside these (and `service_ranges`) that the View does not know are asked for, then refused.
    pub pod_ranges: Vec<IpNet>,
    /// Service addresses.
    pub service_ranges: Vec<IpNet>,
    /// Addresses of the cluster's nodes: plaintext passthrough with reason `node`.
    pub node_addresses: Vec<IpAddr>,
    /// Ports of node addresses that are service addresses, refused when unknown.
    pub node_ports: std::ops::RangeInclusive<u16>,
    /// Whether a pod may ask to leave fail-closed.
    pub allow_fail_open: bool,
    /// Whether the direct path is turned off.
    pub encrypt_same_node: bool,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            pod_ranges: Vec::new(),
            service_ranges: Vec::new(),
            node_addresses: Vec::new(),
            node_ports: 30000..=32767,
            allow_fail_open: false,
            encrypt_same_node: false,
        }
    }
}
