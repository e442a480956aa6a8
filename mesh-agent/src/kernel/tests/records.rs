//! What the hooks tell: live connections, records, the kernel's own list.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use socket2::SockRef;

use super::super::link::Hook;
use super::super::*;
use super::cell::{eventually, run};
use super::pod::*;

/// How the two ends of a connection part.
#[derive(Clone, Copy, Debug)]
enum Parting {
    ClientHalfCloses,
    ServerClosesFirst,
    ClientClosesUnread,
    ClientResets,
}

const UP: usize = 70_000;
const DOWN: usize = 90_001;

fn client_part(mut stream: TcpStream, parting: Parting) {
    stream.write_all(&vec![1; UP]).expect("sent");
    let mut rest = Vec::new();
    match parting {
        Parting::ClientHalfCloses => {
            stream.shutdown(Shutdown::Write).expect("half closed");
            stream.read_to_end(&mut rest).expect("read");
        }
        Parting::ServerClosesFirst => {
            stream.read_to_end(&mut rest).expect("read");
        }
        Parting::ClientClosesUnread => {}
        Parting::ClientResets => {
            let mut one = [0];
            stream.read_exact(&mut one).expect("the server has read everything");
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
        }
    }
}

/// What the server sends in all.
fn server_part(mut stream: TcpStream, parting: Parting) -> usize {
    let mut received = vec![0; UP];
    stream.read_exact(&mut received).expect("received");
    match parting {
        Parting::ClientHalfCloses | Parting::ServerClosesFirst => {
            stream.write_all(&vec![2; DOWN]).expect("sent");
            DOWN
        }
        Parting::ClientClosesUnread => {
            assert_eq!(stream.read(&mut received).expect("the end"), 0);
            0
        }
        Parting::ClientResets => {
            stream.write_all(&[3]).expect("sent");
            assert!(stream.read(&mut received).is_err(), "reset");
            1
        }
    }
}

#[test]
fn bytes_are_counted_exactly_however_a_connection_ends() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
        let mut events = kernel.events().expect("the ring");
        for (to, parting) in [two.place.v4(), two.place.v6()].into_iter().flat_map(|to| {
            [Parting::ClientHalfCloses, Parting::ServerClosesFirst, Parting::ClientClosesUnread, Parting::ClientResets]
                .map(|parting| (SocketAddr::new(to, 8080), parting))
        }) {
            let server = server(&two.place, to);
            let client = one.place.start(move || {
                client_part(dial(&to.to_string()).expect("connected"), parting);
                String::new()
            });
            let (accepted, peer) = server.accept().expect("a connection");
            // The end that dialled, for both.
            eventually("it is listed", || kernel.flows().expect("the map").len() == 1);
            let row = kernel.flows().expect("the map")[0];
            assert_eq!((row.flow.direction(), row.flow.flags()), (Direction::Outbound, FlowFlags::DIRECT));
            assert_eq!((row.flow.pod, row.flow.local.address(), row.flow.remote.address()), (1, Some(peer), Some(to)));
            let sockets = diag::sockets(&one.place.open()).expect("a list");
            assert!(sockets.iter().any(|socket| socket.cookie == row.socket && socket.local == peer));
            let down = server_part(accepted, parting);
            client.end();
            let mut closed = Vec::new();
            eventually("it is gone", || kernel.flows().expect("the map").is_empty());
            eventually("it is told", || {
                events.drain(|record| closed.extend((record.kind() == Some(RecordKind::Closed)).then_some(*record)));
                !closed.is_empty()
            });
            // By the end that dialled, for both.
            let [record] = closed[..] else { panic!("{closed:?}") };
            assert_eq!(record.flow.direction(), Direction::Outbound);
            let counted = (record.bytes_sent as usize, record.bytes_received as usize);
            assert_eq!(counted, (UP, down), "{parting:?} {to} {:?}", record.flow);
            assert!(record.at_ns > record.flow.established_ns);
            assert!(record.rtt_us > 0, "{record:?}");
            assert!(record.flow.original.address().is_some());
        }
        assert_eq!(counted(&kernel, Counter::EventsLost), 0);
    });
}

#[test]
fn a_redirected_connection_is_listed_once_per_application() {
    run(|cell| {
        let kernel = start(cell);
        let pod = enrol(&kernel, cell, 1);
        let client = pod.place.start(|| {
            let mut stream = dial("192.0.2.7:443").expect("redirected");
            stream.write_all(b"hello").expect("sent");
            format!("{:?}", stream.read(&mut [0]))
        });
        let mut accepted = pod.accept(Listener::Outbound);
        accepted.read_exact(&mut [0; 5]).expect("received");
        let flows = kernel.flows().expect("the map");
        let [row] = flows[..] else { panic!("{flows:?}") };
        assert_eq!((row.flow.direction(), row.flow.flags()), (Direction::Outbound, FlowFlags::AGENT));
        assert_eq!(row.flow.original.address(), Some("192.0.2.7:443".parse().expect("an address")));
        assert_eq!(row.flow.local.address(), accepted.peer_addr().ok());
        // The kernel's list has both ends, with the same cookie for the application's.
        let sockets = diag::sockets(&pod.place.open()).expect("a list");
        let same = sockets.iter().find(|socket| socket.cookie == row.socket).expect("the same socket");
        assert_eq!(Some(same.local), row.flow.local.address());
        assert_eq!((same.state, same.bytes_sent), (1, 5));
        assert_ne!(same.inode, 0);
        drop((accepted, client));
        eventually("it is gone", || kernel.flows().expect("the map").is_empty());
    });
}

/// At this server a handshake lasts until the client's first bytes come.
fn defer(server: &TcpListener) {
    let seconds: libc::c_int = 5;
    let (value, length) = ((&raw const seconds).cast(), size_of_val(&seconds) as libc::socklen_t);
    // SAFETY: the socket is open, and the option takes one int, which lives for the call.
    let set = unsafe { libc::setsockopt(server.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, length) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn when_the_caller_is_withdrawn_in_the_middle_of_the_handshake_the_other_end_is_listed() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
        let to = SocketAddr::new(two.place.v4(), 8080);
        let server = server(&two.place, to);
        defer(&server);
        let (mut wait, go) = std::io::pipe().expect("a pipe");
        let client = one.place.start(move || {
            let mut stream = dial(&to.to_string()).expect("connected");
            wait.read_exact(&mut [0]).expect("a byte");
            stream.write_all(b"hello").expect("sent");
            format!("{:?}", stream.read(&mut [0]))
        });
        eventually("the client is connected", || kernel.flows().expect("the map").len() == 1);
        assert!(!is_ready(&server, 0), "the server has it already");
        kernel.withdraw(one.id).expect("it is enrolled");
        (&go).write_all(b"!").expect("a pipe");
        assert!(is_ready(&server, 5), "nobody came");
        let flows = kernel.flows().expect("the map");
        let inbound: Vec<_> = flows.iter().filter(|row| row.flow.direction() == Direction::Inbound).collect();
        let [row] = inbound[..] else { panic!("{flows:?}") };
        assert_eq!((row.flow.pod, row.flow.flags()), (2, FlowFlags::BEFORE_ENROLMENT));
        assert_eq!(row.flow.local.address(), Some(to));
        drop((server.accept(), client));
        eventually("both are gone", || kernel.flows().expect("the map").is_empty());
    });
}

#[test]
fn a_socket_can_be_ended_from_outside() {
    run(|cell| {
        let kernel = start(cell);
        let (one, two) = (enrol(&kernel, cell, 1), enrol(&kernel, cell, 2));
        allow(&kernel, &[(10, 20, 0, PolicyValue::Direct)]);
        for to in [SocketAddr::new(two.place.v4(), 8080), SocketAddr::new(two.place.v6(), 8080)] {
            let server = server(&two.place, to);
            let client = one.place.start(move || {
                let mut stream = dial(&to.to_string()).expect("connected");
                stream.write_all(&[1]).expect("sent");
                format!("{:?}", stream.read(&mut [0]).map_err(|error| error.kind()))
            });
            let (mut accepted, _) = server.accept().expect("a connection");
            accepted.read_exact(&mut [0]).expect("received");
            let cookie = rustix::net::sockopt::socket_cookie(&accepted).expect("a cookie");
            let namespace = two.place.open();
            let sockets = diag::sockets(&namespace).expect("a list");
            let socket = sockets.iter().find(|socket| socket.cookie == cookie).expect("it is listed");
            assert!(diag::destroy(&namespace, socket).expect("it can be ended"));
            let kind = accepted.read(&mut [0]).expect_err("it was ended").kind();
            assert_eq!(kind, std::io::ErrorKind::ConnectionAborted);
            assert_eq!(client.end(), "Err(ConnectionReset)");
            assert!(!diag::destroy(&namespace, socket).expect("no error"), "there is no such socket any more");
        }
    });
}

#[test]
fn programs_tell_what_they_cost() {
    run(|cell| {
        let kernel = start(cell);
        let programs = kernel.programs().expect("they can be asked");
        assert_eq!(programs.len(), Hook::CGROUP.len() + 1);
        // Counted only while kernel.bpf_stats_enabled is set, which is not for a test to change.
        assert!(programs.iter().all(|program| program.run_time_ns >= program.runs.min(1)));
        let names: Vec<_> = kernel.map_fill().expect("the maps").iter().map(|map| (map.name, map.capacity)).collect();
        assert!(names.contains(&("FLOWS", 4096)) && names.contains(&("PENDING", 4096)), "{names:?}");
    });
}
