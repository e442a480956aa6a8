//! One resource type on the stream, as the protocol sees it: what is held in which version, what to say first on a new
//! stream, how an answer is acknowledged. Pure; the stream is `exchange`'s.
//!
//! Source: Envoy's xDS protocol, "Incremental xDS".

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use mesh_api::proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    rpc,
};

use crate::view::Refusal;

use super::{TypeStatus, held::Held};

/// `INVALID_ARGUMENT` of google.rpc.Code: what a refused resource is answered with.
const INVALID_ARGUMENT: i32 = 3;
/// A nack names at most this many resources; the rest is counted.
const NAMED_REFUSALS: usize = 10;
/// How long a name that was asked for is kept after the last question.
pub(super) const ASKED_FOR: Duration = Duration::from_secs(300);
/// Names that are kept; of more the oldest go.
pub(super) const MOST_ASKED: usize = 4096;

/// The client's side of one resource type.
#[derive(Debug)]
pub struct Subscription {
    type_url: &'static str,
    /// Each resource that is held; a refused one is not in here, so it is sent again after a reconnect.
    held: Held,
    /// Names asked for one by one, and when last. They are aliases (`network/IP`) of resources that have a name of their own,
    /// so their versions are nothing to resume from: a new stream asks for them anew.
    asked: HashMap<String, Instant>,
    status: TypeStatus,
}

impl Subscription {
    /// Nothing is held yet.
    pub fn new(type_url: &'static str) -> Self {
        let status = TypeStatus { type_url, ..TypeStatus::default() };
        Self { type_url, held: Held::default(), asked: HashMap::new(), status }
    }

    /// What operators see.
    pub fn status(&self) -> TypeStatus {
        TypeStatus { resources: self.held.len(), hash: self.held.hash(), ..self.status.clone() }
    }

    /// Whether the first complete state has come, on this stream or an earlier one.
    pub fn is_complete(&self) -> bool {
        self.status.is_complete
    }

    /// The first requests of a stream: everything, and what is already held, so that only changes are sent; then the names
    /// that were asked for one by one.
    pub fn open(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let all = DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["*".into()],
            initial_resource_versions: self.held.versions().clone().into_iter().collect(),
            ..self.request()
        };
        let names: Vec<String> = self.asked.keys().cloned().collect();
        let again = DeltaDiscoveryRequest { resource_names_subscribe: names, ..self.request() };
        [all, again].into_iter().filter(|request| !request.resource_names_subscribe.is_empty()).collect()
    }

    /// Takes over what an earlier run held. What it had refused has no version: control sends it again, or its removal.
    pub fn resume(&mut self, held: &DeltaDiscoveryResponse) {
        self.held = Held::default();
        held.resources.iter().for_each(|resource| self.held.insert(&resource.name, &resource.version));
        self.status.is_complete = true;
    }

    /// Asks for one resource by name.
    pub fn ask(&mut self, name: String, now: Instant) -> DeltaDiscoveryRequest {
        self.asked.insert(name.clone(), now);
        DeltaDiscoveryRequest { resource_names_subscribe: vec![name], ..self.request() }
    }

    /// Whether a resource is to be taken: everything is, but for the answer to a question that is not asked any more.
    pub fn takes(&self, name: &str) -> bool {
        !is_alias(name) || self.asked.contains_key(name)
    }

    /// Whether there are so many names that some have to go now.
    pub fn is_crowded(&self) -> bool {
        self.asked.len() >= 2 * MOST_ASKED
    }

    /// The names that nobody asked for in a long time, or that are too many; they are not asked for any more.
    pub fn expire(&mut self, now: Instant) -> Vec<String> {
        let mut by_age: Vec<(Instant, String)> =
            self.asked.iter().map(|(name, asked)| (*asked, name.clone())).collect();
        by_age.sort_unstable();
        let surplus = by_age.len().saturating_sub(MOST_ASKED);
        let is_over =
            |index: usize, asked: Instant| index < surplus || now.saturating_duration_since(asked) >= ASKED_FOR;
        let over = by_age.into_iter().enumerate().filter(|(index, (asked, _))| is_over(*index, *asked));
        let names: Vec<String> = over.map(|(_, (_, name))| name).collect();
        for name in &names {
            self.asked.remove(name);
        }
        names
    }

    /// Tells that names are not asked for any more.
    pub fn release(&self, names: Vec<String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { resource_names_unsubscribe: names, ..self.request() }
    }

    fn request(&self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: self.type_url.into(), ..DeltaDiscoveryRequest::default() }
    }

    /// Takes note of an answer of which `refused` was not taken; gives the ack or nack.
    pub fn settle(&mut self, answer: &DeltaDiscoveryResponse, refused: &[Refusal]) -> DeltaDiscoveryRequest {
        let refused_names: HashSet<&str> = refused.iter().map(|refusal| refusal.name.as_str()).collect();
        for resource in &answer.resources {
            if !refused_names.contains(resource.name.as_str()) && !is_alias(&resource.name) {
                self.held.insert(&resource.name, &resource.version);
            }
        }
        for name in &answer.removed_resources {
            self.held.remove(name);
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

/// The name under which an address is asked for: `network/IP`, on the one network there is.
pub(super) fn alias(address: IpAddr) -> String {
    format!("/{}", address.to_canonical())
}

/// Whether a resource's name is that of a question, see [`alias`].
pub(crate) fn is_alias(name: &str) -> bool {
    name.strip_prefix('/').is_some_and(|address| address.parse::<IpAddr>().is_ok())
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
        assert!(subscription.open()[0].initial_resource_versions.is_empty());
        assert!(!subscription.is_complete());
        subscription.settle(&answer("1", &[("a", "v1"), ("b", "v1")], &[]), &[]);
        subscription.settle(&answer("2", &[("a", "v2")], &["b"]), &[]);
        let [open] = <[_; 1]>::try_from(subscription.open()).unwrap();
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
        let versions = subscription.open().remove(0).initial_resource_versions;
        assert_eq!((versions["a"].as_str(), versions["c"].as_str()), ("v1", "v1"));
        assert_eq!(subscription.status().nacks, 1);
    }

    #[test]
    fn an_alias_is_nothing_to_resume_from_and_is_asked_for_anew() {
        let mut subscription = Subscription::new(ADDRESS_TYPE);
        let now = Instant::now();
        assert_eq!(subscription.ask("/10.0.0.1".into(), now).resource_names_subscribe, ["/10.0.0.1"]);
        subscription.settle(&answer("1", &[("/10.0.0.1", "v1"), ("a", "v1")], &[]), &[]);
        let [all, again] = <[_; 2]>::try_from(subscription.open()).unwrap();
        assert_eq!(all.initial_resource_versions.into_keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(again.resource_names_subscribe, ["/10.0.0.1"]);
        assert_eq!(subscription.expire(now + ASKED_FOR), ["/10.0.0.1"]);
        assert_eq!(subscription.open().len(), 1);
    }

    #[test]
    fn names_that_nobody_asks_for_any_more_go_and_of_too_many_the_oldest() {
        let mut subscription = Subscription::new(ADDRESS_TYPE);
        let start = Instant::now();
        let second = Duration::from_secs(1);
        subscription.ask("/10.0.0.1".into(), start);
        subscription.ask("/10.0.0.2".into(), start + second);
        subscription.ask("/10.0.0.1".into(), start + 2 * second);
        assert!(subscription.takes("/10.0.0.2") && subscription.takes("Kubernetes//Pod/default/a"));
        assert_eq!(subscription.expire(start + second), [""; 0]);
        assert_eq!(subscription.expire(start + second + ASKED_FOR), ["/10.0.0.2"]);
        assert!(!subscription.takes("/10.0.0.2"), "an answer that comes late");
        for number in 0..MOST_ASKED as u32 + 1 {
            subscription.ask(alias(std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into()), start + 3 * second);
        }
        let over = subscription.expire(start + 3 * second);
        assert_eq!((over.len(), over[0].as_str()), (2, "/10.0.0.1"));
    }

    #[test]
    fn a_nack_stays_short() {
        let refused: Vec<_> =
            (0..100).map(|number| Refusal { name: format!("{number:03}"), reason: "bad".into() }).collect();
        let text = describe(&refused);
        assert!(text.ends_with("009: bad; and 90 more"), "{text}");
    }
}
