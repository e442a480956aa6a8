//! What one answer of control does to the state: decoded, taken in by the store, settled with its subscription. No I/O.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE,
    proto::{
        discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
        mesh::MeshConfig,
    },
};
use prost::Message;
use tokio::sync::oneshot;

use crate::view::{DemandRequest, Refusal, Store, View};

use super::{TypeStatus, subscription::Subscription};

/// A control plane of another make never answers for our own type; its absence is taken as such after this long.
const MESH_CONFIG_GRACE: Duration = Duration::from_secs(1);
/// Addresses asked for at once; what is beyond fails as if control did not know it.
const DEMAND_LIMIT: usize = 1024;

/// All that outlives a stream.
#[derive(Debug)]
pub struct State {
    store: Store,
    mesh: Subscription,
    addresses: Subscription,
    policies: Subscription,
    /// Who waits for an address, by the name it is asked under.
    waiting: HashMap<String, Vec<oneshot::Sender<()>>>,
    /// Answered since the last publication: told once the View that holds the answer is out.
    answered: Vec<oneshot::Sender<()>>,
    istio_types_complete: Option<Instant>,
    is_dirty: bool,
    trust_bundle: Arc<Vec<String>>,
}

impl State {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            store: Store::default(),
            mesh: Subscription::new(MESH_CONFIG_TYPE),
            addresses: Subscription::new(ADDRESS_TYPE),
            policies: Subscription::new(AUTHORIZATION_TYPE),
            waiting: HashMap::new(),
            answered: Vec::new(),
            istio_types_complete: None,
            is_dirty: false,
            trust_bundle: Arc::default(),
        }
    }

    /// The first requests of a stream. The mesh's settings first, so that they are there when the rest is. Addresses
    /// that are waited for are asked again.
    pub fn open(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = vec![self.mesh.open(), self.policies.open(), self.addresses.open()];
        let names: Vec<String> = self.waiting.keys().cloned().collect();
        requests.extend(names.into_iter().map(|name| self.addresses.ask(name)));
        requests
    }

    /// Takes a question in; the request that asks it, if it is not on its way already.
    pub fn demand(&mut self, demand: DemandRequest) -> Option<DeltaDiscoveryRequest> {
        self.waiting.retain(|_, askers| {
            askers.retain(|asker| !asker.is_closed());
            !askers.is_empty()
        });
        if self.waiting.len() >= DEMAND_LIMIT {
            return None;
        }
        let name = alias(demand.address);
        let askers = self.waiting.entry(name.clone()).or_default();
        askers.push(demand.done);
        (askers.len() == 1).then(|| self.addresses.ask(name))
    }

    /// Takes an answer in; the ack or nack. `None`: of a type that nobody asked for.
    pub fn receive(&mut self, answer: &DeltaDiscoveryResponse) -> Option<DeltaDiscoveryRequest> {
        let reply = match answer.type_url.as_str() {
            ADDRESS_TYPE => {
                let (updated, mut refused) = decode(answer);
                refused.extend(self.store.apply_addresses(&updated, &answer.removed_resources));
                self.release(answer);
                self.addresses.settle(answer, &refused)
            }
            AUTHORIZATION_TYPE => {
                let (updated, mut refused) = decode(answer);
                refused.extend(self.store.apply_policies(&updated, &answer.removed_resources));
                self.policies.settle(answer, &refused)
            }
            MESH_CONFIG_TYPE => {
                let (updated, mut refused) = decode::<MeshConfig>(answer);
                for (_, config) in &updated {
                    match self.store.apply_mesh(config) {
                        Ok(()) => self.trust_bundle = Arc::new(config.trust_bundle.clone()),
                        Err(refusal) => refused.push(refusal),
                    }
                }
                self.mesh.settle(answer, &refused)
            }
            _ => return None,
        };
        if self.addresses.is_complete() && self.policies.is_complete() {
            self.istio_types_complete.get_or_insert_with(Instant::now);
        }
        self.is_dirty = true;
        Some(reply)
    }

    /// When something may be published: at once, or when the grace for the mesh's settings ends. `None`: nothing to say.
    pub fn publishable_at(&self) -> Option<Instant> {
        let since = self.istio_types_complete.filter(|_| self.is_dirty)?;
        Some(if self.mesh.is_complete() { since } else { since + MESH_CONFIG_GRACE })
    }

    /// The View of now, and whom to tell once it is out.
    pub fn publish(&mut self) -> (Arc<View>, Vec<oneshot::Sender<()>>) {
        self.is_dirty = false;
        (self.store.publish(), std::mem::take(&mut self.answered))
    }

    /// What operators see of the types.
    pub fn types(&self) -> Vec<TypeStatus> {
        vec![self.addresses.status(), self.policies.status(), self.mesh.status()]
    }

    /// The roots that control published last.
    pub fn trust_bundle(&self) -> Arc<Vec<String>> {
        self.trust_bundle.clone()
    }

    fn release(&mut self, answer: &DeltaDiscoveryResponse) {
        if self.waiting.is_empty() {
            return;
        }
        let found = answer.resources.iter().map(|resource| &resource.name);
        for name in found.chain(&answer.removed_resources) {
            self.answered.extend(self.waiting.remove(name).into_iter().flatten());
        }
    }
}

/// How an address is asked for: `network/IP`, on the one network there is.
fn alias(address: IpAddr) -> String {
    format!("/{}", address.to_canonical())
}

fn decode<M: Message + Default>(answer: &DeltaDiscoveryResponse) -> (Vec<(String, M)>, Vec<Refusal>) {
    let mut decoded = Vec::with_capacity(answer.resources.len());
    let mut refused = Vec::new();
    for resource in &answer.resources {
        let any = resource.resource.as_ref().filter(|any| any.type_url == answer.type_url);
        match any.map(|any| M::decode(any.value.as_slice())) {
            Some(Ok(message)) => decoded.push((resource.name.clone(), message)),
            Some(Err(error)) => refused.push(Refusal { name: resource.name.clone(), reason: error.to_string() }),
            None => {
                refused.push(Refusal { name: resource.name.clone(), reason: format!("holds no {}", answer.type_url) })
            }
        }
    }
    (decoded, refused)
}
