//! Same node, without the agent: tickets, policy, services.

use std::collections::HashMap;
use std::net::SocketAddr;

use mesh_common::abi::AddressEntry;

use super::super::*;
use super::cell::{Place, run};
use super::pod::*;

#[test]
fn a_pair_that_policy_allows_talks_without_the_agent() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
        for address in [two.place.v4(), two.place.v6()] {
            let to = SocketAddr::new(address, 8080);
            let server = server(&two.place, to);
            let client = visit(&one.place, to.to_string());
            let peer = serve(&server);
            let own = if address.is_ipv4() { one.place.v4() } else { one.place.v6() };
            assert_eq!(peer.ip(), own);
            assert_eq!(client.end(), format!("peer={to} local={own} read=Ok(\"welcome\")"));
        }
        // An IPv6 socket that dials a v4-mapped address of the pod is direct too.
        let server = server(&two.place, SocketAddr::new(two.place.v4(), 8081));
        let client = visit(&one.place, format!("[::ffff:{}]:8081", two.place.v4));
        assert_eq!(serve(&server).ip(), one.place.v4());
        assert!(client.end().ends_with("read=Ok(\"welcome\")"));
        assert!(one.is_idle() && two.is_idle());
        assert_eq!(counted(&kernel, Counter::InboundDirect), 3);
        assert!(no_handshake_is_left(&kernel));
    });
}

#[test]
fn what_policy_denies_is_refused_and_told() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct), (10, 20, 22, PolicyValue::Deny)]);
        let server = server(&two.place, SocketAddr::new(two.place.v4(), 22));
        let mut events = kernel.events().expect("the ring");
        assert_eq!(visit(&one.place, format!("{}:22", two.place.v4)).end(), REFUSED);
        let mut refused = Vec::new();
        events.drain(|record| refused.push(*record));
        let [record] = refused[..] else { panic!("{refused:?}") };
        assert_eq!(record.kind(), Some(RecordKind::Refused));
        assert_eq!(Counter::from_number(record.reason), Some(Counter::OutboundDenied));
        assert_eq!(record.flow.pod, 1);
        assert_eq!(record.flow.original.address(), Some(SocketAddr::new(two.place.v4(), 22)));
        assert!(!is_ready(&server, 0), "the server saw a connection");
    });
}

#[test]
fn without_a_ticket_nobody_speaks_for_an_address() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
        let to = SocketAddr::new(two.place.v4(), 8080);
        let server = server(&two.place, to);
        // The first pod's address, from a socket that no hook sees: in a cgroup outside the node's.
        let outside = Place { cgroup: cell.cgroup().parent().expect("the hierarchy").to_owned(), ..one.place.clone() };
        assert_eq!(visit(&outside, to.to_string()).end(), REFUSED);
        assert_eq!(counted(&kernel, Counter::NoTicket), 1);
        assert!(!is_ready(&server, 0) && two.is_idle());
        let client = visit(&one.place, to.to_string());
        serve(&server);
        assert!(client.end().contains("welcome"));
    });
}

#[test]
fn a_policy_that_the_destination_judges_differently_is_refused_there() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct), (11, 20, 0, PolicyValue::Deny)]);
        let to = SocketAddr::new(two.place.v4(), 8080);
        let server = server(&two.place, to);
        let place = one.place.clone();
        // The ticket names the namespace: its class of the moment of arrival counts, at both ends.
        kernel.set_class(one.id, 11).expect("it is enrolled");
        assert_eq!(visit(&place, to.to_string()).end(), REFUSED);
        kernel.set_class(two.id, 21).expect("it is enrolled");
        let client = visit(&place, to.to_string());
        let accepted = one.accept(Listener::Outbound);
        assert_eq!(accepted.local_addr().expect("a name"), to);
        drop((accepted, client));
        kernel.set_class(one.id, 10).expect("it is enrolled");
        kernel.set_class(two.id, 20).expect("it is enrolled");
        let client = visit(&place, to.to_string());
        serve(&server);
        assert!(client.end().contains("welcome"));
        assert!(matches!(kernel.set_class(PodId(99), 1), Err(KernelError::UnknownPod { pod: 99 })));
    });
}

fn tables(services: &[(&str, &[&str], bool)]) -> SteeringTables {
    let address = |text: &&str| text.parse::<SocketAddr>().expect("an address");
    let slots = |slots: &[&str], agent_only| ServiceSlots { slots: slots.iter().map(address).collect(), agent_only };
    SteeringTables {
        policy: HashMap::from([(PolicyKey::new(10, 20, 0), PolicyValue::Direct)]),
        services: services.iter().map(|(at, to, only)| (address(at), slots(to, *only))).collect(),
    }
}

#[test]
fn a_service_goes_where_its_slots_say() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        let report = kernel.apply_steering(
            &tables(&[
                ("10.96.0.1:80", &["10.201.2.2:8080"], false),
                ("10.96.0.2:80", &["10.201.9.2:8080"], false),
                ("10.96.0.3:80", &["10.201.1.2:8080"], false),
                ("10.96.0.4:80", &["10.201.2.2:8080"], true),
                ("[fd00:96::1]:80", &["[fd00:201:2::2]:8080"], false),
            ]),
            &HashMap::new(),
        );
        assert_eq!(report.expect("the maps"), SteeringReport { written: 11, removed: 0, failed: 0 });
        // Direct, to a pod of this node: the client sees the service.
        for (service, to) in [("10.96.0.1:80", two.place.v4()), ("[fd00:96::1]:80", two.place.v6())] {
            let server = server(&two.place, SocketAddr::new(to, 8080));
            let client = visit(&one.place, service);
            serve(&server);
            let answer = client.end();
            assert!(
                answer.starts_with(&format!("peer={service} ")) && answer.ends_with("read=Ok(\"welcome\")"),
                "{answer}"
            );
        }
        // To the agent, with the endpoint that was chosen.
        for (service, endpoint) in [("10.96.0.2:80", Some("10.201.9.2:8080")), ("10.96.0.4:80", None)] {
            let client = visit(&one.place, service);
            let accepted = one.accept(Listener::Outbound);
            let origin = kernel.origin(&accepted).expect("a socket").expect("it was redirected");
            assert_eq!(origin.destination.to_string(), service);
            assert_eq!(origin.endpoint.map(|endpoint| endpoint.to_string()).as_deref(), endpoint);
            drop((accepted, client));
        }
        // To itself.
        let own = server(&one.place, SocketAddr::new(one.place.v4(), 8080));
        let client = visit(&one.place, "10.96.0.3:80");
        assert_eq!(serve(&own).ip(), one.place.v4());
        assert!(client.end().starts_with("peer=10.96.0.3:80 "));
        assert_eq!(counted(&kernel, Counter::OutboundSelf), 1);
        assert!(one.is_idle() && two.is_idle() && no_handshake_is_left(&kernel));
    });
}

#[test]
fn tables_change_by_difference_and_survive_a_restart() {
    run(|cell| {
        let kernel = start(cell);
        let first = tables(&[
            ("10.96.0.1:80", &["10.201.2.2:1", "10.201.2.2:2"], false),
            ("10.96.0.2:80", &["10.201.2.2:3"], false),
        ]);
        let written = |written, removed| SteeringReport { written, removed, failed: 0 };
        assert_eq!(kernel.apply_steering(&first, &HashMap::new()).expect("the maps"), written(6, 0));
        assert_eq!(kernel.apply_steering(&first, &HashMap::new()).expect("the maps"), written(0, 0));
        let second = tables(&[("10.96.0.1:80", &["10.201.2.2:1", "10.201.2.2:4", "10.201.2.2:5"], false)]);
        // One service anew with three slots; two old slots, one service and its slot go.
        assert_eq!(kernel.apply_steering(&second, &HashMap::new()).expect("the maps"), written(4, 4));
        drop(kernel);
        let kernel = start(cell);
        assert_eq!(kernel.apply_steering(&second, &HashMap::new()).expect("the maps"), written(0, 0));
        assert_eq!(
            kernel.apply_steering(&SteeringTables::default(), &HashMap::new()).expect("the maps"),
            written(0, 5)
        );
        let fill = kernel.map_fill().expect("the maps");
        for name in ["POLICY", "SERVICES", "BACKENDS"] {
            assert_eq!(fill.iter().find(|map| map.name == name).expect("listed").entries, 0, "{name}");
        }
    });
}

#[test]
fn slots_that_do_not_fit_leave_the_service_to_the_agent() {
    run(|cell| {
        let mut settings = cell.settings();
        settings.map_sizes.backends = 4;
        let kernel = Kernel::start(&settings).expect("the programs load");
        beat(&kernel);
        let one = enrol(&kernel, cell, 1);
        let report = kernel
            .apply_steering(&tables(&[("10.96.0.1:80", &["10.201.9.2:1"; 5], false)]), &HashMap::new())
            .expect("the maps");
        assert_eq!(report.failed, 1);
        let client = visit(&one.place, "10.96.0.1:80");
        let accepted = one.accept(Listener::Outbound);
        assert_eq!(kernel.origin(&accepted).expect("a socket").expect("redirected").endpoint, None);
        drop((accepted, client));
        let report = kernel
            .apply_steering(&tables(&[("10.96.0.1:80", &["10.201.9.2:1"; 4], false)]), &HashMap::new())
            .expect("the maps");
        assert_eq!(report.failed, 0);
    });
}

fn small(cell: &super::cell::Cell, policies: u32) -> Kernel {
    let mut settings = cell.settings();
    settings.map_sizes.policies = policies;
    let kernel = Kernel::start(&settings).expect("the programs load");
    beat(&kernel);
    kernel
}

fn policies(rules: &[(u32, u32, u16, PolicyValue)]) -> SteeringTables {
    let policy = rules.iter().map(|(from, to, port, value)| (PolicyKey::new(*from, *to, *port), *value)).collect();
    SteeringTables { policy, ..SteeringTables::default() }
}

#[test]
fn a_port_that_is_denied_is_not_direct_when_the_map_is_full() {
    run(|cell| {
        let kernel = small(cell, 2);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct), (20, 10, 0, PolicyValue::Direct)]);
        let denying = policies(&[
            (10, 20, 0, PolicyValue::Direct),
            (10, 20, 22, PolicyValue::Deny),
            (20, 10, 0, PolicyValue::Direct),
        ]);
        // The room of "any port" goes to the port that is denied: nothing else of the pair fits.
        let report = kernel.apply_steering(&denying, &HashMap::new()).expect("the maps");
        assert_eq!(report, SteeringReport { written: 1, removed: 1, failed: 1 });
        assert_eq!(visit(&one.place, format!("{}:22", two.place.v4)).end(), REFUSED);
        let client = visit(&one.place, format!("{}:80", two.place.v4));
        drop((one.accept(Listener::Outbound), client));
        // The other pair is as it was, and so is the first once there is room.
        let back = server(&one.place, SocketAddr::new(one.place.v4(), 80));
        let client = visit(&two.place, format!("{}:80", one.place.v4));
        serve(&back);
        assert!(client.end().contains("welcome"));
        let fewer = policies(&[(10, 20, 0, PolicyValue::Direct), (10, 20, 22, PolicyValue::Deny)]);
        assert_eq!(kernel.apply_steering(&fewer, &HashMap::new()).expect("the maps").failed, 0);
        assert_eq!(visit(&one.place, format!("{}:22", two.place.v4)).end(), REFUSED);
        let server = server(&two.place, SocketAddr::new(two.place.v4(), 80));
        let client = visit(&one.place, format!("{}:80", two.place.v4));
        serve(&server);
        assert!(client.end().contains("welcome"));
    });
}

#[test]
fn a_class_number_that_is_anywhere_in_the_maps_is_taken() {
    run(|cell| {
        let kernel = start(cell);
        let one = enrol(&kernel, cell, 1);
        kernel.set_class(one.id, 30).expect("it is enrolled");
        assert_eq!(kernel.last_class().expect("the maps"), 30);
        // As an agent leaves it that is killed between the destinations and the sources.
        let address = one.place.v4().into();
        let entry = kernel.maps.addresses.get(&address).expect("the map").expect("its entry");
        kernel.maps.addresses.set(&address, &AddressEntry { class: 31, ..entry }, sys::ANY).expect("it is written");
        assert_eq!(kernel.last_class().expect("the maps"), 31);
        allow(&kernel, &[(32, 5, 0, PolicyValue::Direct)]);
        assert_eq!(kernel.last_class().expect("the maps"), 32);
        allow(&kernel, &[(5, 33, 0, PolicyValue::Direct)]);
        assert_eq!(kernel.last_class().expect("the maps"), 33);
    });
}

#[test]
fn pods_that_get_new_classes_stay_direct() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct), (10, 20, 22, PolicyValue::Deny)]);
        let to = SocketAddr::new(two.place.v4(), 80);
        let server = server(&two.place, to);
        let classes = |one_is, two_is| HashMap::from([(one.id, one_is), (two.id, two_is), (PodId(99), 7)]);
        let renumbered = policies(&[(31, 32, 0, PolicyValue::Direct), (31, 32, 22, PolicyValue::Deny)]);
        let report = kernel.apply_steering(&renumbered, &classes(31, 32)).expect("the maps");
        // Two for the way, both of the new pair; all of the old classes is gone in the end.
        assert_eq!((report.written, report.removed, report.failed), (4, 4, 0));
        let client = visit(&one.place, to.to_string());
        serve(&server);
        assert!(client.end().contains("welcome"));
        assert_eq!(visit(&one.place, format!("{}:22", two.place.v4)).end(), REFUSED);
        let report = kernel.apply_steering(&renumbered, &classes(31, 32)).expect("the maps");
        assert_eq!(report, SteeringReport::default());
    });
}
