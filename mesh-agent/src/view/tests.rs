//! What the Store takes, refuses and forgets.

use std::{net::IpAddr, time::Duration};

use mesh_api::{
    SERVICE_TRAFFIC_EXTENSION,
    proto::{
        mesh::{MeshConfig, ServiceTraffic},
        security::{self, Authorization},
        workload as wire,
    },
};
use prost::Message;

use super::{Action, PolicyName, Protocol, ServiceName, Store, fixtures::*};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_workload_is_found_by_uid_address_and_service() {
    let view = view(
        [
            behind(pod("b", &["10.0.0.2", "fd00::2"]), "echo", 80, 8080),
            behind(pod("a", &["10.0.0.1"]), "echo", 80, 8081),
        ],
        [service("echo", &["10.96.0.1"], &[80])],
        [],
    );
    let b = view.workload("Kubernetes//Pod/default/b").unwrap();
    assert_eq!(b.protocol, Protocol::Hbone);
    assert_eq!(b.identity.to_string(), "spiffe://cluster.local/ns/default/sa/b");
    assert_eq!(view.workload_at(ip("fd00::2")), Some(b));
    assert_eq!(view.workload_at(ip("::ffff:10.0.0.2")), Some(b));
    let echo = view.service_at((ip("10.96.0.1"), 80).into(), "elsewhere").unwrap();
    let endpoints: Vec<_> = view.endpoints(&echo.name).iter().map(|workload| workload.name.as_str()).collect();
    assert_eq!(endpoints, ["a", "b"]);
    assert_eq!(b.services[&echo.name][&80], 8080);
}

#[test]
fn a_removed_resource_leaves_no_index_behind() {
    let mut store = Store::default();
    let a = named_workload(behind(pod("a", &["10.0.0.1"]), "echo", 80, 80));
    let echo = named_service(service("echo", &["10.96.0.1"], &[80]));
    store.apply_addresses(&[a.clone(), echo.clone()], &[]);
    store.apply_addresses(&[], &[a.0, echo.0]);
    let view = store.publish();
    assert_eq!(view.workload_at(ip("10.0.0.1")), None);
    assert_eq!(view.service_at((ip("10.96.0.1"), 80).into(), "default"), None);
    assert!(view.endpoints(&ServiceName { namespace: "default".into(), hostname: "echo".into() }).is_empty());
}

#[test]
fn a_workload_lives_until_its_last_name_is_removed() {
    let mut store = Store::default();
    let (uid, a) = named_workload(pod("a", &["10.0.0.1"]));
    store.apply_addresses(&[(uid.clone(), a.clone()), ("/10.0.0.1".into(), a)], &[]);
    store.apply_addresses(&[], &[uid]);
    assert!(store.publish().workload_at(ip("10.0.0.1")).is_some());
    store.apply_addresses(&[], &["/10.0.0.1".into()]);
    assert!(store.publish().workload_at(ip("10.0.0.1")).is_none());
}

#[test]
fn a_reused_address_belongs_to_the_newest_workload_whatever_goes_first() {
    let mut store = Store::default();
    let (old, new) = (named_workload(pod("old", &["10.0.0.1"])), named_workload(pod("new", &["10.0.0.1"])));
    store.apply_addresses(std::slice::from_ref(&old), &[]);
    store.apply_addresses(std::slice::from_ref(&new), &[]);
    assert_eq!(store.publish().workload_at(ip("10.0.0.1")).unwrap().name, "new");
    store.apply_addresses(&[], &[old.0]);
    assert_eq!(store.publish().workload_at(ip("10.0.0.1")).unwrap().name, "new");
}

#[test]
fn of_services_with_one_address_the_callers_comes_first_then_the_canonical_then_the_first_by_name() {
    let at = |namespace: &str, host: &str, ports: &[u32], is_canonical: bool| {
        let one = service(host, &["10.96.0.1"], ports);
        wire::Service { namespace: namespace.into(), canonical: is_canonical, ..one }
    };
    let mut services = vec![
        at("alpha", "entry", &[80, 81], false),
        at("beta", "entry", &[80, 82], false),
        at("beta", "echo", &[80], true),
        at("gamma", "echo", &[80], true),
        at("delta", "echo", &[443], true),
    ];
    let rows = [
        ("alpha", 80, Some("alpha/entry")),
        ("beta", 80, Some("beta/echo")),
        ("beta", 82, Some("beta/entry")),
        ("gamma", 80, Some("gamma/echo")),
        // It has a service there, without the port.
        ("delta", 80, Some("beta/echo")),
        ("other", 80, Some("beta/echo")),
        ("other", 81, Some("alpha/entry")),
        ("other", 443, Some("delta/echo")),
        ("other", 8080, None),
    ];
    for _ in 0..services.len() {
        services.rotate_left(1);
        let view = view([], services.clone(), []);
        for (namespace, port, expected) in rows {
            let found = view.service_at((ip("10.96.0.1"), port).into(), namespace);
            let name = found.map(|service| format!("{}/{}", service.name.namespace, service.name.hostname));
            assert_eq!(name.as_deref(), expected, "{namespace} dials {port}");
        }
    }
}

#[test]
fn of_entries_with_one_address_the_first_by_name_is_found_and_a_pod_before_all() {
    let entry = |name: &str| wire::Workload {
        uid: format!("Kubernetes/networking.istio.io/WorkloadEntry/default/{name}"),
        ..pod(name, &["10.0.0.1"])
    };
    for names in [["one", "two"], ["two", "one"]] {
        let found = |more: Vec<wire::Workload>| {
            let view = view(names.map(entry).into_iter().chain(more), [], []);
            view.workload_at(ip("10.0.0.1")).unwrap().name.clone()
        };
        assert_eq!(found(vec![]), "one");
        assert_eq!(found(vec![pod("zebra", &["10.0.0.1"])]), "zebra");
    }
}

#[test]
fn workloads_of_the_nodes_network_are_not_found_by_address() {
    let mut node = pod("node", &["192.168.0.1"]);
    node.network_mode = wire::NetworkMode::HostNetwork as i32;
    let view = view([node], [], []);
    assert_eq!(view.workload_at(ip("192.168.0.1")), None);
    assert!(view.workload("Kubernetes//Pod/default/node").unwrap().is_host_network);
}

#[test]
fn a_wrong_address_resource_is_refused_by_name_field_and_reason_and_its_last_good_form_stays() {
    type Change = fn(&mut wire::Workload);
    let cases: [(Change, &str); 7] = [
        (|w| w.addresses.push(vec![1, 2, 3]), "addresses[1]: neither 4 nor 16 bytes"),
        (|w| w.namespace = "a/b".into(), "identity: namespace is empty or has a character"),
        (|w| w.namespace.clear(), "namespace: empty"),
        (|w| w.tunnel_protocol = 9, "tunnel_protocol: 9 is unknown"),
        (|w| w.authorization_policies.push("x".into()), "authorization_policies[x]: not namespace/name"),
        (|w| *w = behind(w.clone(), "echo", 0, 1), "services[default/echo].service_port: 0 is no port"),
        (|w| *w = behind(w.clone(), "echo", 1, 65536), "services[default/echo].target_port: 65536 is no port"),
    ];
    for (change, reason) in cases {
        let mut store = Store::default();
        let good = pod("a", &["10.0.0.1"]);
        let mut bad = good.clone();
        change(&mut bad);
        store.apply_addresses(&[named_workload(good)], &[]);
        let (_, bad) = named_workload(bad);
        let refusals = store.apply_addresses(&[("Kubernetes//Pod/default/a".into(), bad)], &[]);
        assert_eq!(refusals.len(), 1, "{reason}");
        assert_eq!(refusals[0].name, "Kubernetes//Pod/default/a");
        assert!(refusals[0].reason.starts_with(reason), "{} is not {reason}", refusals[0].reason);
        assert_eq!(store.publish().workload_at(ip("10.0.0.1")).unwrap().name, "a");
    }
}

#[test]
fn what_kubernetes_asks_of_a_service_is_read_and_an_unknown_extension_refused() {
    let mut echo = service("echo", &["10.96.0.1"], &[80]);
    let traffic = ServiceTraffic { client_ip_affinity_seconds: 60, only_local_endpoints: true };
    let mut extension = wire::Extension { name: SERVICE_TRAFFIC_EXTENSION.into(), config: Some(Default::default()) };
    extension.config.as_mut().unwrap().value = traffic.encode_to_vec();
    echo.extensions.push(extension);
    let mut store = Store::default();
    assert_eq!(store.apply_addresses(&[named_service(echo.clone())], &[]), []);
    let view = store.publish();
    let read = &view.service_at((ip("10.96.0.1"), 80).into(), "default").unwrap().traffic;
    assert_eq!((read.client_ip_affinity, read.only_local_endpoints), (Some(Duration::from_secs(60)), true));

    echo.extensions.push(wire::Extension { name: "else".into(), config: None });
    let refusals = store.apply_addresses(&[named_service(echo)], &[]);
    assert_eq!(refusals[0].reason, "extensions[else]: unknown");
}

#[test]
fn what_the_agent_cannot_do_is_kept_with_its_reason() {
    let mut echo = service("echo", &["10.96.0.1"], &[80]);
    echo.waypoint = Some(wire::GatewayAddress::default());
    let mut legacy = pod("a", &["10.0.0.1"]);
    legacy.tunnel_protocol = wire::TunnelProtocol::LegacyIstioMtls as i32;
    let view = view([legacy], [echo], []);
    assert!(view.service_at((ip("10.96.0.1"), 80).into(), "default").unwrap().unsupported.is_some());
    assert!(view.workload_at(ip("10.0.0.1")).unwrap().unsupported.is_some());
}

fn unreadable(action: i32) -> Authorization {
    let mut policy = policy("p", security::Action::Allow, vec![]);
    policy.action = action;
    policy.rules[0].clauses[0].matches = vec![security::Match { destination_ports: vec![70000], ..Default::default() }];
    policy
}

#[test]
fn a_refused_policy_lets_nobody_through_and_a_good_one_stays_in_force() {
    let name = PolicyName { namespace: "default".into(), name: "p".into() };
    let deny = security::Action::Deny as i32;
    for (action, action_kept, rules) in [(0, Action::Allow, 0), (deny, Action::Deny, 1), (7, Action::Deny, 1)] {
        let mut store = Store::default();
        let refusals = store.apply_policies(&[named_policy(unreadable(action))], &[]);
        assert_eq!(refusals[0].name, "default/p");
        let view = store.publish();
        let kept = view.policy(&name).unwrap();
        assert_eq!((kept.action, kept.rules.len(), kept.is_stand_in), (action_kept, rules, true));
        assert_eq!(view.policies_over("default").count(), 1);
    }

    let mut store = Store::default();
    store.apply_policies(&[named_policy(policy("p", security::Action::Allow, vec![]))], &[]);
    let good = store.publish().policy(&name).unwrap().clone();
    assert_eq!(store.apply_policies(&[named_policy(unreadable(0))], &[]).len(), 1);
    assert_eq!(store.publish().policy(&name), Some(&good));
    store.apply_policies(&[], &["default/p".into()]);
    assert_eq!(store.publish().policies().count(), 0);
    assert_eq!(store.publish().policies_over("default").count(), 0);
}

#[test]
fn mesh_settings_are_checked_and_the_last_good_ones_stay() {
    let mut store = Store::default();
    let good = MeshConfig {
        pod_ranges: vec!["10.1.2.3/16".into()],
        node_addresses: vec![bytes("192.168.0.1")],
        ..Default::default()
    };
    store.apply_mesh(&good).unwrap();
    for (bad, reason) in [
        (MeshConfig { pod_ranges: vec!["x".into()], ..Default::default() }, "pod_ranges: \"x\" is no address range"),
        (MeshConfig { trust_domain: "A".into(), ..Default::default() }, "trust_domain: trust domain is empty"),
        (MeshConfig { node_port_first: 9, node_port_last: 1, ..Default::default() }, "node_port_last: below"),
        (MeshConfig { node_addresses: vec![vec![1]], ..Default::default() }, "node_addresses[0]: neither"),
    ] {
        let refusal = store.apply_mesh(&bad).unwrap_err();
        assert!(refusal.reason.starts_with(reason), "{}", refusal.reason);
    }
    let view = store.publish();
    assert_eq!(view.mesh.pod_ranges, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(view.mesh.node_ports, 30000..=32767);
}

#[test]
fn an_entry_that_claims_a_pods_address_does_not_take_it() {
    let mut claim = pod("claim", &["10.0.0.1"]);
    claim.uid = "Kubernetes/networking.istio.io/ServiceEntry/default/claim/10.0.0.1".into();
    let (claim, known) = (named_workload(claim), named_workload(pod("a", &["10.0.0.1"])));
    for order in [[claim.clone(), known.clone()], [known, claim]] {
        let mut store = Store::default();
        assert_eq!(store.apply_addresses(&order, &[]), []);
        assert_eq!(store.publish().workload_at(ip("10.0.0.1")).unwrap().name, "a");
    }
}
