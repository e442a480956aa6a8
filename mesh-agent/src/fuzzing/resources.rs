//! What the control daemon tells: from the bytes of its answers to the View, and what is decided by that View.

use std::time::UNIX_EPOCH;

use mesh_api::{
    AUTHORIZATION_TYPE, Identity,
    proto::{
        discovery::{DeltaDiscoveryResponse, Resource},
        security::{Authorization, Scope},
        workload as wire,
    },
};
use mesh_common::abi::PolicyValue;
use prost::Message;

use super::records::pods;
use crate::{
    cache::{self, Contents},
    control::State,
    kernel::look_up,
    path::{Source, explain, judge},
    steer::{Classes, compile},
    view::{Store, View, fixtures},
};

/// Sources and destinations that are asked about, of each kind.
const ASKED: usize = 4;
/// Slots for the endpoints of services.
const SLOTS: usize = 256;
const PORTS: [u16; 4] = [1, 80, 5432, 65535];

/// Answers of the stream, each behind its length. Good when there was one at least and none was refused in part.
pub fn resources(mut bytes: &[u8]) -> bool {
    let mut state = State::new();
    let mut are_good = !bytes.is_empty();
    while !bytes.is_empty() {
        let Ok(answer) = DeltaDiscoveryResponse::decode_length_delimited(&mut bytes) else {
            are_good = false;
            break;
        };
        let reply = state.receive(answer.clone());
        are_good &= reply.as_ref().is_some_and(|reply| reply.error_detail.is_none());
        assert!(reply.is_none_or(|reply| reply.response_nonce == answer.nonce));
        if answer.type_url == AUTHORIZATION_TYPE {
            answer.resources.iter().for_each(a_refused_policy_denies);
        }
    }
    look_at(&mut state);
    are_good
}

/// The message in the file of the last View; under a checksum of its own, because no fuzzer finds one. Good when the agent would
/// start from it.
pub fn cached_view(bytes: &[u8]) -> bool {
    assert!(cache::decode(bytes).is_err() || bytes.starts_with(b"MESHVIEW"));
    let Ok(contents) = Contents::decode(bytes) else { return false };
    let mut file = cache::encode(&contents);
    let read = cache::decode(&file);
    *file.last_mut().expect("it has a head") ^= 1;
    assert!(cache::decode(&file).is_err(), "a damaged file was believed");
    let Ok(read) = read else { return false };
    assert_eq!(read, contents);
    let mut state = State::new();
    let is_restored = state.restore(&contents).is_ok() && contents.saved() >= UNIX_EPOCH;
    look_at(&mut state);
    is_restored
}

fn look_at(state: &mut State) {
    let (view, _) = state.publish();
    the_kernel_allows_no_more_than_the_judge(&view);
    everything_can_be_explained(&view);
}

/// Told of nothing but this policy, a workload that it selects lets nobody in when it cannot be read. Of one that does not say
/// whom it selects that is its whole namespace.
fn a_refused_policy_denies(resource: &Resource) {
    let mut state = State::new();
    let answer = DeltaDiscoveryResponse {
        type_url: AUTHORIZATION_TYPE.into(),
        resources: vec![resource.clone()],
        ..DeltaDiscoveryResponse::default()
    };
    let is_refused = state.receive(answer).is_none_or(|reply| reply.error_detail.is_some());
    // A name of another shape says nothing of a namespace.
    let named = resource.name.split_once('/').filter(|(_, name)| is_refused && !name.is_empty() && !name.contains('/'));
    let Some((namespace, _)) = named else { return };
    let message = resource.resource.as_ref().and_then(|any| Authorization::decode(any.value.as_slice()).ok());
    let is_selector = |message: &Authorization| message.scope == Scope::WorkloadSelector as i32;
    if message.as_ref().is_some_and(|message| message.dry_run) {
        return;
    }
    let named = wire::Workload {
        namespace: namespace.into(),
        authorization_policies: message
            .iter()
            .filter(|message| is_selector(message))
            .map(|_| resource.name.clone())
            .collect(),
        ..fixtures::pod("db", &["10.0.0.2"])
    };
    let mut workloads = Store::default();
    if !workloads.apply_addresses(&[fixtures::named_workload(named)], &[]).is_empty() {
        // The policy's name is none that a workload could have.
        return;
    }
    let named = workloads.publish();
    let workload = named.workloads().next().expect("it was taken");
    let (view, _) = state.publish();
    let decision = judge(&view, &source("web"), workload, workload.addresses[0], 5432);
    assert!(!decision.verdict.is_allowed(), "{resource:?} was refused and lets {decision:?}");
}

fn source(name: &str) -> Source {
    let identity = Identity::new("cluster.local", "default", name).expect("a good name");
    Source { identity: Some(identity), address: [10, 0, 0, 1].into() }
}

/// Between the pods of the node.
fn the_kernel_allows_no_more_than_the_judge(view: &View) {
    let compiled = compile(view, pods(), &mut Classes::after(0), SLOTS);
    for from in &compiled.members {
        for to in &compiled.members {
            for (port, address) in PORTS.into_iter().flat_map(|port| to.pod.addresses.iter().map(move |to| (port, *to)))
            {
                if look_up(&compiled.tables.policy, from.class, to.class, port) == Some(PolicyValue::Direct) {
                    let source =
                        Source { identity: Some(from.workload.identity.clone()), address: from.pod.addresses[0] };
                    let decision = judge(view, &source, &to.workload, address, port);
                    assert!(
                        decision.verdict.is_allowed(),
                        "the kernel lets {source:?} to {address}:{port}: {decision:?}"
                    );
                }
            }
        }
    }
}

fn everything_can_be_explained(view: &View) {
    let name = |workload: &crate::view::Workload| format!("{}/{}", workload.namespace, workload.name);
    let workloads: Vec<String> = view.workloads().take(ASKED).map(|workload| name(workload)).collect();
    let services = view.services().take(ASKED).map(|service| service.name.hostname.to_string());
    let destinations: Vec<String> = workloads.iter().cloned().chain(services).chain(["10.0.0.2".into()]).collect();
    for (source, destination) in workloads.iter().flat_map(|from| destinations.iter().map(move |to| (from, to))) {
        let answer = explain(view, pods(), source, destination, 5432);
        assert!(["allowed", "denied", "refused"].contains(&answer.verdict));
    }
}
