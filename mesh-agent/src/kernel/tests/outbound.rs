//! What enrolled pods dial.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use mesh_common::HEARTBEAT_MAX_AGE_NS;
use socket2::{Domain, SockRef, Socket, Type};

use super::super::link::Hook;
use super::super::*;
use super::cell::run;
use super::pod::*;

#[test]
fn what_a_pod_dials_reaches_the_agent_with_its_destination() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        for to in ["192.0.2.7:443", "[2001:db8::7]:443", "[::ffff:192.0.2.7]:443"] {
            let client = pod.place.start(move || {
                let stream = dial(to).expect("redirected");
                format!("{} {}", stream.peer_addr().expect("a name"), stream.local_addr().expect("a name").ip())
            });
            let accepted = pod.accept(Listener::Outbound);
            let destination: SocketAddr = to.parse().expect("an address");
            let plain = SocketAddr::new(destination.ip().to_canonical(), destination.port());
            assert_eq!(accepted.local_addr().expect("a name"), plain);
            let linger = SockRef::from(&accepted).linger().expect("an option");
            assert_eq!(linger, Some(Duration::ZERO), "it resets unless it is ended in order");
            let origin = kernel.origin(&accepted).expect("it is a socket").expect("it was redirected");
            assert_eq!(origin, Origin { destination: plain, endpoint: None });
            let own = if plain.is_ipv4() { pod.place.v4() } else { pod.place.v6() };
            assert_eq!(accepted.peer_addr().expect("a name").ip(), own);
            let answer = client.end();
            assert!(answer.starts_with(&format!("{destination} ")), "{answer}");
        }
        assert!(pod.is_idle());
    });
}

#[test]
fn a_socket_that_dials_again_is_judged_again() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        let to: SocketAddr = SocketAddr::new(two.place.v4(), 8080);
        let services = HashMap::from([(
            "10.96.0.1:80".parse().expect("an address"),
            ServiceSlots { slots: [to].into(), agent_only: false },
        )]);
        let policy = HashMap::from([(PolicyKey::new(10, 20, 0), PolicyValue::Direct)]);
        kernel.apply_steering(&SteeringTables { policy, services }, &HashMap::new()).expect("the maps");
        let server = server(&two.place, to);
        let hops = ["192.0.2.7:443", "10.96.0.1:80", "198.51.100.1:80", "10.201.2.2:8080"];
        let client = one.place.start(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let mut names = Vec::new();
            for hop in hops {
                socket.connect(&hop.parse::<SocketAddr>().expect("an address").into()).expect("connected");
                names.push(socket.peer_addr().expect("a name").as_socket().expect("an address").to_string());
                disconnect(&socket);
            }
            names.join(" ")
        });
        // Kept until the client is done: they reset when they are closed. Which worker gets one is not said, nor when.
        let redirected = [one.accept(Listener::Outbound), one.accept(Listener::Outbound)];
        let direct = [server.accept().expect("the service"), server.accept().expect("the pod")];
        let mut origins = redirected.each_ref().map(|accepted| {
            let origin = kernel.origin(accepted).expect("a socket").expect("it was redirected");
            assert_eq!(origin.endpoint, None);
            origin.destination.to_string()
        });
        origins.sort_unstable();
        assert_eq!(origins, [hops[0], hops[2]]);
        assert_eq!(client.end(), hops.join(" "));
        drop(direct);
        assert!(no_handshake_is_left(&kernel));
    });
}

/// connect(AF_UNSPEC): the socket may dial again.
fn disconnect(socket: &Socket) {
    // SAFETY: an all-zero sockaddr is valid, and its family is AF_UNSPEC.
    let address: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address lives across the call.
    let status = unsafe {
        libc::connect(socket.as_raw_fd(), &raw const address, size_of::<libc::sockaddr>() as libc::socklen_t)
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_pod_reaches_itself_without_the_agent_but_not_its_own_listeners() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        for address in [pod.place.v4(), pod.place.v6(), "127.0.0.1".parse().expect("v4"), "::1".parse().expect("v6")] {
            let to = SocketAddr::new(address, 8080);
            let server = server(&pod.place, to);
            let client = visit(&pod.place, to.to_string());
            assert_eq!(serve(&server).ip(), address);
            assert_eq!(client.end(), format!("peer={to} local={address} read=Ok(\"welcome\")"));
        }
        for port in [15001, 15006, 15008] {
            for address in [pod.place.v4(), pod.place.v6()] {
                assert_eq!(visit(&pod.place, SocketAddr::new(address, port).to_string()).end(), REFUSED, "{port}");
            }
        }
        assert_eq!(counted(&kernel, Counter::OutboundOwnPort), 6);
        assert_eq!(counted(&kernel, Counter::OutboundSelf), 4);
        assert!(pod.is_idle());
    });
}

#[test]
fn a_nested_namespace_is_refused() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let answer = pod.place.run(|| {
            // SAFETY: a new namespace for this thread alone; nothing relies on the old one.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "a namespace");
            format!("{:?}", dial("127.0.0.1:1").map_err(|error| error.kind()).err())
        });
        assert_eq!(answer, "Some(ConnectionRefused)");
        assert_eq!(counted(&kernel, Counter::NestedNamespace), 1);
    });
}

#[test]
fn datagrams_are_left_alone() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let answer = pod.place.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.connect("192.0.2.7:53").expect("connected");
            socket.peer_addr().expect("a name").to_string()
        });
        assert_eq!(answer, "192.0.2.7:53");
        assert_eq!(counted(&kernel, Counter::OutboundAgent), 0);
    });
}

/// Makes every worker's last beat this old.
fn age(kernel: &Kernel, age_ns: u64) {
    for worker in 0..2 {
        kernel.maps.heartbeat.set(&worker, &(monotonic_ns() - age_ns), sys::ANY).expect("a heartbeat");
    }
}

#[test]
fn when_the_agent_hangs_or_dies_the_table_of_fail_modes_holds() {
    run(|cell| {
        let kernel = start(cell);
        let one = enrol(&kernel, cell, 1);
        let two = enrol(&kernel, cell, 2);
        let open = enrol_as(&kernel, cell.pod(3), 3, |pod| pod.fail_open = true);
        let remote = cell.pod(9);
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
        let direct_server = server(&two.place, SocketAddr::new(two.place.v4(), 8080));
        let remote_server = server(&remote, SocketAddr::new(remote.v4(), 8080));
        let (direct, outside) = (format!("{}:8080", two.place.v4), format!("{}:8080", remote.v4));
        let direct_works = |what: &str| {
            let client = visit(&one.place, direct.clone());
            serve(&direct_server);
            assert!(client.end().contains("welcome"), "{what}");
        };
        direct_works("alive");
        // Hung: the listeners are there, the beats are not.
        age(&kernel, HEARTBEAT_MAX_AGE_NS + 1);
        assert_eq!(visit(&one.place, outside.clone()).end(), REFUSED);
        assert_eq!(visit(&remote, direct.clone()).end(), REFUSED, "inbound through the agent");
        direct_works("hung");
        let client = visit(&open.place, outside.clone());
        assert_eq!(serve(&remote_server).ip(), open.place.v4());
        assert!(client.end().contains("welcome"));
        // For longer than the setting.
        age(&kernel, 60_000_000_001);
        assert_eq!(visit(&one.place, direct.clone()).end(), REFUSED);
        // Alive again.
        for worker in 0..2 {
            kernel.heartbeat(worker).expect("a heartbeat");
        }
        direct_works("alive again");
        kernel.heartbeat(2).expect_err("there is no such worker");
        // Dead: the listeners go with the process.
        let Enrolled { place, listeners, .. } = one;
        drop(listeners);
        assert_eq!(visit(&place, outside).end(), REFUSED);
        let client = visit(&place, direct);
        serve(&direct_server);
        assert!(client.end().contains("welcome"));
        for (counter, expected) in [
            (Counter::OutboundAway, 2),
            (Counter::OutboundStale, 1),
            (Counter::OutboundFailOpen, 1),
            (Counter::InboundAway, 1),
        ] {
            assert_eq!(counted(&kernel, counter), expected, "{counter:?}");
        }
    });
}

#[test]
fn a_kernel_that_cannot_choose_the_error_refuses_all_the_same() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let to = SocketAddr::new(pod.place.v4(), 15006).to_string();
        assert_eq!(visit(&pod.place, to.clone()).end(), REFUSED);
        let (older, _) = load::load_for(&kernel.pins, &cell.settings(), false).expect("the programs load");
        let link = sys::open_pinned(&kernel.pins.link(Hook::Connect4)).expect("it is attached");
        link::update(link.as_fd(), older.of(Hook::Connect4).expect("it is loaded")).expect("it can be replaced");
        assert_eq!(visit(&pod.place, to).end(), "refused=PermissionDenied");
    });
}
