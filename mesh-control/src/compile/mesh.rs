//! What holds for the whole mesh: the MeshConfig resource.

use std::collections::BTreeSet;

use mesh_api::proto::mesh::MeshConfig;

use super::{Foundation, Mesh, bytes};
use crate::objects::settings::NODE_PORTS;

/// The one resource of its type.
pub fn config(mesh: &Mesh<'_>, foundation: &Foundation) -> MeshConfig {
    let settings = mesh.objects.mesh.as_deref();
    let nodes = mesh.objects.nodes.values();
    let pod_ranges: BTreeSet<_> = nodes
        .clone()
        .flat_map(|node| &node.pod_ranges)
        .chain(settings.iter().flat_map(|mesh| &mesh.pod_ranges))
        .collect();
    let ranges = mesh.objects.service_ranges.values().flat_map(|object| &object.ranges);
    let service_ranges: BTreeSet<_> = ranges.chain(settings.iter().flat_map(|mesh| &mesh.service_ranges)).collect();
    let addresses: BTreeSet<_> = nodes.flat_map(|node| &node.addresses).copied().collect();
    let (first, last) = settings.map_or(NODE_PORTS, |mesh| mesh.node_ports);
    MeshConfig {
        trust_domain: mesh.trust_domain.to_owned(),
        pod_ranges: pod_ranges.iter().map(ToString::to_string).collect(),
        service_ranges: service_ranges.iter().map(ToString::to_string).collect(),
        node_addresses: addresses.into_iter().map(bytes).collect(),
        node_port_first: first.into(),
        node_port_last: last.into(),
        allow_fail_open: settings.is_some_and(|mesh| mesh.allow_fail_open),
        encrypt_same_node: settings.is_some_and(|mesh| mesh.encrypt_same_node),
        trust_bundle: foundation.trust_bundle.clone(),
    }
}
