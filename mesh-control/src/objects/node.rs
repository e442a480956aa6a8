//! Nodes, Namespaces and ServiceCIDRs: what is known of the cluster itself.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    fields::{Fields, Problems, Spot},
    metadata::{self, Metadata},
};

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata`.
    pub metadata: Metadata,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Ranges its pods get addresses from.
    pub pod_ranges: Vec<IpNet>,
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata`.
    pub metadata: Metadata,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    /// `metadata`.
    pub metadata: Metadata,
    /// Ranges that services get addresses from.
    pub ranges: Vec<IpNet>,
}

/// NodeStatus of Kubernetes 1.34 without `addresses`.
const STATUS: [&str; 13] = [
    "allocatable",
    "capacity",
    "conditions",
    "config",
    "daemonEndpoints",
    "declaredFeatures",
    "features",
    "images",
    "nodeInfo",
    "phase",
    "runtimeHandlers",
    "volumesAttached",
    "volumesInUse",
];

/// Reads a Node.
pub fn read(object: &mut Fields<'_>) -> Option<Node> {
    let metadata = metadata::read(object, false);
    let mut pod_ranges = Vec::new();
    if let Some(mut spec) = object.map("spec") {
        pod_ranges = ranges(&mut spec, "podCIDRs");
        let problems = spec.problems();
        let first = spec.text("podCIDR").and_then(|spot| range(&spot, problems));
        if let Some(first) = first.filter(|first| !pod_ranges.contains(first)) {
            pod_ranges.insert(0, first);
        }
        spec.accept(&["configSource", "externalID", "providerID", "taints", "unschedulable"]);
        spec.finish();
    }
    let mut addresses = Vec::new();
    if let Some(mut status) = object.map("status") {
        for mut fields in status.maps("addresses") {
            let kind = fields.required_text("type").map(|kind| kind.value);
            // Host names and DNS names need a resolver; the addresses are listed beside them.
            if kind.is_some_and(|kind| kind == "InternalIP" || kind == "ExternalIP") {
                addresses.extend(fields.address("address"));
            }
            fields.accept(&["address"]);
            fields.finish();
        }
        status.accept(&STATUS);
        status.finish();
    }
    Some(Node { metadata: metadata?, addresses, pod_ranges })
}

/// Reads a Namespace.
pub fn read_namespace(object: &mut Fields<'_>) -> Option<Namespace> {
    let metadata = metadata::read(object, false);
    if let Some(mut spec) = object.map("spec") {
        spec.accept(&["finalizers"]);
        spec.finish();
    }
    object.accept(&["status"]);
    Some(Namespace { metadata: metadata? })
}

/// Reads a ServiceCIDR.
pub fn read_service_range(object: &mut Fields<'_>) -> Option<ServiceRange> {
    let metadata = metadata::read(object, false);
    let mut found = Vec::new();
    if let Some(mut spec) = object.map("spec") {
        found = ranges(&mut spec, "cidrs");
        spec.finish();
    }
    object.accept(&["status"]);
    Some(ServiceRange { metadata: metadata?, ranges: found })
}

/// A list of address ranges.
pub fn ranges(fields: &mut Fields<'_>, name: &str) -> Vec<IpNet> {
    let problems = fields.problems();
    fields.texts(name).iter().filter_map(|spot| range(spot, problems)).collect()
}

fn range(spot: &Spot<String>, problems: &Problems) -> Option<IpNet> {
    match spot.value.parse::<IpNet>() {
        Ok(range) => Some(range.trunc()),
        Err(_) => {
            spot.refuse(problems, format!("{:?} is not a range like 10.0.0.0/16", spot.value));
            None
        }
    }
}
