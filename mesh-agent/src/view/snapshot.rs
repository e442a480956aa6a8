//! The snapshot and its indexes. Built by the `Store` only; read by everybody, changed by nobody once published.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_api::Identity;

use super::{MeshSettings, Policy, PolicyName, Protocol, Scope, Service, ServiceName, Uid, Workload};

/// The snapshot.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Counts publications; a later View has a higher one.
    pub generation: u64,
    /// What holds for the whole mesh.
    pub mesh: MeshSettings,
    workloads: HashMap<Uid, Arc<Workload>>,
    /// Pods before entries that claim a pod's address. Of pods the last that was published is first: the address was used
    /// again. Of entries the first by uid.
    workloads_by_address: HashMap<IpAddr, Vec<Arc<Workload>>>,
    services: HashMap<ServiceName, Arc<Service>>,
    services_by_address: HashMap<IpAddr, Vec<Arc<Service>>>,
    endpoints: HashMap<ServiceName, Arc<Vec<Arc<Workload>>>>,
    policies: HashMap<PolicyName, Arc<Policy>>,
    global_policies: Vec<Arc<Policy>>,
    namespace_policies: HashMap<Arc<str>, Vec<Arc<Policy>>>,
}

impl View {
    /// The workload with this key.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that has this address (v4-mapped is IPv4); never proof of an identity. Workloads of the node's own
    /// network are not found: they share its address.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(&address.to_canonical())?.first()
    }

    /// Whether this address can be that of a workload with this identity: it is one's, or nobody's that the View knows (from
    /// behind a NAT, or of the node's own network). Never proof of an identity, only of a contradiction.
    pub fn may_be_at(&self, identity: &Identity, address: IpAddr) -> bool {
        let workloads = self.workloads_by_address.get(&address.to_canonical());
        workloads.is_none_or(|all| all.is_empty() || all.iter().any(|workload| workload.identity == *identity))
    }

    /// The services with this virtual address, ordered by namespace and name.
    pub fn services_at(&self, address: IpAddr) -> &[Arc<Service>] {
        self.services_by_address.get(&address.to_canonical()).map_or(&[], Vec::as_slice)
    }

    /// The service with this virtual address and port; of several, that of `namespace` first, then one that is canonical, then
    /// by namespace and name.
    pub fn service_at(&self, dialled: SocketAddr, namespace: &str) -> Option<&Arc<Service>> {
        let has_port = |service: &&Arc<Service>| service.ports.iter().any(|port| port.service_port == dialled.port());
        let rank = |service: &&Arc<Service>| (*service.name.namespace != *namespace, !service.is_canonical);
        // Of equals the first.
        self.services_at(dialled.ip()).iter().filter(has_port).min_by_key(rank)
    }

    /// The service of this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The workloads behind a service, ordered by uid.
    pub fn endpoints(&self, service: &ServiceName) -> &[Arc<Workload>] {
        self.endpoints.get(service).map_or(&[], |endpoints| endpoints.as_slice())
    }

    /// The policy of this name.
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.policies.get(name)
    }

    /// Policies of the mesh and of this namespace: they select without being named. Ordered by name within each.
    pub fn policies_over(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        self.global_policies.iter().chain(self.namespace_policies.get(namespace).into_iter().flatten())
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    pub(super) fn insert_workload(&mut self, workload: Arc<Workload>) {
        self.remove_workload(&workload.uid.clone());
        if !workload.is_host_network {
            for address in &workload.addresses {
                let claimants = self.workloads_by_address.entry(*address).or_default();
                let is_own = is_pod(&workload);
                let at = claimants.partition_point(|other| !is_own && (is_pod(other) || other.uid < workload.uid));
                claimants.insert(at, workload.clone());
            }
        }
        for service in workload.services.keys() {
            let endpoints = Arc::make_mut(self.endpoints.entry(service.clone()).or_default());
            let at = endpoints.partition_point(|endpoint| endpoint.uid < workload.uid);
            endpoints.insert(at, workload.clone());
        }
        self.workloads.insert(workload.uid.clone(), workload);
    }

    pub(super) fn remove_workload(&mut self, uid: &str) {
        let Some(old) = self.workloads.remove(uid) else { return };
        for address in &old.addresses {
            remove_from(&mut self.workloads_by_address, address, |workload| *workload.uid == *uid);
        }
        for service in old.services.keys() {
            let Some(endpoints) = self.endpoints.get_mut(service) else { continue };
            Arc::make_mut(endpoints).retain(|endpoint| *endpoint.uid != *uid);
            if endpoints.is_empty() {
                self.endpoints.remove(service);
            }
        }
    }

    pub(super) fn insert_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.name.clone());
        for address in &service.addresses {
            let services = self.services_by_address.entry(*address).or_default();
            let at = services.partition_point(|other| other.name < service.name);
            services.insert(at, service.clone());
        }
        self.services.insert(service.name.clone(), service);
    }

    pub(super) fn remove_service(&mut self, name: &ServiceName) {
        let Some(old) = self.services.remove(name) else { return };
        for address in &old.addresses {
            remove_from(&mut self.services_by_address, address, |service| service.name == *name);
        }
    }

    pub(super) fn insert_policy(&mut self, policy: Arc<Policy>) {
        self.remove_policy(&policy.name.clone());
        let selecting = match policy.scope {
            Scope::Global => Some(&mut self.global_policies),
            Scope::Namespace => Some(self.namespace_policies.entry(policy.name.namespace.clone()).or_default()),
            Scope::Selector => None,
        };
        if let Some(selecting) = selecting {
            let at = selecting.partition_point(|other| other.name < policy.name);
            selecting.insert(at, policy.clone());
        }
        self.policies.insert(policy.name.clone(), policy);
    }

    pub(super) fn remove_policy(&mut self, name: &PolicyName) {
        if self.policies.remove(name).is_some() {
            self.global_policies.retain(|policy| policy.name != *name);
            remove_from(&mut self.namespace_policies, &name.namespace, |policy| policy.name == *name);
        }
    }
}

/// Whether its uid (`cluster/group/kind/namespace/name`) is that of a Kubernetes pod that is in the mesh: the address is its
/// own, while a ServiceEntry or WorkloadEntry may name any.
fn is_pod(workload: &Workload) -> bool {
    workload.protocol == Protocol::Hbone && workload.uid.split('/').nth(2) == Some("Pod")
}

fn remove_from<K: std::hash::Hash + Eq, V>(index: &mut HashMap<K, Vec<V>>, key: &K, is_gone: impl Fn(&V) -> bool) {
    if let Some(all) = index.get_mut(key) {
        all.retain(|value| !is_gone(value));
        if all.is_empty() {
            index.remove(key);
        }
    }
}
