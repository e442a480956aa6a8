//! What one answer of control does to the state: decoded, taken in by the store, settled with its subscription. No I/O.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE,
    proto::{
        discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node},
        mesh::MeshConfig,
    },
};
use prost::Message;
use tokio::sync::oneshot;

use crate::{
    cache::{CacheError, Contents, Resources, SharedResources},
    view::{DemandRequest, Refusal, Store, View},
};

use super::{
    TypeStatus,
    subscription::{Subscription, alias},
};

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
    /// What the store was made of.
    resources: SharedResources,
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
            resources: SharedResources::default(),
        }
    }

    /// Starts from what an earlier run was told.
    ///
    /// # Errors
    /// A resource that was taken then is refused now: nothing of it counts.
    pub fn restore(&mut self, contents: &Contents) -> Result<(), CacheError> {
        let mut restored = Self::new();
        for kind in &contents.kinds {
            let answer = kind.answer();
            let Some(refused) = restored.apply(&answer) else { continue };
            let was_taken =
                |refusal: &&Refusal| kind.held.iter().any(|held| held.name == refusal.name && !held.version.is_empty());
            if let Some(Refusal { name, reason }) = refused.iter().find(was_taken).cloned() {
                return Err(CacheError::Resource { name, reason });
            }
            restored.subscription(&answer.type_url).into_iter().for_each(|known| known.resume(&answer));
            restored.keep(answer, &refused);
        }
        restored.note_completion();
        // Others hold ours.
        std::mem::swap(&mut *lock(&self.resources), &mut *lock(&restored.resources));
        restored.resources = self.resources.clone();
        *self = restored;
        Ok(())
    }

    /// What is in force, as control sent it.
    pub fn resources(&self) -> SharedResources {
        self.resources.clone()
    }

    /// The first requests of a stream. The mesh's settings first, so that they are there when the rest is. Addresses that
    /// are waited for are asked for.
    pub fn open(&mut self, now: Instant) -> Vec<DeltaDiscoveryRequest> {
        for name in self.waiting.keys() {
            self.addresses.ask(name.clone(), now);
        }
        [&mut self.mesh, &mut self.policies, &mut self.addresses].into_iter().flat_map(Subscription::open).collect()
    }

    /// Takes a question in; the name to ask for, if that is not on its way already.
    pub fn demand(&mut self, demand: DemandRequest) -> Option<String> {
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
        (askers.len() == 1).then_some(name)
    }

    /// What is to be said on a stream that is open when an address is asked for.
    pub fn ask(&mut self, name: String, now: Instant) -> Vec<DeltaDiscoveryRequest> {
        let question = self.addresses.ask(name, now);
        let over = if self.addresses.is_crowded() { self.expire(now) } else { None };
        over.into_iter().chain([question]).collect()
    }

    /// Gives up the addresses that nobody has asked for in a long time, and what is known under their names alone: the
    /// request that says so, if there are any.
    pub fn expire(&mut self, now: Instant) -> Option<DeltaDiscoveryRequest> {
        let names = self.addresses.expire(now);
        if names.is_empty() {
            return None;
        }
        self.store.apply_addresses(&[], &names);
        self.is_dirty = true;
        Some(self.addresses.release(names))
    }

    /// What says something of the node and asks for nothing.
    pub fn report(&self, node: Node) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(node),
            type_url: MESH_CONFIG_TYPE.into(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes an answer in; the ack or nack. `None`: of a type that nobody asked for.
    pub fn receive(&mut self, answer: DeltaDiscoveryResponse) -> Option<DeltaDiscoveryRequest> {
        let refused = self.apply(&answer)?;
        let reply = self.subscription(&answer.type_url)?.settle(&answer, &refused);
        self.keep(answer, &refused);
        self.note_completion();
        self.is_dirty = true;
        Some(reply)
    }

    /// What of an answer is refused. `None`: of a type that nobody asked for.
    fn apply(&mut self, answer: &DeltaDiscoveryResponse) -> Option<Vec<Refusal>> {
        let refused = match answer.type_url.as_str() {
            ADDRESS_TYPE => {
                let (mut updated, mut refused) = decode(answer);
                updated.retain(|(name, _)| self.addresses.takes(name));
                refused.extend(self.store.apply_addresses(&updated, &answer.removed_resources));
                self.release(answer);
                refused
            }
            AUTHORIZATION_TYPE => {
                let (updated, unreadable) = decode(answer);
                let mut refused = self.store.apply_policies(&updated, &answer.removed_resources);
                self.store.deny_unreadable_policies(&unreadable);
                refused.extend(unreadable);
                refused
            }
            MESH_CONFIG_TYPE => {
                let (updated, mut refused) = decode::<MeshConfig>(answer);
                for (_, config) in &updated {
                    match self.store.apply_mesh(config) {
                        Ok(()) => self.trust_bundle = Arc::new(config.trust_bundle.clone()),
                        Err(refusal) => refused.push(refusal),
                    }
                }
                refused
            }
            _ => return None,
        };
        Some(refused)
    }

    fn subscription(&mut self, type_url: &str) -> Option<&mut Subscription> {
        match type_url {
            ADDRESS_TYPE => Some(&mut self.addresses),
            AUTHORIZATION_TYPE => Some(&mut self.policies),
            MESH_CONFIG_TYPE => Some(&mut self.mesh),
            _ => None,
        }
    }

    fn keep(&self, answer: DeltaDiscoveryResponse, refused: &[Refusal]) {
        lock(&self.resources).take(answer, refused);
    }

    fn note_completion(&mut self) {
        if self.addresses.is_complete() && self.policies.is_complete() {
            self.istio_types_complete.get_or_insert_with(Instant::now);
        }
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

fn lock(resources: &SharedResources) -> MutexGuard<'_, Resources> {
    resources.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use mesh_api::proto::{discovery::Resource, security::Action, wellknown::Any};

    use super::{
        super::subscription::{ASKED_FOR, MOST_ASKED},
        *,
    };
    use crate::{
        path::{Source, Verdict, judge},
        view::fixtures,
    };

    fn answer(names: &[&str], removed: &[&str]) -> DeltaDiscoveryResponse {
        let (_, message) = fixtures::named_workload(fixtures::pod("late", &["10.0.0.9"]));
        let any = Any { type_url: ADDRESS_TYPE.into(), value: message.encode_to_vec() };
        let resource =
            |name: &&str| Resource { name: (*name).into(), version: "1".into(), resource: Some(any.clone()) };
        DeltaDiscoveryResponse {
            type_url: ADDRESS_TYPE.into(),
            resources: names.iter().map(resource).collect(),
            removed_resources: removed.iter().map(|name| (*name).into()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    /// A state that asked for an address and was told of it under these names.
    fn told(names: &[&str]) -> (State, Instant, oneshot::Receiver<()>) {
        let (mut state, now) = (State::new(), Instant::now());
        let (done, answered) = oneshot::channel();
        let address = "10.0.0.9".parse().unwrap();
        let name = state.demand(DemandRequest { address, done }).unwrap();
        let [question] = <[_; 1]>::try_from(state.ask(name, now)).unwrap();
        assert_eq!(question.resource_names_subscribe, ["/10.0.0.9"]);
        state.receive(answer(names, &[])).unwrap();
        assert!(knows(&mut state));
        (state, now, answered)
    }

    fn knows(state: &mut State) -> bool {
        state.publish().0.workload_at("10.0.0.9".parse().unwrap()).is_some()
    }

    #[test]
    fn what_is_known_only_because_somebody_asked_is_forgotten_when_nobody_does() {
        let (mut state, asked, _answered) = told(&["/10.0.0.9"]);
        assert!(state.expire(asked).is_none());
        let request = state.expire(asked + ASKED_FOR).unwrap();
        assert_eq!(request.resource_names_unsubscribe, ["/10.0.0.9"]);
        assert!(request.resource_names_subscribe.is_empty());
        assert!(!knows(&mut state));
        state.receive(answer(&["/10.0.0.9"], &[])).unwrap();
        assert!(!knows(&mut state), "it was on its way");
        assert!(state.expire(asked + ASKED_FOR).is_none());
    }

    #[test]
    fn a_policy_that_cannot_even_be_decoded_denies_its_namespace_unless_a_good_form_is_there() {
        let (_, good) = fixtures::named_policy(fixtures::policy("open", Action::Allow, Vec::new()));
        let named = |bytes: &[u8]| {
            let any = Any { type_url: AUTHORIZATION_TYPE.into(), value: bytes.to_vec() };
            let resource = Resource { name: "default/open".into(), version: "1".into(), resource: Some(any) };
            let type_url = AUTHORIZATION_TYPE.into();
            DeltaDiscoveryResponse { type_url, resources: vec![resource], ..DeltaDiscoveryResponse::default() }
        };
        let (garbled, good) = (named(b"\x08\x01"), named(&good.encode_to_vec()));
        let view = fixtures::view([fixtures::pod("db", &["10.0.0.2"])], [], []);
        let db = view.workloads().next().unwrap();
        let source = Source { identity: None, address: "10.0.0.1".parse().unwrap() };
        let mut state = State::new();
        let mut told = |answer: &DeltaDiscoveryResponse| {
            let is_refused = state.receive(answer.clone()).unwrap().error_detail.is_some();
            (is_refused, judge(&state.publish().0, &source, db, db.addresses[0], 80).verdict)
        };
        assert_eq!(told(&garbled), (true, Verdict::Denied));
        assert_eq!(told(&good), (false, Verdict::Allowed));
        assert_eq!(told(&garbled), (true, Verdict::Allowed));
    }

    #[test]
    fn what_is_known_anyway_stays() {
        let (mut state, asked, _answered) = told(&["/10.0.0.9", "Kubernetes//Pod/default/late"]);
        state.expire(asked + ASKED_FOR).unwrap();
        assert!(knows(&mut state));
    }

    #[test]
    fn after_a_reconnect_what_was_asked_for_is_asked_for_again_so_that_its_end_is_told() {
        let (mut state, asked, _) = told(&["/10.0.0.9"]);
        let again = state.open(asked).pop().unwrap();
        assert_eq!(
            (again.type_url.as_str(), again.resource_names_subscribe.as_slice()),
            (ADDRESS_TYPE, &["/10.0.0.9".to_owned()][..])
        );
        state.receive(answer(&[], &["/10.0.0.9"])).unwrap();
        assert!(!knows(&mut state));
    }

    #[test]
    fn what_was_asked_for_while_control_was_away_is_asked_for_with_the_next_stream() {
        let mut state = State::new();
        let (done, _answered) = oneshot::channel();
        let address = "10.0.0.9".parse().unwrap();
        assert!(state.demand(DemandRequest { address, done }).is_some());
        assert_eq!(state.open(Instant::now()).pop().unwrap().resource_names_subscribe, ["/10.0.0.9"]);
    }

    #[test]
    fn names_are_bounded_between_two_looks_too() {
        let (mut state, now) = (State::new(), Instant::now());
        let (mut asked, mut released) = (0, 0);
        for number in 0..100_000_u32 {
            for request in state.ask(alias(std::net::Ipv4Addr::from_bits(number).into()), now) {
                asked += request.resource_names_subscribe.len();
                released += request.resource_names_unsubscribe.len();
            }
            assert!(asked - released <= 2 * MOST_ASKED);
        }
        assert_eq!(asked, 100_000);
    }
}
