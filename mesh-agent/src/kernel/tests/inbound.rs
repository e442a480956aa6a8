//! What arrives at enrolled pods.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use socket2::{Domain, Socket, Type};

use super::super::*;
use super::cell::{Place, eventually, run};
use super::pod::*;

#[test]
fn callers_outside_the_mesh_reach_the_plaintext_listener() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let outside = cell.pod(9);
        for (to, from) in [(pod.place.v4(), outside.v4()), (pod.place.v6(), outside.v6())] {
            // Bound or not, every port is the agent's.
            let to = SocketAddr::new(to, 8080);
            let client = visit(&outside, to.to_string());
            let accepted = pod.accept(Listener::Plaintext);
            assert_eq!(accepted.local_addr().expect("a name"), to);
            assert_eq!(accepted.peer_addr().expect("a name").ip(), from);
            assert_eq!(kernel.origin(&accepted).expect("a socket"), None);
            drop((accepted, client));
            let client = visit(&outside, SocketAddr::new(to.ip(), 15008).to_string());
            assert_eq!(pod.accept(Listener::Hbone).local_addr().expect("a name").port(), 15008);
            drop(client);
            for port in [15001, 15006] {
                assert_eq!(visit(&outside, SocketAddr::new(to.ip(), port).to_string()).end(), REFUSED);
            }
        }
        assert_eq!(counted(&kernel, Counter::InboundOwnPort), 4);
        assert!(pod.is_idle());
    });
}

#[test]
fn the_application_sees_the_real_client() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        for (own, source) in [(pod.place.v4(), "203.0.113.9:4711"), (pod.place.v6(), "[2001:db8::9]:4711")] {
            let source: SocketAddr = source.parse().expect("an address");
            let application = server(&pod.place, SocketAddr::new(own, 8080));
            let domain = Domain::for_address(SocketAddr::new(own, 0));
            let opened = pod.place.open().run(|| Socket::new(domain, Type::STREAM, None));
            let ours = opened.expect("the namespace").expect("a socket");
            kernel.show_source(&ours, source).expect("it can be marked");
            ours.connect(&SocketAddr::new(own, 8080).into()).expect("the application listens");
            let (accepted, peer) = application.accept().expect("a connection");
            assert_eq!(peer, source);
            assert_eq!(accepted.peer_addr().expect("a name"), source);
            assert_eq!(accepted.local_addr().expect("a name"), SocketAddr::new(own, 8080));
            let seen = ours.peer_addr().expect("a name").as_socket();
            assert_eq!(seen, Some(SocketAddr::new(own, 8080)), "the agent sees what is");
        }
        assert!(pod.is_idle() && no_handshake_is_left(&kernel));
    });
}

#[test]
fn the_agents_own_sockets_go_out_unchanged() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let remote = cell.pod(9);
        let server = server(&remote, SocketAddr::new(remote.v4(), 8080));
        let opened = pod.place.open().run(|| Socket::new(Domain::IPV4, Type::STREAM, None));
        let ours = opened.expect("the namespace").expect("a socket");
        kernel.mark_exempt(&ours).expect("it can be marked");
        ours.connect(&SocketAddr::new(remote.v4(), 8080).into()).expect("the remote listens");
        assert_eq!(server.accept().expect("a connection").1.ip(), pod.place.v4());
        assert!(pod.is_idle() && no_handshake_is_left(&kernel));
        assert_eq!(kernel.flows().expect("the map"), [], "our own sockets are not listed");
    });
}

#[test]
fn only_the_nodes_own_processes_probe() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let host_pod = Place { cgroup: cell.cgroup().join("kubepods"), ..cell.node() };
        for address in [pod.place.v4(), pod.place.v6()] {
            let probed = SocketAddr::new(address, 9000);
            let application = server(&pod.place, probed);
            let probe = visit(&cell.node(), probed.to_string());
            serve(&application);
            assert!(probe.end().contains("welcome"));
            for (place, port) in [(&host_pod, 9000), (&cell.node(), 9001)] {
                let client = visit(place, SocketAddr::new(address, port).to_string());
                assert_eq!(pod.accept(Listener::Plaintext).local_addr().expect("a name").port(), port);
                drop(client);
            }
            // Whatever state the agent is in.
            for worker in 0..2 {
                kernel.maps.heartbeat.set(&worker, &0, sys::ANY).expect("a heartbeat");
            }
            let probe = visit(&cell.node(), probed.to_string());
            serve(&application);
            assert!(probe.end().contains("welcome"));
            assert_eq!(visit(&host_pod, probed.to_string()).end(), REFUSED);
            beat(&kernel);
        }
        assert_eq!(counted(&kernel, Counter::InboundProbe), 4);
        assert!(no_handshake_is_left(&kernel));
    });
}

#[test]
fn a_root_process_of_the_pod_that_binds_our_ports_gets_nothing() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let outside = cell.pod(9);
        let thief = |port| {
            let bound = pod.place.open().run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                socket.set_reuse_port(true).expect("an option");
                socket.bind(&SocketAddr::new(pod.place.v4(), port).into()).expect("it is root as well");
                socket.listen(128).expect("it listens");
                socket
            });
            std::net::TcpListener::from(bound.expect("the namespace"))
        };
        let thieves = [thief(15001), thief(15006), thief(15008)];
        for _ in 0..50 {
            for (from, to, kind) in [
                (&pod.place, "192.0.2.7:443", Listener::Outbound),
                (&outside, "10.201.1.2:8080", Listener::Plaintext),
                (&outside, "10.201.1.2:15008", Listener::Hbone),
            ] {
                let client =
                    from.start(move || dial(to).map_or_else(|error| error.to_string(), |_| "connected".into()));
                let accepted = pod.accept(kind);
                assert_eq!(client.end(), "connected");
                drop(accepted);
            }
        }
        assert!(thieves.iter().all(|thief| !is_ready(thief, 0)));
    });
}

#[test]
fn addresses_that_are_not_the_pods_are_closed() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let outside = cell.pod(9);
        // A second address that nobody enrolled, reachable by a route.
        let name = |place: &Place| place.namespace.file_name().expect("a name").to_string_lossy().into_owned();
        super::cell::ip(&["-n", &name(&pod.place), "address", "add", "10.77.0.1/32", "dev", "lo"]);
        super::cell::ip(&["-n", &name(&cell.node()), "route", "add", "10.77.0.1/32", "via", "10.201.1.2"]);
        let application = server(&pod.place, "10.77.0.1:8080".parse().expect("an address"));
        assert_eq!(visit(&outside, "10.77.0.1:8080").end(), REFUSED);
        assert!(!is_ready(&application, 0));
        // The address of the link, which an application bound to `::` would answer on.
        let everywhere = server(&pod.place, "[::]:8081".parse().expect("an address"));
        link_local_of(&cell.node(), "v1");
        let link_local = link_local_of(&pod.place, "eth0");
        let answer = cell.node().run(move || {
            let device = rustix::net::netdevice::name_to_index(socket(Domain::IPV6), "v1").expect("the link");
            let to = SocketAddrV6::new(link_local, 8081, 0, device);
            format!("{:?}", dial(&to.to_string()).map_err(|error| error.kind()).err())
        });
        assert_eq!(answer, "Some(ConnectionRefused)");
        assert!(!is_ready(&everywhere, 0));
        assert_eq!(counted(&kernel, Counter::InboundForeignAddress), 2);
    });
}

fn socket(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, None).expect("a socket")
}

/// The address that the kernel gives to a link once both of its ends are up.
fn link_local_of(place: &Place, link: &str) -> Ipv6Addr {
    let mut found = None;
    eventually("the link has its address", || {
        let listed = place.open().run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"));
        let listed = listed.expect("the namespace").expect("the list");
        let line = listed.lines().find(|line| line.starts_with("fe80") && line.ends_with(link));
        found = line.map(|line| u128::from_str_radix(&line[..32], 16).expect("an address").into());
        found.is_some()
    });
    found.expect("it was found")
}

fn ip(place: &super::cell::Place, words: &str) {
    let name = place.namespace.file_name().expect("below /run/netns");
    let done = std::process::Command::new("ip").arg("-n").arg(name).args(words.split(' ')).status();
    assert!(done.expect("iproute2 is there").success(), "{words}");
}

#[test]
fn another_address_of_a_pod_leads_to_its_listeners_and_is_never_direct() {
    run(|cell| {
        let kernel = start(cell);
        let other: SocketAddr = "10.201.1.77:8080".parse().expect("an address");
        let one = enrol_as(&kernel, cell.pod(1), 1, |pod| pod.other_addresses.push(other.ip()));
        let two = enrol(&kernel, cell, 2);
        ip(&one.place, "address add 10.201.1.77/24 dev eth0");
        // Its class is in force at the address that it was enrolled with, and there alone.
        kernel.set_class(one.id, 11).expect("it is enrolled");
        allow(&kernel, &[(20, 10, 0, PolicyValue::Direct), (20, 11, 0, PolicyValue::Direct)]);
        let direct = server(&one.place, SocketAddr::new(one.place.v4(), 8080));
        let client = visit(&two.place, format!("{}:8080", one.place.v4));
        serve(&direct);
        assert!(client.end().contains("welcome"));

        let client = visit(&two.place, other.to_string());
        let accepted = two.accept(Listener::Outbound);
        let origin = kernel.origin(&accepted).expect("a socket").expect("it was redirected");
        assert_eq!(origin.destination, other);
        drop((accepted, client));
        let client = visit(&cell.pod(3), other.to_string());
        let accepted = one.accept(Listener::Plaintext);
        assert_eq!(accepted.local_addr().expect("a name"), other);
        drop((accepted, client));
    });
}

#[test]
fn addresses_that_come_and_go_on_a_pods_interface_are_told() {
    run(|cell| {
        let place = cell.pod(1);
        let namespace = place.open();
        let watch = AddressWatch::new(&namespace).expect("rtnetlink");
        let others = || {
            let others = interface::siblings(&namespace, &[place.v4()]).expect("a list");
            others.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!((watch.has_changed(), others()), (false, vec![place.v6.clone()]), "no loopback, no link-local");
        ip(&place, "address add 10.99.0.1/32 dev lo");
        ip(&place, "address add 10.201.1.77/24 dev eth0");
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        assert_eq!(others(), ["10.201.1.77".to_owned(), place.v6.clone()]);
        ip(&place, "address del 10.201.1.77/24 dev eth0");
        assert!(watch.has_changed());
        assert_eq!(others(), std::slice::from_ref(&place.v6));
    });
}
