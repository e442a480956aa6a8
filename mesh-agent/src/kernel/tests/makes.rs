//! Sockets of every make: bound before, non-blocking, with data in the SYN, multipath, and under SYN cookies, in which case
//! the handshake's last packet is looked up once more.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::super::*;
use super::cell::{Cell, run};
use super::pod::*;

#[derive(Clone, Copy, Debug)]
enum Make {
    Plain,
    BoundToPod,
    BoundToLoopback,
    BoundToDevice,
    NonBlocking,
    FastOpen,
    Multipath,
}

const FOR_ANYBODY: [Make; 5] = [Make::Plain, Make::BoundToPod, Make::BoundToDevice, Make::NonBlocking, Make::FastOpen];

/// Dials and answers the name of the peer.
fn dial_as(make: Make, own: IpAddr, to: SocketAddr) -> String {
    let protocol = if matches!(make, Make::Multipath) { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol)).expect("a socket");
    let loopback = if own.is_ipv4() { "127.0.0.1" } else { "::1" }.parse().expect("an address");
    match make {
        Make::BoundToPod => socket.bind(&SocketAddr::new(own, 0).into()).expect("bound"),
        Make::BoundToLoopback => socket.bind(&SocketAddr::new(loopback, 0).into()).expect("bound"),
        Make::BoundToDevice => socket.bind_device(Some(b"eth0")).expect("bound"),
        Make::NonBlocking => socket.set_nonblocking(true).expect("an option"),
        Make::Plain | Make::FastOpen | Make::Multipath => {}
    }
    match make {
        Make::FastOpen => send_with_syn(&socket, &to.into()),
        Make::NonBlocking => {
            socket.connect(&to.into()).expect_err("in progress");
            let mut polled = [PollFd::new(&socket, PollFlags::OUT)];
            let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
            assert_eq!(poll(&mut polled, Some(&timeout)).expect("poll"), 1);
            assert!(socket.take_error().expect("an option").is_none());
        }
        _ => socket.connect(&to.into()).expect("connected"),
    }
    let peer = socket.peer_addr().expect("a name").as_socket().expect("an address").to_string();
    // The other end keeps it until then.
    socket.shutdown(std::net::Shutdown::Write).expect("half closed");
    peer
}

fn send_with_syn(socket: &Socket, to: &SockAddr) {
    // SAFETY: the buffer and the address live across the call, with the lengths that are given.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_FASTOPEN, to.as_ptr().cast(), to.len())
    };
    assert_eq!(sent, 1, "{}", std::io::Error::last_os_error());
}

/// SYN cookies for every connection that this pod accepts, or only when a queue overflows.
fn always_cookies(pod: &Enrolled, always: bool) {
    let value = if always { "2" } else { "1" };
    pod.place.open().run(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", value)).expect("entered").expect("set");
}

fn redirected(kernel: &Kernel, pod: &Enrolled, makes: &[Make]) {
    for (to, own) in [("192.0.2.7:443", pod.place.v4()), ("[2001:db8::7]:443", pod.place.v6())] {
        let to: SocketAddr = to.parse().expect("an address");
        for make in makes.iter().copied() {
            let client = pod.place.start(move || dial_as(make, own, to));
            let accepted = pod.accept(Listener::Outbound);
            let origin = kernel.origin(&accepted).expect("a socket");
            assert_eq!(origin.map(|origin| origin.destination), Some(to), "{make:?}");
            (&accepted).read_to_end(&mut Vec::new()).expect("the client ends");
            let peer = client.end();
            // Of a multipath socket the hook sees only the subflow.
            let expected = if matches!(make, Make::Multipath) { SocketAddr::new(own, 15001) } else { to };
            assert_eq!(peer, expected.to_string(), "{make:?}");
        }
    }
    assert!(no_handshake_is_left(kernel));
}

fn direct(kernel: &Kernel, one: &Enrolled, two: &Enrolled, makes: &[Make]) {
    for (to, own) in [(two.place.v4(), one.place.v4()), (two.place.v6(), one.place.v6())] {
        let to = SocketAddr::new(to, 8080);
        let server = server(&two.place, to);
        for make in makes.iter().copied() {
            let client = one.place.start(move || dial_as(make, own, to));
            assert!(is_ready(&server, 5), "{make:?} to {to}");
            let (accepted, peer) = server.accept().expect("a connection");
            assert_eq!(peer.ip(), own);
            (&accepted).read_to_end(&mut Vec::new()).expect("the client ends");
            assert_eq!(client.end(), to.to_string(), "{make:?}");
        }
    }
    assert!(one.is_idle() && two.is_idle() && no_handshake_is_left(kernel));
}

fn two_pods(cell: &Cell) -> (Kernel, Enrolled, Enrolled) {
    let kernel = start(cell);
    let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
    allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
    (kernel, one, two)
}

#[test]
fn sockets_of_every_make_are_steered() {
    run(|cell| {
        let (kernel, one, two) = two_pods(cell);
        redirected(&kernel, &one, &FOR_ANYBODY);
        redirected(&kernel, &one, &[Make::BoundToLoopback]);
        direct(&kernel, &one, &two, &FOR_ANYBODY);
    });
}

#[test]
fn multipath_sockets_are_steered() {
    run(|cell| {
        let (kernel, one, two) = two_pods(cell);
        redirected(&kernel, &one, &[Make::Multipath]);
        direct(&kernel, &one, &two, &[Make::Multipath]);
    });
}

#[test]
fn steering_holds_under_syn_cookies() {
    run(|cell| {
        let (kernel, one, two) = two_pods(cell);
        for pod in [&one, &two] {
            always_cookies(pod, true);
        }
        for _ in 0..5 {
            redirected(&kernel, &one, &FOR_ANYBODY);
            direct(&kernel, &one, &two, &FOR_ANYBODY);
        }
        for pod in [&one, &two] {
            always_cookies(pod, false);
        }
    });
}

#[test]
fn many_connections_at_once_leave_nothing_behind() {
    run(|cell| {
        let (kernel, one, two) = two_pods(cell);
        let served = server(&two.place, SocketAddr::new(two.place.v4(), 8080));
        const EACH: u16 = 300;
        let clients = [&one, &two].map(|pod| {
            pod.place.start(|| {
                for number in 0..EACH {
                    for to in ["10.201.2.2:8080".to_owned(), format!("192.0.2.9:{}", 1000 + number)] {
                        let stream = dial(&to).expect("connected");
                        assert_eq!(stream.peer_addr().expect("a name").to_string(), to);
                    }
                }
                "done".into()
            })
        });
        let mut seen = std::collections::HashMap::new();
        for _ in 0..2 * EACH {
            served.accept().expect("direct, or the pod itself");
        }
        for pod in [&one, &two] {
            for _ in 0..EACH {
                let accepted = pod.accept(Listener::Outbound);
                let origin = kernel.origin(&accepted).expect("a socket").expect("it was redirected");
                *seen.entry(origin.destination.port()).or_insert(0) += 1;
            }
        }
        for client in clients {
            assert_eq!(client.end(), "done");
        }
        assert!((0..EACH).all(|number| seen[&(1000 + number)] == 2), "{seen:?}");
        super::cell::eventually("all is over", || {
            kernel.flows().expect("the map").is_empty() && no_handshake_is_left(&kernel)
        });
    });
}
