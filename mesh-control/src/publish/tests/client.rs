//! A model of a client: believes everything it is told, answers when asked to, and knows what it is entitled to.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    rpc,
};

use super::NODES;
use crate::publish::{Snapshot, session::Session, snapshot::Kind};

/// A subscriber that believes everything it is told, and its stream.
pub struct Client {
    pub session: Session,
    pub open: BTreeMap<Kind, bool>,
    pub names: BTreeSet<&'static str>,
    pub held: BTreeMap<Kind, BTreeMap<String, String>>,
    pub missing: BTreeSet<String>,
    pub unanswered: Vec<DeltaDiscoveryResponse>,
}

impl Client {
    pub fn new() -> Client {
        Client {
            session: Session::new(NODES[0]),
            open: BTreeMap::new(),
            names: BTreeSet::new(),
            held: BTreeMap::new(),
            missing: BTreeSet::new(),
            unanswered: Vec::new(),
        }
    }

    pub fn open(&mut self, kind: Kind, wildcard: bool, snapshot: &Snapshot) {
        if self.open.contains_key(&kind) {
            return;
        }
        self.open.insert(kind, wildcard);
        let names =
            if kind == Kind::Address { self.names.iter().map(ToString::to_string).collect() } else { Vec::new() };
        let stars = vec!["*".to_owned()];
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: stars.iter().cloned().chain(names).collect(),
            resource_names_unsubscribe: if wildcard { Vec::new() } else { stars },
            initial_resource_versions: self.held.get(&kind).cloned().unwrap_or_default().into_iter().collect(),
            ..request(kind)
        };
        let told = self.send(request, snapshot);
        assert!(told.contains(&kind), "the first request of a type is answered");
    }

    pub fn subscribe(&mut self, name: &'static str, snapshot: &Snapshot) {
        if !self.open.contains_key(&Kind::Address) {
            return;
        }
        self.names.insert(name);
        let held = self.held.entry(Kind::Address).or_default();
        held.remove(name);
        self.missing.remove(name);
        let subscribe = vec![name.to_owned()];
        self.send(DeltaDiscoveryRequest { resource_names_subscribe: subscribe, ..request(Kind::Address) }, snapshot);
        let is_told = self.held[&Kind::Address].contains_key(name) || self.missing.contains(name);
        assert!(is_told, "{name} is answered at once, found or not");
    }

    pub fn unsubscribe(&mut self, name: &'static str, snapshot: &Snapshot) {
        if !self.names.remove(name) {
            return;
        }
        // What a wildcard brings stays; what came for this name is forgotten.
        if !self.open[&Kind::Address] || name.starts_with('/') {
            self.held.entry(Kind::Address).or_default().remove(name);
        }
        self.missing.remove(name);
        let unsubscribe = vec![name.to_owned()];
        self.send(
            DeltaDiscoveryRequest { resource_names_unsubscribe: unsubscribe, ..request(Kind::Address) },
            snapshot,
        );
    }

    fn send(&mut self, request: DeltaDiscoveryRequest, snapshot: &Snapshot) -> Vec<Kind> {
        let (responses, _) = self.session.request(request, snapshot).expect("few names");
        self.believe(responses)
    }

    pub fn believe(&mut self, responses: Vec<DeltaDiscoveryResponse>) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for response in responses {
            let kind = Kind::of_url(&response.type_url).expect("a type of ours");
            let held = self.held.entry(kind).or_default();
            for resource in &response.resources {
                let old = held.insert(resource.name.clone(), resource.version.clone());
                assert_ne!(old.as_ref(), Some(&resource.version), "{} was told twice", resource.name);
                self.missing.remove(&resource.name);
            }
            for name in &response.removed_resources {
                let was_held = held.remove(name).is_some();
                let is_news = self.names.contains(name.as_str()) && self.missing.insert(name.clone());
                assert!(was_held || is_news, "{name} went twice");
            }
            kinds.push(kind);
            self.unanswered.push(response);
        }
        kinds
    }

    pub fn answer_one(&mut self, is_refusal: bool, snapshot: &Snapshot) {
        let Some(response) = self.unanswered.pop() else { return };
        let status = rpc::Status { code: 3, message: "no".to_owned(), details: Vec::new() };
        let kind = Kind::of_url(&response.type_url).expect("a type of ours");
        let error_detail = is_refusal.then_some(status);
        let answer = DeltaDiscoveryRequest { response_nonce: response.nonce, error_detail, ..request(kind) };
        let (responses, nack) = self.session.request(answer, snapshot).expect("few names");
        assert_eq!(nack.is_some(), is_refusal);
        self.believe(responses);
    }

    /// Answers everything, until there is nothing more to answer.
    pub fn settle(&mut self, snapshot: &Snapshot) {
        let responses = self.session.advance(snapshot);
        self.believe(responses);
        while !self.unanswered.is_empty() {
            self.answer_one(false, snapshot);
        }
        assert_eq!(self.session.advance(snapshot), []);
    }

    pub fn reconnect(&mut self, snapshot: &Snapshot) {
        self.session = Session::new(NODES[0]);
        self.unanswered.clear();
        self.missing.clear();
        for (kind, wildcard) in std::mem::take(&mut self.open) {
            self.open(kind, wildcard, snapshot);
        }
    }

    /// What it should hold, found the slow way.
    pub fn entitled(&self, kind: Kind, snapshot: &Snapshot) -> BTreeMap<String, String> {
        let mut entitled = BTreeMap::new();
        let Some(wildcard) = self.open.get(&kind) else { return entitled };
        let all = snapshot.entries(kind);
        let mut add = |name: &str, found: &str| {
            all.get(found).map(|entry| entitled.insert(name.to_owned(), entry.version.to_string())).is_some()
        };
        if *wildcard {
            all.keys().for_each(|name| {
                let _ = add(name, name);
            });
        }
        if kind == Kind::Authorization {
            return entitled;
        }
        if !wildcard {
            ["w0", "w2"].iter().for_each(|own| {
                let _ = add(own, own);
            });
        }
        for name in &self.names {
            let found = match *name {
                "/10.0.0.1" => "w1",
                "/10.0.0.3" => "w3",
                "/10.9.0.1" => "s/a",
                other => other,
            };
            if add(name, found) && found == "s/a" {
                ["w0", "w1"].iter().for_each(|behind| {
                    let _ = add(behind, behind);
                });
            }
        }
        entitled
    }
}

/// A request that asks nothing.
pub fn request(kind: Kind) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: kind.url().to_owned(), ..DeltaDiscoveryRequest::default() }
}
