//! What the kernel may decide alone, held against the path's own judge: for every pair of pods and every port.

use std::{net::SocketAddr, sync::Arc};

use mesh_api::proto::{
    mesh::MeshConfig,
    security::{self, Action, Authorization, Match},
    workload as wire,
};
use mesh_common::abi::PolicyValue;
use proptest::prelude::*;

use super::{Classes, Compiled, compile};
use crate::{
    enrol::{Pod, PodTable},
    kernel::look_up,
    path::{Source, judge},
    proving,
    view::{
        Store, View,
        fixtures::{behind, bytes, exact, named_policy, named_workload, pod, service},
    },
};

const PORTS: [u16; 6] = [1, 80, 81, 443, 5432, 65535];

/// Pods of this node: two of one account, of which one is selected by what the other is not.
const PODS: [(&str, &str); 4] = [("web-1", "10.1.0.1"), ("web-2", "10.1.0.2"), ("db", "10.1.0.3"), ("api", "10.1.0.4")];

fn workload(name: &str, address: &str) -> wire::Workload {
    let account = name.split('-').next().unwrap_or(name);
    wire::Workload { service_account: account.into(), ..pod(name, &[address]) }
}

fn enrolled() -> PodTable {
    let pods = PODS.iter().enumerate().map(|(number, (name, address))| {
        let account = name.split('-').next().unwrap_or(name);
        let known = proving::pod(number as u32 + 1, name, address.parse().unwrap());
        let known = Arc::into_inner(known).expect("nobody else has it yet");
        Arc::new(Pod { service_account: account.into(), ..known })
    });
    proving::table(&pods.collect::<Vec<_>>())
}

fn view(policies: Vec<(Authorization, u8)>, encrypts: bool) -> Arc<View> {
    let mut store = Store::default();
    let named: Vec<_> = policies.iter().map(|(policy, _)| named_policy(policy.clone())).collect();
    assert_eq!(store.apply_policies(&named, &[]), []);
    let workloads = PODS.iter().enumerate().map(|(number, (name, address))| {
        let mut known = workload(name, address);
        let selects = |mask: u8| mask & (1 << number) != 0;
        let selecting = policies
            .iter()
            .filter(|(policy, mask)| policy.scope == security::Scope::WorkloadSelector as i32 && selects(*mask));
        known.authorization_policies = selecting.map(|(policy, _)| format!("default/{}", policy.name)).collect();
        named_workload(known)
    });
    assert_eq!(store.apply_addresses(&workloads.collect::<Vec<_>>(), &[]), []);
    let mesh = MeshConfig {
        trust_domain: "cluster.local".into(),
        encrypt_same_node: encrypts,
        node_port_first: 30000,
        node_port_last: 32767,
        ..MeshConfig::default()
    };
    store.apply_mesh(&mesh).unwrap();
    store.publish()
}

fn compiled(view: &View) -> Compiled {
    compile(view, &enrolled(), &mut Classes::after(0), 1 << 16)
}

/// For every pair and port: the table's value and whether the judge allows.
fn verdicts(view: &View, compiled: &Compiled) -> Vec<(String, Option<PolicyValue>, bool)> {
    let mut verdicts = Vec::new();
    for source in &compiled.members {
        for destination in &compiled.members {
            for port in PORTS {
                let asking =
                    Source { identity: Some(source.workload.identity.clone()), address: source.pod.addresses[0] };
                let to = destination.pod.addresses[0];
                let is_allowed = judge(view, &asking, &destination.workload, to, port).verdict.is_allowed();
                let value = look_up(&compiled.tables.policy, source.class, destination.class, port);
                verdicts.push((format!("{} -> {}:{port}", source.pod.name, destination.pod.name), value, is_allowed));
            }
        }
    }
    verdicts
}

fn terms(with_addresses: bool) -> impl Strategy<Value = Match> {
    let principal = prop::sample::select(vec!["web", "db", "api"])
        .prop_map(|account| exact(&format!("cluster.local/ns/default/sa/{account}")));
    let port = prop::sample::select(vec![80_u32, 81, 443, 65535]);
    let range = (prop::sample::select(vec!["10.1.0.1", "10.1.0.3"]), 30_u32..=32);
    let range = range.prop_map(|(address, length)| security::Address { address: bytes(address), length });
    let many = 0..=2_usize;
    let addresses = if with_addresses { 0..=1_usize } else { 0..=0 };
    (
        prop::collection::vec(principal.clone(), many.clone()),
        prop::collection::vec(principal, 0..=1),
        prop::collection::vec(port.clone(), many),
        prop::collection::vec(port, 0..=1),
        prop::collection::vec(range.clone(), addresses.clone()),
        prop::collection::vec(range, addresses),
    )
        .prop_map(
            |(principals, not_principals, destination_ports, not_destination_ports, source_ips, destination_ips)| {
                Match {
                    principals,
                    not_principals,
                    destination_ports,
                    not_destination_ports,
                    source_ips,
                    destination_ips,
                    ..Match::default()
                }
            },
        )
}

fn policies(needs_agent: bool) -> impl Strategy<Value = Vec<(Authorization, u8)>> {
    let scope = prop::sample::select(vec![
        security::Scope::Global,
        security::Scope::Namespace,
        security::Scope::WorkloadSelector,
    ]);
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    let matches = prop::collection::vec(terms(needs_agent), 0..=2);
    let is_dry_run = prop::bool::weighted(if needs_agent { 0.2 } else { 0.0 });
    let policy = (scope, action, matches, is_dry_run, any::<u8>());
    prop::collection::vec(policy, 0..=3).prop_map(|drawn| {
        let named = drawn.into_iter().enumerate().map(|(number, (scope, action, matches, dry_run, mask))| {
            let policy = Authorization {
                name: format!("policy-{number}"),
                namespace: "default".into(),
                scope: scope as i32,
                action: action as i32,
                rules: vec![security::Rule { clauses: vec![security::Clause { matches }] }],
                dry_run,
                ..Authorization::default()
            };
            (policy, mask)
        });
        named.collect()
    })
}

proptest! {
    #[test]
    fn the_kernel_never_decides_otherwise_than_the_judge(policies in policies(true), encrypts in any::<bool>()) {
        let view = view(policies, encrypts);
        for (pair, value, is_allowed) in verdicts(&view, &compiled(&view)) {
            match value {
                Some(PolicyValue::Direct) => prop_assert!(is_allowed && !encrypts, "{pair} is direct"),
                Some(PolicyValue::Deny) => prop_assert!(!is_allowed, "{pair} is denied"),
                None => {}
            }
        }
    }

    #[test]
    fn what_identity_and_port_decide_is_left_to_the_kernel(policies in policies(false)) {
        let view = view(policies, false);
        for (pair, value, is_allowed) in verdicts(&view, &compiled(&view)) {
            let expected = if is_allowed { PolicyValue::Direct } else { PolicyValue::Deny };
            prop_assert_eq!(value, Some(expected), "{}", pair);
        }
    }
}

#[test]
fn a_policy_that_the_view_does_not_hold_denies() {
    let mut store = Store::default();
    let mut db = workload("db", "10.1.0.3");
    db.authorization_policies = vec!["default/unknown".into()];
    let workloads = [named_workload(db), named_workload(workload("api", "10.1.0.4"))];
    assert_eq!(store.apply_addresses(&workloads, &[]), []);
    let view = store.publish();
    let to_db = |(pair, value, _): (String, _, _)| pair.starts_with("api -> db").then_some(value);
    let values: Vec<_> = verdicts(&view, &compiled(&view)).into_iter().filter_map(to_db).collect();
    assert_eq!(values, [Some(PolicyValue::Deny); PORTS.len()]);
}

#[test]
fn a_class_number_never_gets_a_second_meaning() {
    let mut classes = Classes::after(7);
    let open = view(Vec::new(), false);
    let first = compile(&open, &enrolled(), &mut classes, 1 << 16);
    let numbers = |compiled: &Compiled| compiled.members.iter().map(|member| member.class).collect::<Vec<_>>();
    assert_eq!(numbers(&first)[0], numbers(&first)[1], "one identity, the same policies");
    assert!(numbers(&first).iter().all(|class| *class > 7));
    let selecting = Authorization {
        name: "only".into(),
        namespace: "default".into(),
        scope: security::Scope::WorkloadSelector as i32,
        ..Authorization::default()
    };
    let second = compile(&view(vec![(selecting, 0b0001)], false), &enrolled(), &mut classes, 1 << 16);
    assert_ne!(numbers(&second)[0], numbers(&second)[1], "one of the two is selected");
    assert!(!numbers(&first).contains(&numbers(&second)[0]));
}

fn slots(view: &View, address: &str) -> Option<Vec<String>> {
    let table = compile(view, &enrolled(), &mut Classes::after(0), 8).tables.services;
    let entry = table.get(&address.parse::<SocketAddr>().unwrap())?;
    assert_eq!(entry.agent_only, entry.slots.is_empty());
    (!entry.agent_only).then(|| entry.slots.iter().map(ToString::to_string).collect())
}

fn published(workloads: Vec<wire::Workload>, services: Vec<wire::Service>) -> Arc<View> {
    crate::view::fixtures::view(workloads, services, [])
}

#[test]
fn slots_are_the_ready_endpoints_by_weight() {
    let weighed = |name: &str, address: &str, weight: u32| wire::Workload {
        capacity: Some(weight),
        ..behind(workload(name, address), "db", 5432, 15432)
    };
    let sick = wire::Workload { status: wire::WorkloadStatus::Unhealthy as i32, ..weighed("sick", "10.1.0.9", 4) };
    let view = published(
        vec![weighed("web-1", "10.1.0.1", 4), weighed("db", "10.1.0.3", 2), sick],
        vec![service("db", &["10.96.0.1", "fd96::1"], &[5432])],
    );
    let mut found = slots(&view, "10.96.0.1:5432").unwrap();
    found.sort();
    assert_eq!(found, ["10.1.0.1:15432", "10.1.0.1:15432", "10.1.0.3:15432"]);
    assert_eq!(slots(&view, "[fd96::1]:5432"), None, "no endpoint has an address of the family");
    assert_eq!(slots(&view, "10.96.0.1:80"), None, "no such port");
}

#[test]
fn a_service_that_asks_for_more_than_weights_goes_to_the_agent() {
    let endpoint = || behind(workload("db", "10.1.0.3"), "db", 5432, 5432);
    let plain = || service("db", &["10.96.0.1"], &[5432]);
    let traffic = |affinity: u32, local: bool| {
        let message =
            mesh_api::proto::mesh::ServiceTraffic { client_ip_affinity_seconds: affinity, only_local_endpoints: local };
        let value = prost::Message::encode_to_vec(&message);
        let config =
            mesh_api::proto::wellknown::Any { type_url: "type.googleapis.com/mesh.v1.ServiceTraffic".into(), value };
        let extension = wire::Extension { name: mesh_api::SERVICE_TRAFFIC_EXTENSION.into(), config: Some(config) };
        wire::Service { extensions: vec![extension], ..plain() }
    };
    let zone = wire::LoadBalancing {
        routing_preference: vec![wire::load_balancing::Scope::Zone as i32],
        ..wire::LoadBalancing::default()
    };
    assert!(slots(&published(vec![endpoint()], vec![plain()]), "10.96.0.1:5432").is_some());
    let near = wire::Service { load_balancing: Some(zone), ..plain() };
    for (why, service) in [("affinity", traffic(600, false)), ("local", traffic(0, true)), ("locality", near)] {
        assert_eq!(slots(&published(vec![endpoint()], vec![service]), "10.96.0.1:5432"), None, "{why}");
    }
    let other = wire::Service { hostname: "other".into(), ..plain() };
    assert_eq!(slots(&published(vec![endpoint()], vec![plain(), other]), "10.96.0.1:5432"), None, "shared address");
    assert_eq!(slots(&published(vec![], vec![plain()]), "10.96.0.1:5432"), None, "no endpoint");
}

#[test]
fn services_beyond_the_kernels_room_go_to_the_agent() {
    let endpoint = |host: &str, number: u8| {
        let name = format!("{host}-{number}");
        behind(workload(&name, &format!("10.2.{}.{number}", host.len())), host, 80, 80)
    };
    let six = |host: &'static str| (0..6).map(move |number| endpoint(host, number));
    let services = vec![service("one", &["10.96.0.1"], &[80]), service("three", &["10.96.0.2"], &[80])];
    let view = published(six("one").chain(six("three")).collect(), services);
    assert_eq!(slots(&view, "10.96.0.1:80").map(|slots| slots.len()), Some(6));
    assert_eq!(slots(&view, "10.96.0.2:80"), None, "eight slots hold only one of them");
}

#[test]
fn members_are_named_by_the_view_and_no_other() {
    let pods = enrolled();
    let stranger = wire::Workload { service_account: "other".into(), ..workload("db", "10.1.0.3") };
    let view = published(vec![workload("web-1", "10.1.0.1"), stranger], vec![]);
    let compiled = compile(&view, &pods, &mut Classes::after(0), 8);
    let names: Vec<&str> = compiled.members.iter().map(|member| member.pod.name.as_str()).collect();
    assert_eq!(names, ["web-1"], "an address that the View gives to another account is pending");
}

#[test]
fn what_the_agent_refuses_as_unsupported_is_never_direct() {
    let waypoint = wire::Workload {
        waypoint: Some(wire::GatewayAddress::default()),
        service_account: "web".into(),
        ..workload("web-2", "10.1.0.2")
    };
    let view = published(vec![workload("web-1", "10.1.0.1"), waypoint, workload("api", "10.1.0.4")], vec![]);
    let compiled = compiled(&view);
    for (pair, value, _) in verdicts(&view, &compiled) {
        let expected = if pair.contains("-> web-2:") { None } else { Some(PolicyValue::Direct) };
        assert_eq!(value, expected, "{pair}");
    }
}
