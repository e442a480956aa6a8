//! One resource type on the stream, as the protocol sees it: what is held in which version, what to say first on a new
//! stream, how an answer is acknowledged. Pure; the stream is `exchange`'s.
//!
//! Source: Envoy's xDS protocol, "Incremental xDS".

use std::collections::{BTreeMap, HashMap, HashSet};

use mesh_api::proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    rpc,
};

use crate::view::Refusal;

use super::TypeStatus;

/// `INVALID_ARGUMENT` of google.rpc.Code: what a refused resource is answered with.
const INVALID_ARGUMENT: i32 = 3;
/// A nack names at most this many resources; the rest is counted.
const NAMED_REFUSALS: usize = 10;

/// The client's side of one resource type.
#[derive(Debug)]
pub struct Subscription {
    type_url: &'static str,
    /// Version of each resource that is held; a refused one is not in here, so it is sent again after a reconnect.
    versions: HashMap<String, String>,
    /// Names asked for one by one. They are aliases (`network/IP`) of resources that have a name of their own, so their
    /// versions are nothing to resume from.
    asked: HashSet<String>,
    status: TypeStatus,
}

impl Subscription {
    /// Nothing is held yet.
    pub fn new(type_url: &'static str) -> Self {
        let status = TypeStatus { type_url, ..TypeStatus::default() };
        Self { type_url, versions: HashMap::new(), asked: HashSet::new(), status }
    }

    /// What operators see.
    pub fn status(&self) -> TypeStatus {
        TypeStatus { resources: self.versions.len(), ..self.status.clone() }
    }

    /// Whether the first complete state has come, on this stream or an earlier one.
    pub fn is_complete(&self) -> bool {
        self.status.is_complete
    }

    /// The first request of a stream: everything, and what is already held, so that only changes are sent.
    pub fn open(&mut self) -> DeltaDiscoveryRequest {
        self.asked.clear();
        DeltaDiscoveryRequest {
            type_url: self.type_url.into(),
            resource_names_subscribe: vec!["*".into()],
            initial_resource_versions: self.versions.clone().into_iter().collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Asks for one resource by name.
    pub fn ask(&mut self, name: String) -> DeltaDiscoveryRequest {
        self.asked.insert(name.clone());
        DeltaDiscoveryRequest {
            type_url: self.type_url.into(),
            resource_names_subscribe: vec![name],
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes note of an answer of which `refused` was not taken; gives the ack or nack.
    pub fn settle(&mut self, answer: &DeltaDiscoveryResponse, refused: &[Refusal]) -> DeltaDiscoveryRequest {
        let refused_names: HashSet<&str> = refused.iter().map(|refusal| refusal.name.as_str()).collect();
        for resource in &answer.resources {
            if !refused_names.contains(resource.name.as_str()) && !self.asked.contains(&resource.name) {
                self.versions.insert(resource.name.clone(), resource.version.clone());
            }
        }
        for name in &answer.removed_resources {
            self.versions.remove(name);
        }
        self.status.is_complete = true;
        self.status.responses += 1;
        self.status.nonce.clone_from(&answer.nonce);
        self.status.nack = describe(refused);
        self.status.nacks += u64::from(!refused.is_empty());
        DeltaDiscoveryRequest {
            type_url: self.type_url.into(),
            response_nonce: answer.nonce.clone(),
            error_detail: (!refused.is_empty()).then(|| rpc::Status {
                code: INVALID_ARGUMENT,
                message: self.status.nack.clone(),
                ..rpc::Status::default()
            }),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

fn describe(refused: &[Refusal]) -> String {
    let by_name: BTreeMap<&str, &str> = refused.iter().map(|r| (r.name.as_str(), r.reason.as_str())).collect();
    let mut parts: Vec<String> =
        by_name.iter().take(NAMED_REFUSALS).map(|(name, reason)| format!("{name}: {reason}")).collect();
    if by_name.len() > NAMED_REFUSALS {
        parts.push(format!("and {} more", by_name.len() - NAMED_REFUSALS));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use mesh_api::{ADDRESS_TYPE, proto::discovery::Resource};

    use super::*;

    fn answer(nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            nonce: nonce.into(),
            resources: resources
                .iter()
                .map(|(name, version)| Resource { name: (*name).into(), version: (*version).into(), resource: None })
                .collect(),
            removed_resources: removed.iter().map(|name| (*name).into()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    #[test]
    fn a_new_stream_says_what_is_held() {
        let mut subscription = Subscription::new(ADDRESS_TYPE);
        assert!(subscription.open().initial_resource_versions.is_empty());
        assert!(!subscription.is_complete());
        subscription.settle(&answer("1", &[("a", "v1"), ("b", "v1")], &[]), &[]);
        subscription.settle(&answer("2", &[("a", "v2")], &["b"]), &[]);
        let open = subscription.open();
        assert!(subscription.is_complete());
        assert_eq!(open.resource_names_subscribe, ["*"]);
        assert_eq!(open.initial_resource_versions.into_iter().collect::<Vec<_>>(), [("a".into(), "v2".into())]);
    }

    #[test]
    fn a_refused_resource_keeps_its_last_good_version_and_is_named() {
        let mut subscription = Subscription::new(ADDRESS_TYPE);
        let ack = subscription.settle(&answer("1", &[("a", "v1")], &[]), &[]);
        assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("1", None));
        let refused = [Refusal { name: "a".into(), reason: "no address".into() }];
        let nack = subscription.settle(&answer("2", &[("a", "v2"), ("c", "v1")], &[]), &refused);
        assert_eq!(nack.response_nonce, "2");
        assert_eq!(nack.error_detail.unwrap().message, "a: no address");
        let versions = subscription.open().initial_resource_versions;
        assert_eq!((versions["a"].as_str(), versions["c"].as_str()), ("v1", "v1"));
        assert_eq!(subscription.status().nacks, 1);
    }

    #[test]
    fn an_alias_is_nothing_to_resume_from() {
        let mut subscription = Subscription::new(ADDRESS_TYPE);
        assert_eq!(subscription.ask("/10.0.0.1".into()).resource_names_subscribe, ["/10.0.0.1"]);
        subscription.settle(&answer("1", &[("/10.0.0.1", "v1"), ("a", "v1")], &[]), &[]);
        assert_eq!(subscription.open().initial_resource_versions.into_keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_nack_stays_short() {
        let refused: Vec<_> =
            (0..100).map(|number| Refusal { name: format!("{number:03}"), reason: "bad".into() }).collect();
        let text = describe(&refused);
        assert!(text.ends_with("009: bad; and 90 more"), "{text}");
    }
}
