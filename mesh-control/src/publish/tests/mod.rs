//! Sessions against a model of a client: whatever is published, asked, forgotten, refused or cut, the client ends up
//! with exactly what it is entitled to, and is told nothing twice.

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    proto::{
        discovery::DeltaDiscoveryRequest,
        security::Authorization,
        workload::{NetworkAddress, PortList, Service, Workload},
    },
};
use proptest::prelude::*;

mod client;

use client::{Client, request};

use super::{
    Publisher, Snapshot,
    session::{Session, SessionError},
    snapshot::{Kind, Version},
};
use crate::compile::Resources;

const NODES: [&str; 2] = ["n1", "n2"];
const NAMES: [&str; 6] = ["/10.0.0.1", "/10.0.0.3", "/10.9.0.1", "s/a", "w1", "absent"];

/// A small mesh: each workload by the variant it is in (0 is absent), each service there or not, each policy by variant.
#[derive(Clone, Debug)]
struct World {
    workloads: [u8; 4],
    services: [bool; 2],
    policies: [u8; 2],
}

impl World {
    fn resources(&self) -> Resources {
        let mut resources = Resources::default();
        for (index, variant) in self.workloads.iter().enumerate().filter(|(_, variant)| **variant > 0) {
            let workload = Workload {
                uid: format!("w{index}"),
                addresses: vec![vec![10, 0, 0, index as u8]],
                node: NODES[index % 2].to_owned(),
                service_account: variant.to_string(),
                services: [(format!("s/{}", ["a", "b"][index / 2]), PortList::default())].into(),
                ..Workload::default()
            };
            resources.workloads.insert(workload.uid.clone(), workload);
        }
        for (index, _) in self.services.iter().enumerate().filter(|(_, is_there)| **is_there) {
            let address = NetworkAddress { address: vec![10, 9, 0, index as u8 + 1], ..NetworkAddress::default() };
            let service = Service { addresses: vec![address], ..Service::default() };
            resources.services.insert(format!("s/{}", ["a", "b"][index]), service);
        }
        for (index, variant) in self.policies.iter().enumerate().filter(|(_, variant)| **variant > 0) {
            let policy = Authorization { name: format!("p{index}"), dry_run: *variant > 1, ..Authorization::default() };
            resources.authorizations.insert(format!("p{index}"), policy);
        }
        resources
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(World),
    Open { kind: Kind, wildcard: bool },
    Subscribe(usize),
    Unsubscribe(usize),
    AnswerOne { is_refusal: bool },
    Reconnect,
}

fn world() -> impl Strategy<Value = World> {
    (prop::array::uniform4(0..3_u8), prop::array::uniform2(any::<bool>()), prop::array::uniform2(0..3_u8))
        .prop_map(|(workloads, services, policies)| World { workloads, services, policies })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => world().prop_map(Step::Publish),
        2 => (prop::sample::select(vec![Kind::Address, Kind::Authorization]), any::<bool>()).prop_map(|(kind, wildcard)| Step::Open { kind, wildcard }),
        2 => (0..NAMES.len()).prop_map(Step::Subscribe),
        1 => (0..NAMES.len()).prop_map(Step::Unsubscribe),
        3 => prop::bool::weighted(0.2).prop_map(|is_refusal| Step::AnswerOne { is_refusal }),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_client_ends_up_with_what_it_is_entitled_to(steps in prop::collection::vec(step(), 1..40)) {
        let publisher = Publisher::new();
        let state = publisher.subscribe();
        let latest = || state.borrow().clone();
        let mut client = Client::new();
        for step in steps {
            match step {
                Step::Publish(world) => {
                    publisher.publish(&world.resources());
                    let responses = client.session.advance(&latest());
                    client.believe(responses);
                }
                Step::Open { kind, wildcard } => client.open(kind, wildcard, &latest()),
                Step::Subscribe(name) => client.subscribe(NAMES[name], &latest()),
                Step::Unsubscribe(name) => client.unsubscribe(NAMES[name], &latest()),
                Step::AnswerOne { is_refusal } => client.answer_one(is_refusal, &latest()),
                Step::Reconnect => client.reconnect(&latest()),
            }
        }
        client.settle(&latest());
        for kind in [Kind::Authorization, Kind::Address] {
            let held = client.held.remove(&kind).unwrap_or_default();
            prop_assert_eq!(held, client.entitled(kind, &latest()), "{:?}", kind);
        }
        for name in client.names.iter().filter(|_| client.open.contains_key(&Kind::Address)) {
            let is_there = client.entitled(Kind::Address, &latest()).contains_key(*name);
            prop_assert_eq!(client.missing.contains(*name), !is_there, "{}", name);
        }
    }
}

const FULL: World = World { workloads: [1; 4], services: [true; 2], policies: [1, 1] };

#[test]
fn an_equal_state_is_no_new_state() {
    let publisher = Publisher::new();
    assert_eq!(publisher.publish(&FULL.resources()), 1);
    assert_eq!(publisher.publish(&FULL.resources()), 1);
    assert_eq!(publisher.publish(&World { policies: [2, 1], ..FULL }.resources()), 2);
}

#[test]
fn versions_are_of_the_content_and_the_same_in_every_process() {
    let (one, other) = (Publisher::new(), Publisher::new());
    other.publish(&World { workloads: [0, 2, 1, 0], ..FULL }.resources());
    one.publish(&FULL.resources());
    other.publish(&FULL.resources());
    let versions = |publisher: &Publisher| {
        let state = publisher.subscribe().borrow().clone();
        state.entries(Kind::Address).values().map(|entry| entry.version.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(versions(&one), versions(&other));
    assert!(
        versions(&one)
            .iter()
            .all(|text| Version::parse(text).map(|version| version.to_string()).as_ref() == Some(text))
    );
    assert_eq!([Version::parse(""), Version::parse("1"), Version::parse(&"x".repeat(32))], [None; 3]);
}

#[test]
fn policies_come_before_what_they_restrict_and_go_after_it() {
    let publisher = Publisher::new();
    let latest = || publisher.subscribe().borrow().clone();
    publisher.publish(&World { workloads: [1, 0, 0, 0], policies: [1, 0], ..FULL }.resources());
    let mut client = Client::new();
    client.open(Kind::Authorization, true, &latest());
    client.open(Kind::Address, true, &latest());
    client.settle(&latest());

    publisher.publish(&World { workloads: [0, 1, 0, 0], policies: [0, 1], ..FULL }.resources());
    let told = client.session.advance(&latest());
    let order: Vec<_> = told
        .iter()
        .map(|response| (response.type_url.as_str(), response.resources.len(), response.removed_resources.len()))
        .collect();
    assert_eq!(order, [(AUTHORIZATION_TYPE, 1, 0), (ADDRESS_TYPE, 1, 1), (AUTHORIZATION_TYPE, 0, 1)]);
}

#[test]
fn who_does_not_answer_gets_the_latest_state_and_no_queue() {
    let publisher = Publisher::new();
    let latest = || publisher.subscribe().borrow().clone();
    publisher.publish(&FULL.resources());
    let mut client = Client::new();
    client.open(Kind::Address, true, &latest());
    for variant in [2, 1, 2] {
        publisher.publish(&World { workloads: [variant, 1, 1, 1], ..FULL }.resources());
        assert_eq!(client.session.advance(&latest()), [], "the first answer is awaited");
    }
    client.answer_one(false, &latest());
    let [news] = client.unanswered.as_slice() else { panic!("one response") };
    assert_eq!(news.resources.len(), 1);
}

#[test]
fn a_subscriber_far_behind_is_compared_with_the_whole_state() {
    let publisher = Publisher::new();
    let latest = || publisher.subscribe().borrow().clone();
    publisher.publish(&FULL.resources());
    let mut client = Client::new();
    client.open(Kind::Address, true, &latest());
    publisher.publish(&World { services: [true, false], ..FULL }.resources());
    for round in 0..600_u16 {
        let variant = (round % 2) as u8 + 1;
        publisher.publish(&World { services: [true, false], workloads: [1, variant, 1, 1], ..FULL }.resources());
    }
    client.settle(&latest());
    assert_eq!(client.held[&Kind::Address], client.entitled(Kind::Address, &latest()));
}

#[test]
fn asking_without_end_ends_the_stream() {
    let snapshot = Snapshot::default();
    let ask = |names: Vec<String>| DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(Kind::Address) };
    let mut greedy = Session::new(NODES[0]);
    let names = (0..100_001).map(|number| number.to_string()).collect();
    assert_eq!(greedy.request(ask(names), &snapshot).err(), Some(SessionError::TooManyNames));
    let mut silent = Session::new(NODES[0]);
    let end = (0..20_000).find_map(|_| silent.request(ask(vec!["x".to_owned()]), &snapshot).err());
    assert_eq!(end, Some(SessionError::TooManyAwaited));
}
