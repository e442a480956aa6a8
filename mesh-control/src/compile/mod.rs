//! Desired state to resources: one pure function, the same answer for the same objects. No clock, no file, no network.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::proto::{
    mesh::MeshConfig,
    security::Authorization,
    workload::{Service, Workload},
};

use crate::objects::{Objects, metadata::Name, settings};

mod mesh;
mod peers;
mod policies;
mod services;
#[cfg(test)]
mod tests;
mod wishes;
mod workloads;

/// Name of the one cluster this daemon speaks for, Istio's default.
const CLUSTER: &str = "Kubernetes";

/// What is not in the objects.
#[derive(Clone, Debug)]
pub struct Foundation {
    /// Trust domain unless the MeshConfig names one.
    pub trust_domain: String,
    /// Roots that workload certificates are verified against, PEM.
    pub trust_bundle: Vec<String>,
}

/// What is published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// By uid.
    pub workloads: BTreeMap<String, Workload>,
    /// By `namespace/hostname`.
    pub services: BTreeMap<String, Service>,
    /// By `namespace/name`.
    pub authorizations: BTreeMap<String, Authorization>,
    /// What holds for the whole mesh.
    pub mesh: MeshConfig,
    /// ServiceAccounts of the pods of each node: what its agent may ask certificates for.
    pub accounts: BTreeMap<String, BTreeSet<Name>>,
    /// Those of the WorkloadEntries that name a node, for its agent too.
    pub entry_accounts: BTreeMap<String, BTreeSet<Name>>,
    /// What is in the objects and has no effect, for their author.
    pub warnings: Vec<String>,
}

/// What every part of the compilation needs of the mesh.
struct Mesh<'a> {
    objects: &'a Objects,
    trust_domain: &'a str,
    root_namespace: &'a str,
}

/// Compiles the desired state. O(objects), and for each selector O(workloads with its rarest label).
pub fn compile(objects: &Objects, foundation: &Foundation) -> Resources {
    let settings = objects.mesh.as_deref();
    let mesh = Mesh {
        objects,
        trust_domain: settings.and_then(|mesh| mesh.trust_domain.as_deref()).unwrap_or(&foundation.trust_domain),
        root_namespace: settings.map_or(settings::ROOT_NAMESPACE, |mesh| &mesh.root_namespace),
    };
    let mut resources = Resources { mesh: mesh::config(&mesh, foundation), ..Resources::default() };
    let peers = peers::Peers::of(&mesh);
    resources.authorizations = policies::authorizations(&mesh);
    resources.authorizations.extend(peers.authorizations());
    let mut candidates = workloads::candidates(&mesh, &peers);
    resources.accounts = workloads::accounts(&mesh);
    resources.entry_accounts = workloads::entry_accounts(&mesh);
    services::attach(&mesh, &mut candidates, &mut resources);
    resources.warnings.extend(wishes::unheard(objects));
    resources.workloads = candidates.into_workloads();
    resources
}

/// True when every label of a selector is there.
fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// The bytes of an address as resources carry it: 4 or 16.
fn bytes(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}
