//! Pods and WorkloadEntries to workloads: who runs where, under which identity, enrolled or not, under which policies.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use mesh_api::{
    membership::{DATAPLANE_MODE, is_member},
    proto::workload::{Locality, NetworkMode, TunnelProtocol, Workload, WorkloadStatus, WorkloadType},
};

use super::{CLUSTER, Mesh, bytes, peers::Peers, policies, selects};
use crate::objects::{
    entry::{ExternalWorkload, WorkloadEntry},
    metadata::{Metadata, Name},
    pod::Pod,
};

/// Annotation of a WorkloadEntry: the node whose agent serves it. Only that agent gets certificates for it.
const NODE: &str = "mesh.dev/node";

/// A workload before services are attached, and what they need to find it.
pub struct Candidate {
    /// The resource.
    pub workload: Workload,
    /// Its labels, for selectors.
    pub labels: BTreeMap<String, String>,
    /// Numbers of its named ports.
    pub ports: BTreeMap<String, u16>,
    /// True when those names are of service ports (WorkloadEntry) and come before the service's own target port.
    pub names_service_ports: bool,
}

/// All workloads, found by name, address or label.
#[derive(Default)]
pub struct Candidates {
    all: Vec<Candidate>,
    pods: HashMap<Name, usize>,
    addresses: HashMap<Vec<u8>, usize>,
    labelled: HashMap<(String, String, String), Vec<usize>>,
}

impl Candidates {
    /// Adds a workload and answers its index.
    pub fn push(&mut self, candidate: Candidate) -> usize {
        let index = self.all.len();
        let workload = &candidate.workload;
        if workload.network_mode() == NetworkMode::Standard {
            // Workloads on the host's network share its address, which therefore names none of them.
            for address in &workload.addresses {
                self.addresses.entry(address.clone()).or_insert(index);
            }
        }
        for (name, value) in &candidate.labels {
            self.labelled.entry((workload.namespace.clone(), name.clone(), value.clone())).or_default().push(index);
        }
        self.all.push(candidate);
        index
    }

    /// The workload of a pod.
    pub fn pod(&self, name: &Name) -> Option<usize> {
        self.pods.get(name).copied()
    }

    /// The workload with an address.
    pub fn address(&self, address: IpAddr) -> Option<usize> {
        self.addresses.get(&bytes(address)).copied()
    }

    /// Workloads of a namespace that a selector, which must not be empty, matches.
    pub fn selected(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<usize> {
        let with =
            |(name, value): (&String, &String)| self.labelled.get(&(namespace.to_owned(), name.clone(), value.clone()));
        let rarest = selector.iter().map(with).min_by_key(|list| list.map_or(0, Vec::len)).flatten();
        let is_selected = |index: &usize| selects(selector, &self.all[*index].labels);
        rarest.into_iter().flatten().copied().filter(is_selected).collect()
    }

    /// One workload.
    pub fn at(&mut self, index: usize) -> &mut Candidate {
        &mut self.all[index]
    }

    /// The resources by uid.
    pub fn into_workloads(self) -> BTreeMap<String, Workload> {
        self.all.into_iter().map(|candidate| (candidate.workload.uid.clone(), candidate.workload)).collect()
    }
}

/// All pods that have an address, and all WorkloadEntries.
pub fn candidates(mesh: &Mesh<'_>, peers: &Peers<'_>) -> Candidates {
    let mut candidates = Candidates::default();
    for (name, pod) in mesh.objects.pods.iter().filter(|(_, pod)| !pod.is_finished && !pod.addresses.is_empty()) {
        let mut workload = pod_workload(mesh, pod);
        workload.authorization_policies = policy_names(mesh, peers, &pod.metadata.namespace, &pod.metadata.labels);
        let index = candidates.push(Candidate {
            workload,
            labels: pod.metadata.labels.clone(),
            ports: pod.ports.clone(),
            names_service_ports: false,
        });
        candidates.pods.insert(name.clone(), index);
    }
    for entry in mesh.objects.workload_entries.values() {
        let labels = entry_labels(entry);
        let mut workload = entry_workload(mesh, entry, &labels);
        workload.authorization_policies = policy_names(mesh, peers, &entry.metadata.namespace, &labels);
        candidates.push(Candidate { workload, labels, ports: entry.workload.ports.clone(), names_service_ports: true });
    }
    candidates
}

/// ServiceAccounts whose pods run on each node.
pub fn accounts(mesh: &Mesh<'_>) -> BTreeMap<String, BTreeSet<Name>> {
    let mut accounts: BTreeMap<String, BTreeSet<Name>> = BTreeMap::new();
    for pod in mesh.objects.pods.values().filter(|pod| !pod.is_finished && !pod.node.is_empty()) {
        let account = Name::new(&pod.metadata.namespace, &pod.service_account);
        accounts.entry(pod.node.clone()).or_default().insert(account);
    }
    accounts
}

/// ServiceAccounts of the WorkloadEntries that name a node.
pub fn entry_accounts(mesh: &Mesh<'_>) -> BTreeMap<String, BTreeSet<Name>> {
    let mut accounts: BTreeMap<String, BTreeSet<Name>> = BTreeMap::new();
    for entry in mesh.objects.workload_entries.values().filter(|entry| !entry.workload.service_account.is_empty()) {
        if let Some(node) = entry.metadata.annotations.get(NODE) {
            let account = Name::new(&entry.metadata.namespace, &entry.workload.service_account);
            accounts.entry(node.clone()).or_default().insert(account);
        }
    }
    accounts
}

fn policy_names(mesh: &Mesh<'_>, peers: &Peers<'_>, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<_> =
        policies::selected(mesh, namespace, labels).chain(peers.selected(namespace, labels)).collect();
    names.into_iter().collect()
}

fn pod_workload(mesh: &Mesh<'_>, pod: &Arc<Pod>) -> Workload {
    let metadata = &pod.metadata;
    let is_healthy = pod.is_ready && !metadata.is_deleting;
    let is_enrolled = is_enrolled(mesh, &metadata.namespace, &metadata.labels, pod.is_host_network);
    let (kind, name) = controller(metadata);
    let workload = Workload {
        uid: format!("{CLUSTER}//Pod/{}/{}", metadata.namespace, metadata.name),
        addresses: pod.addresses.iter().copied().map(bytes).collect(),
        tunnel_protocol: if is_enrolled { TunnelProtocol::Hbone } else { TunnelProtocol::None }.into(),
        service_account: pod.service_account.clone(),
        node: pod.node.clone(),
        workload_type: kind.into(),
        workload_name: name.clone(),
        status: if is_healthy { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
        network_mode: if pod.is_host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard }.into(),
        ..named(mesh, &metadata.namespace, &metadata.name, &metadata.labels, &name)
    };
    Workload { locality: node_locality(mesh, &pod.node), ..workload }
}

fn entry_labels(entry: &WorkloadEntry) -> BTreeMap<String, String> {
    let mut labels = entry.metadata.labels.clone();
    labels.extend(entry.workload.labels.clone());
    labels
}

fn entry_workload(mesh: &Mesh<'_>, entry: &WorkloadEntry, labels: &BTreeMap<String, String>) -> Workload {
    let metadata = &entry.metadata;
    let node = metadata.annotations.get(NODE).cloned().unwrap_or_default();
    // Without a node nobody terminates its tunnel, and without an account it has no identity to prove.
    let has_agent = !node.is_empty() && !entry.workload.service_account.is_empty();
    let is_enrolled = has_agent && is_enrolled(mesh, &metadata.namespace, labels, false);
    Workload {
        uid: format!("{CLUSTER}/networking.istio.io/WorkloadEntry/{}/{}", metadata.namespace, metadata.name),
        tunnel_protocol: if is_enrolled { TunnelProtocol::Hbone } else { TunnelProtocol::None }.into(),
        service_account: entry.workload.service_account.clone(),
        node,
        ..external_workload(mesh, &entry.workload, &metadata.namespace, &metadata.name, labels)
    }
}

/// A workload of which only its address is known: an endpoint written into a ServiceEntry.
pub fn external_workload(
    mesh: &Mesh<'_>,
    external: &ExternalWorkload,
    namespace: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> Workload {
    Workload {
        addresses: vec![bytes(external.address)],
        workload_type: WorkloadType::Pod.into(),
        workload_name: name.to_owned(),
        locality: locality(external.locality.split('/')),
        capacity: external.weight,
        ..named(mesh, namespace, name, labels, name)
    }
}

/// What every workload has, from its name and labels.
pub fn named(
    mesh: &Mesh<'_>,
    namespace: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
    workload: &str,
) -> Workload {
    let first = |names: &[&str], or: &str| {
        names.iter().find_map(|name| labels.get(*name)).map_or(or, String::as_str).to_owned()
    };
    Workload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        trust_domain: mesh.trust_domain.to_owned(),
        cluster_id: CLUSTER.to_owned(),
        canonical_name: first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], workload),
        canonical_revision: first(
            &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"],
            "latest",
        ),
        ..Workload::default()
    }
}

/// By the workload's label and its namespace's, as the agents decide too.
fn is_enrolled(mesh: &Mesh<'_>, namespace: &str, labels: &BTreeMap<String, String>, is_host_network: bool) -> bool {
    let home = mesh.objects.namespaces.get(namespace);
    let inherited = home.and_then(|namespace| namespace.metadata.label(DATAPLANE_MODE));
    is_member(labels.get(DATAPLANE_MODE).map(String::as_str), inherited, is_host_network)
}

/// Kind and name of what made the pod, as Istio's telemetry shows them: the Deployment rather than its ReplicaSet.
fn controller(metadata: &Metadata) -> (WorkloadType, String) {
    let Some((kind, name)) = &metadata.owner else { return (WorkloadType::Pod, metadata.name.clone()) };
    let hash = metadata.label("pod-template-hash").map(|hash| format!("-{hash}"));
    match kind.as_str() {
        "ReplicaSet" => match hash.and_then(|hash| name.strip_suffix(hash.as_str())) {
            Some(deployment) => (WorkloadType::Deployment, deployment.to_owned()),
            None => (WorkloadType::Pod, name.clone()),
        },
        "Job" => match name
            .rsplit_once('-')
            .filter(|(_, time)| time.len() >= 8 && time.bytes().all(|byte| byte.is_ascii_digit()))
        {
            // Jobs of a CronJob end in the minute they are for.
            Some((cron, _)) => (WorkloadType::Cronjob, cron.to_owned()),
            None => (WorkloadType::Job, name.clone()),
        },
        _ => (WorkloadType::Pod, name.clone()),
    }
}

/// Where a node says that it stands.
pub fn node_locality(mesh: &Mesh<'_>, node: &str) -> Option<Locality> {
    let labels = &mesh.objects.nodes.get(node)?.metadata.labels;
    let label = |name: &str| labels.get(name).map_or("", String::as_str);
    locality([
        label("topology.kubernetes.io/region"),
        label("topology.kubernetes.io/zone"),
        label("topology.istio.io/subzone"),
    ])
}

fn locality<'a>(parts: impl IntoIterator<Item = &'a str>) -> Option<Locality> {
    let mut parts = parts.into_iter().map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let locality = Locality { region: next(), zone: next(), subzone: next() };
    (locality != Locality::default()).then_some(locality)
}
