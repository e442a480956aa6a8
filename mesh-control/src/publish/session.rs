//! One subscriber's stream: what it asked for, what it holds, and what it has to be told next. Pure: requests and
//! states in, responses out. Never waits, so it can be tested against a model of a client.
//!
//! A state is told only when everything before it was answered, so that a slow subscriber gets the latest state rather
//! than a queue of old ones. What restricts is told before what it restricts: new policies come before the workloads
//! that name them, and policies go after those are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use super::snapshot::{Entry, Kind, Snapshot, Version};

/// Names that one subscriber may ask for. An agent asks for what its pods dial; more is a mistake or an attack.
const MOST_NAMES: usize = 100_000;
/// Responses that one subscriber may leave unanswered while it goes on asking.
const MOST_AWAITED: usize = 10_000;
/// Subscribes to everything of a type.
const WILDCARD: &str = "*";

/// What a subscriber has refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// Type URL.
    pub type_url: String,
    /// The subscriber's reason.
    pub message: String,
}

/// Why a stream is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The subscriber asks for more names than one node can need.
    #[error("more than {MOST_NAMES} names are asked for on one stream")]
    TooManyNames,
    /// The subscriber asks and asks and answers nothing.
    #[error("more than {MOST_AWAITED} responses are unanswered")]
    TooManyAwaited,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Session {
    node: String,
    subscriptions: BTreeMap<Kind, Subscription>,
    unknown: BTreeSet<String>,
    awaited: BTreeSet<String>,
    nonce: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    is_wildcard: bool,
    names: BTreeSet<Arc<str>>,
    held: BTreeMap<Arc<str>, Option<Version>>,
    missing: BTreeSet<Arc<str>>,
    generation: u64,
}

/// Which half of a type's changes is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Upserts,
    Removals,
    Both,
}

impl Session {
    /// A stream of an agent, by the node its token belongs to.
    pub fn new(node: impl Into<String>) -> Session {
        let (subscriptions, unknown, awaited) = Default::default();
        Session { node: node.into(), subscriptions, unknown, awaited, nonce: 0 }
    }

    /// Takes a request and answers what is to be sent. A request that asks is always answered, even with nothing: a
    /// subscriber waits for the first answer of each type before it counts as ready.
    ///
    /// # Errors
    /// The subscriber is at fault; its stream is to be ended.
    pub fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<(Vec<DeltaDiscoveryResponse>, Option<Nack>), SessionError> {
        let nack = request
            .error_detail
            .as_ref()
            .map(|status| Nack { type_url: request.type_url.clone(), message: status.message.clone() });
        self.awaited.remove(&request.response_nonce);
        if self.awaited.len() > MOST_AWAITED {
            return Err(SessionError::TooManyAwaited);
        }
        let Some(kind) = Kind::of_url(&request.type_url) else {
            // A type we have nothing of: the first question gets an empty answer, so that nobody waits for it.
            let is_first = self.unknown.len() < 64 && self.unknown.insert(request.type_url.clone());
            let empty = is_first.then(|| self.response(&request.type_url, snapshot, Vec::new(), Vec::new()));
            return Ok((empty.into_iter().collect(), nack));
        };
        let is_first = !self.subscriptions.contains_key(&kind);
        let asks = is_first || !request.resource_names_subscribe.is_empty();
        let subscription = self.subscriptions.entry(kind).or_default();
        subscription.take(request, is_first)?;
        let responses = match asks {
            true => self.tell(snapshot, Some(kind)),
            false => self.advance(snapshot),
        };
        Ok((responses, nack))
    }

    /// Answers what is to be sent when the state may have changed; nothing while an answer is awaited.
    pub fn advance(&mut self, snapshot: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
        if self.awaited.is_empty() { self.tell(snapshot, None) } else { Vec::new() }
    }

    /// Generation of the last state of which everything that was asked for was told; 0 before the first.
    pub fn told(&self) -> u64 {
        self.subscriptions.values().map(|subscription| subscription.generation).min().unwrap_or(0)
    }

    /// True when every response was answered.
    pub fn has_answered(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Everything that is new since the last time, in order; `asked` is answered even when nothing is.
    fn tell(&mut self, snapshot: &Snapshot, asked: Option<Kind>) -> Vec<DeltaDiscoveryResponse> {
        let order = [
            (Kind::Mesh, Half::Both),
            (Kind::Authorization, Half::Upserts),
            (Kind::Address, Half::Both),
            (Kind::Authorization, Half::Removals),
        ];
        let mut responses = Vec::new();
        for (kind, half) in order {
            let Some(subscription) = self.subscriptions.get_mut(&kind) else { continue };
            let (resources, removed) = subscription.news(kind, half, &self.node, snapshot);
            let is_asked = asked == Some(kind) && half != Half::Removals;
            if is_asked || !resources.is_empty() || !removed.is_empty() {
                responses.push(self.response(kind.url(), snapshot, resources, removed));
            }
        }
        responses
    }

    fn response(
        &mut self,
        url: &str,
        snapshot: &Snapshot,
        resources: Vec<Resource>,
        removed: Vec<String>,
    ) -> DeltaDiscoveryResponse {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        self.awaited.insert(nonce.clone());
        DeltaDiscoveryResponse {
            system_version_info: snapshot.generation.to_string(),
            resources,
            type_url: url.to_owned(),
            nonce,
            removed_resources: removed,
        }
    }
}

impl Subscription {
    fn take(&mut self, request: DeltaDiscoveryRequest, is_first: bool) -> Result<(), SessionError> {
        if is_first {
            // A first request without names is the older spelling of the wildcard.
            self.is_wildcard = request.resource_names_subscribe.is_empty();
            let held = request.initial_resource_versions.into_iter();
            self.held = held.map(|(name, version)| (name.into(), Version::parse(&version))).collect();
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                if !self.is_wildcard {
                    (self.is_wildcard, self.generation) = (true, 0);
                }
                continue;
            }
            let name: Arc<str> = name.into();
            if !is_first {
                // Who asks again has forgotten it.
                self.held.remove(&name);
            }
            self.missing.remove(&name);
            self.names.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.is_wildcard = false;
                self.generation = 0;
                continue;
            }
            self.names.remove(name.as_str());
            self.missing.remove(name.as_str());
            let is_alias = name.starts_with('/');
            if !self.is_wildcard || is_alias {
                self.held.remove(name.as_str());
            }
        }
        if self.names.len() > MOST_NAMES { Err(SessionError::TooManyNames) } else { Ok(()) }
    }

    /// What differs between what is held and what is wanted. O(changes) for a wildcard that is not far behind.
    fn news(&mut self, kind: Kind, half: Half, node: &str, snapshot: &Snapshot) -> (Vec<Resource>, Vec<String>) {
        let demanded = self.demanded(kind, node, snapshot);
        let recent = match self.generation {
            0 => None,
            generation => snapshot.changed_since(kind, generation),
        };
        let mut candidates: BTreeSet<Arc<str>> = demanded.keys().chain(&self.names).cloned().collect();
        match recent.filter(|_| self.is_wildcard) {
            Some(changed) => candidates.extend(changed),
            None => {
                candidates.extend(self.held.keys().cloned());
                candidates.extend(snapshot.entries(kind).keys().filter(|_| self.is_wildcard).cloned());
            }
        }
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        for name in candidates {
            let own = if self.is_wildcard { snapshot.entry(kind, &name) } else { None };
            match own.or_else(|| demanded.get(&name).copied()) {
                Some(entry) if half != Half::Removals => {
                    self.missing.remove(&name);
                    if self.held.insert(name.clone(), Some(entry.version)) != Some(Some(entry.version)) {
                        resources.push(resource(&name, kind, entry));
                    }
                }
                None if half != Half::Upserts => {
                    let was_held = self.held.remove(&name).is_some();
                    let is_missed = self.names.contains(&name) && self.missing.insert(name.clone());
                    if was_held || is_missed {
                        removed.push(name.to_string());
                    }
                }
                _ => {}
            }
        }
        if half != Half::Upserts {
            self.generation = snapshot.generation;
        }
        (resources, removed)
    }

    /// What was asked for by name, under the name to answer with; without a wildcard also the node's own workloads.
    /// Whoever asks for a service gets the workloads behind it too.
    fn demanded<'a>(&self, kind: Kind, node: &str, snapshot: &'a Snapshot) -> BTreeMap<Arc<str>, &'a Arc<Entry>> {
        let mut demanded = BTreeMap::new();
        if kind == Kind::Address && !self.is_wildcard {
            demanded.extend(snapshot.on_node(node).map(|entry| (entry.name.clone(), entry)));
        }
        for name in &self.names {
            let own = snapshot.entry(kind, name);
            let aliased = snapshot.with_address(name).filter(|_| kind == Kind::Address && own.is_none());
            for (index, entry) in own.into_iter().chain(aliased).enumerate() {
                let answer = if index == 0 { name } else { &entry.name };
                demanded.insert(answer.clone(), entry);
                demanded.extend(snapshot.behind(&entry.name).map(|workload| (workload.name.clone(), workload)));
            }
        }
        demanded
    }
}

fn resource(name: &str, kind: Kind, entry: &Entry) -> Resource {
    Resource {
        version: entry.version.to_string(),
        resource: Some(prost_types::Any { type_url: kind.url().to_owned(), value: entry.bytes.to_vec() }),
        name: name.to_owned(),
    }
}
