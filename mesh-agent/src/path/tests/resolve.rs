//! From what was dialled to the next hop: a table of destinations, and who is chosen behind a service.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use mesh_api::{
    SERVICE_TRAFFIC_EXTENSION,
    proto::{
        mesh::{MeshConfig, ServiceTraffic},
        workload as wire,
    },
};
use prost::Message;

use crate::{
    enrol::{Pod, PodTable},
    path::{
        Caller, NextHop, Origin, PlaintextReason, Question, ResolveError, Route, Source, explain,
        resolve::{self, inbound},
    },
    proving::{pod, table},
    view::{
        Store, Uid, View,
        fixtures::{self, behind, named_service, named_workload, service},
    },
};

/// Pod `web` at 10.0.0.1 and `near` at 10.0.0.2 of this node, `far` at 10.0.1.2 of another, `plain` at 10.0.2.2 not in the
/// mesh; `far` and `near` behind 10.96.0.1:80.
struct Ground {
    view: Arc<View>,
    pods: PodTable,
    web: Arc<Pod>,
}

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

fn far(name: &str, address: &str) -> wire::Workload {
    wire::Workload { node: "node-b".into(), ..fixtures::pod(name, &[address]) }
}

fn plain(name: &str, address: &str) -> wire::Workload {
    wire::Workload { tunnel_protocol: 0, ..far(name, address) }
}

fn ground(workloads: Vec<wire::Workload>, services: Vec<wire::Service>) -> Ground {
    let mut store = Store::default();
    let workloads = [fixtures::pod("web", &["10.0.0.1"])].into_iter().chain(workloads).map(named_workload);
    let addresses: Vec<_> = services.into_iter().map(named_service).chain(workloads).collect();
    assert_eq!(store.apply_addresses(&addresses, &[]), []);
    let mesh = MeshConfig {
        pod_ranges: vec!["10.0.0.0/16".into()],
        service_ranges: vec!["10.96.0.0/16".into()],
        node_addresses: vec![fixtures::bytes("192.168.0.1")],
        ..MeshConfig::default()
    };
    store.apply_mesh(&mesh).unwrap();
    let web = pod(1, "web", ip("10.0.0.1"));
    Ground { view: store.publish(), pods: table(&[web.clone(), pod(2, "near", ip("10.0.0.2"))]), web }
}

fn usual() -> Ground {
    let echo = |pod| behind(pod, "echo", 80, 8080);
    let mut waypoint = service("waypoint", &["10.96.0.3"], &[80]);
    waypoint.waypoint = Some(wire::GatewayAddress::default());
    ground(
        vec![echo(fixtures::pod("near", &["10.0.0.2"])), echo(far("far", "10.0.1.2")), plain("plain", "10.0.2.2")],
        vec![
            service("echo", &["10.96.0.1"], &[80]),
            service("empty", &["10.96.0.2"], &[80]),
            waypoint,
            service("node-port", &["192.168.0.1"], &[30080]),
        ],
    )
}

impl Ground {
    fn origin(&self, destination: &str) -> Origin {
        Origin {
            source: Source { identity: None, address: ip("10.0.0.1") },
            source_address: "10.0.0.1:4000".parse().unwrap(),
            destination: destination.parse().unwrap(),
            endpoint: None,
        }
    }

    fn ask(&self, origin: &Origin, tried: &[Uid], random: &mut fastrand::Rng) -> Result<Route, ResolveError> {
        let caller = Caller::enrolled(&self.view, &self.web);
        resolve::outbound(Question { view: &self.view, pods: &self.pods, caller, origin, tried }, random)
    }

    fn to(&self, destination: &str) -> Result<NextHop, ResolveError> {
        self.ask(&self.origin(destination), &[], &mut fastrand::Rng::with_seed(7)).map(|route| route.next_hop)
    }

    /// How often each address is chosen in 10,000 connections.
    fn spread(&self, change: impl Fn(&mut Origin)) -> HashMap<SocketAddr, u32> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut spread = HashMap::new();
        for _ in 0..10_000 {
            let mut origin = self.origin("10.96.0.1:80");
            change(&mut origin);
            let route = self.ask(&origin, &[], &mut random).unwrap();
            *spread.entry(route.next_hop.address()).or_default() += 1;
        }
        spread
    }
}

#[test]
fn each_destination_has_its_next_hop() {
    let ground = usual();
    let hop = |destination| match ground.to(destination) {
        Ok(NextHop::Local { address, is_self, .. }) => format!("local {address} {is_self}"),
        Ok(NextHop::Hbone { address, identities, .. }) => format!("hbone {address} {}", identities[0]),
        Ok(NextHop::Plaintext { address, reason, .. }) => format!("plain {address} {}", reason.label()),
        Err(error) => format!("{error:?}"),
    };
    for (destination, expected) in [
        ("10.0.0.1:80", "local 10.0.0.1:80 true"),
        ("10.0.0.2:5432", "local 10.0.0.2:5432 false"),
        ("10.0.0.2:15008", "OwnPort"),
        ("10.0.1.2:5432", "hbone 10.0.1.2:5432 spiffe://cluster.local/ns/default/sa/far"),
        ("10.0.2.2:5432", "plain 10.0.2.2:5432 not_in_mesh"),
        ("10.96.0.1:81", "NoSuchPort"),
        ("10.96.0.2:80", "NoEndpoint"),
        ("10.96.0.3:80", "Unsupported(\"the service has a waypoint\")"),
        ("10.96.9.9:80", "UnknownDestination"),
        ("10.0.9.9:80", "UnknownDestination"),
        ("192.168.0.1:22", "plain 192.168.0.1:22 node"),
        ("192.168.0.1:30080", "NoEndpoint"),
        ("192.168.0.1:30081", "UnknownDestination"),
        ("93.184.216.34:443", "plain 93.184.216.34:443 external"),
    ] {
        assert_eq!(hop(destination), expected, "{destination}");
    }
}

#[test]
fn a_pod_of_this_node_that_the_view_does_not_know_or_takes_for_another_is_pending() {
    let stranger = wire::Workload { service_account: "other".into(), ..fixtures::pod("near", &["10.0.0.2"]) };
    for workloads in [vec![], vec![stranger]] {
        let ground = ground(workloads, vec![]);
        assert_eq!(ground.to("10.0.0.2:80").unwrap_err(), ResolveError::Pending);
        let near = &ground.pods.by_address[&ip("10.0.0.2")];
        assert_eq!(inbound(&ground.view, near, "10.0.0.2:80".parse().unwrap()).unwrap_err(), ResolveError::Pending);
    }
}

#[test]
fn what_arrives_for_a_port_of_the_agent_goes_nowhere() {
    let ground = usual();
    for port in crate::path::OWN_PORTS {
        let destination = SocketAddr::new(ip("10.0.0.1"), port);
        assert_eq!(inbound(&ground.view, &ground.web, destination).unwrap_err(), ResolveError::OwnPort);
    }
}

#[test]
fn endpoints_are_chosen_by_weight() {
    let weighted = |pod, weight| wire::Workload { capacity: Some(weight), ..behind(pod, "echo", 80, 8080) };
    let ground = ground(
        vec![weighted(far("one", "10.0.1.1"), 1), weighted(far("three", "10.0.1.3"), 3)],
        vec![service("echo", &["10.96.0.1"], &[80])],
    );
    let spread = ground.spread(|_| ());
    assert!((2_300..2_700).contains(&spread[&"10.0.1.1:8080".parse().unwrap()]), "{spread:?}");
    assert_eq!(spread.len(), 2);
}

#[test]
fn the_kernels_choice_is_kept_while_it_holds() {
    let ground = usual();
    let spread = ground.spread(|origin| origin.endpoint = Some("10.0.1.2:8080".parse().unwrap()));
    assert_eq!(spread.len(), 1);
    let spread = ground.spread(|origin| origin.endpoint = Some("10.0.9.9:8080".parse().unwrap()));
    assert_eq!(spread.len(), 2);
}

#[test]
fn unhealthy_and_tried_endpoints_are_left_out() {
    let sick = wire::Workload { status: 1, ..behind(far("sick", "10.0.1.3"), "echo", 80, 8080) };
    let well = behind(far("well", "10.0.1.4"), "echo", 80, 8080);
    let uid: Uid = well.uid.as_str().into();
    let mut echo = service("echo", &["10.96.0.1"], &[80]);
    let cautious = ground(vec![sick.clone(), well.clone()], vec![echo.clone()]);
    assert_eq!(cautious.spread(|_| ()).len(), 1);
    let asked = cautious.ask(&cautious.origin("10.96.0.1:80"), &[uid], &mut fastrand::Rng::new());
    assert_eq!(asked.unwrap_err(), ResolveError::NoEndpoint);

    echo.load_balancing = Some(wire::LoadBalancing { health_policy: 1, ..Default::default() });
    assert_eq!(ground(vec![sick, well], vec![echo]).spread(|_| ()).len(), 2);
}

#[test]
fn affinity_keeps_a_source_on_its_endpoint_and_moves_only_those_who_must() {
    let endpoints = || (1..=4).map(|n| behind(far(&format!("e{n}"), &format!("10.0.1.{n}")), "echo", 80, 8080));
    let mut echo = service("echo", &["10.96.0.1"], &[80]);
    let mut extension = wire::Extension { name: SERVICE_TRAFFIC_EXTENSION.into(), config: Some(Default::default()) };
    let traffic = ServiceTraffic { client_ip_affinity_seconds: 60, only_local_endpoints: false };
    extension.config.as_mut().unwrap().value = traffic.encode_to_vec();
    echo.extensions.push(extension);
    let all = ground(endpoints().collect(), vec![echo.clone()]);
    let fewer = ground(endpoints().skip(1).collect(), vec![echo]);
    let mut used = HashMap::<_, u32>::new();
    for n in 0..200 {
        let mut origin = all.origin("10.96.0.1:80");
        origin.source.address = ip(&format!("10.0.7.{n}"));
        let choose = |ground: &Ground, seed| {
            ground.ask(&origin, &[], &mut fastrand::Rng::with_seed(seed)).unwrap().next_hop.address()
        };
        let chosen = choose(&all, 1);
        assert_eq!(chosen, choose(&all, 2));
        if chosen.ip() != ip("10.0.1.1") {
            assert_eq!(chosen, choose(&fewer, 1));
        }
        *used.entry(chosen).or_default() += 1;
    }
    assert!(used.len() == 4 && used.values().all(|times| *times > 20), "{used:?}");
}

#[test]
fn locality_prefers_the_nearest_and_strictness_takes_no_other() {
    let at = |zone: &str, pod| wire::Workload {
        locality: Some(wire::Locality { region: "r".into(), zone: zone.into(), subzone: String::new() }),
        ..behind(pod, "echo", 80, 8080)
    };
    let mut store = Store::default();
    let mut echo = service("echo", &["10.96.0.1"], &[80]);
    let mut take = |mode: wire::load_balancing::Mode, zones: &[&str]| {
        echo.load_balancing =
            Some(wire::LoadBalancing { routing_preference: vec![1, 2], mode: mode as i32, health_policy: 0 });
        let web = wire::Workload {
            services: HashMap::new().into_iter().collect(),
            ..at("z1", fixtures::pod("web", &["10.0.0.1"]))
        };
        let far = zones.iter().enumerate().map(|(n, zone)| at(zone, far(&format!("e{n}"), &format!("10.0.1.{n}"))));
        let addresses: Vec<_> =
            [web].into_iter().chain(far).map(named_workload).chain([named_service(echo.clone())]).collect();
        assert_eq!(
            store.apply_addresses(
                &addresses,
                &["Kubernetes//Pod/default/e0".into(), "Kubernetes//Pod/default/e1".into()]
            ),
            []
        );
        let web = pod(1, "web", ip("10.0.0.1"));
        Ground { view: store.publish(), pods: table(std::slice::from_ref(&web)), web }
    };
    use wire::load_balancing::Mode;
    let spread = take(Mode::Failover, &["z2", "z1"]).spread(|_| ());
    assert_eq!(spread.keys().collect::<Vec<_>>(), [&"10.0.1.1:8080".parse().unwrap()]);
    assert_eq!(take(Mode::Failover, &["z2", "z3"]).spread(|_| ()).len(), 2);
    assert_eq!(take(Mode::Strict, &["z2", "z3"]).to("10.96.0.1:80").unwrap_err(), ResolveError::NoEndpoint);
}

#[test]
fn only_local_endpoints_stay_on_the_callers_node() {
    let mut echo = service("echo", &["10.96.0.1"], &[80]);
    let mut extension = wire::Extension { name: SERVICE_TRAFFIC_EXTENSION.into(), config: Some(Default::default()) };
    let traffic = ServiceTraffic { client_ip_affinity_seconds: 0, only_local_endpoints: true };
    extension.config.as_mut().unwrap().value = traffic.encode_to_vec();
    echo.extensions.push(extension);
    let near = behind(fixtures::pod("near", &["10.0.0.2"]), "echo", 80, 8080);
    let both = ground(vec![near, behind(far("far", "10.0.1.2"), "echo", 80, 8080)], vec![echo.clone()]);
    assert_eq!(both.spread(|_| ()).keys().collect::<Vec<_>>(), [&"10.0.0.2:8080".parse().unwrap()]);
    let none = ground(vec![behind(far("far", "10.0.1.2"), "echo", 80, 8080)], vec![echo]);
    assert_eq!(none.to("10.96.0.1:80").unwrap_err(), ResolveError::NoEndpoint);
}

#[test]
fn a_service_adds_the_names_that_it_accepts() {
    let mut echo = service("echo", &["10.96.0.1"], &[80]);
    echo.subject_alt_names = vec!["spiffe://cluster.local/ns/default/sa/alias".into(), "dns-name".into()];
    let ground = ground(vec![behind(far("far", "10.0.1.2"), "echo", 80, 8080)], vec![echo]);
    let Ok(NextHop::Hbone { identities, .. }) = ground.to("10.96.0.1:80") else { panic!("not a tunnel") };
    let names: Vec<_> = identities.iter().map(|identity| identity.service_account()).collect();
    assert_eq!(names, ["alias", "far"]);
}

#[test]
fn explain_says_what_the_path_would_do() {
    let ground = usual();
    let ask = |source: &str, destination: &str, port| {
        let answer = explain(&ground.view, &ground.pods, source, destination, port);
        (answer.verdict, answer.path, answer.reason)
    };
    assert_eq!(ask("default/web", "default/far", 80), ("allowed", "hbone", String::new()));
    assert_eq!(ask("10.0.0.1", "10.0.0.2", 80), ("allowed", "node_local", String::new()));
    assert_eq!(ask("default/web", "default/web", 80), ("allowed", "self", String::new()));
    assert_eq!(ask("default/web", "10.0.2.2", 80), ("allowed", "plaintext", PlaintextReason::NotInMesh.label().into()));
    assert_eq!(ask("1.2.3.4", "default/web", 80), ("allowed", "plaintext", String::new()));
    assert_eq!(ask("default/far", "default/near", 80), ("allowed", "hbone", String::new()));
    assert_eq!(ask("default/plain", "default/near", 80), ("allowed", "plaintext", String::new()));
    assert_eq!(ask("default/web", "default/empty", 80).0, "refused");
    assert_eq!(ask("default/web", "default/nothing", 80).0, "refused");
}
