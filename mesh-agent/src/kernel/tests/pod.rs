//! A pod that is enrolled, and what clients and servers of these tests do.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::super::*;
use super::cell::{Cell, Place, Process};

/// A pod that is enrolled, with the listeners of two workers.
pub struct Enrolled {
    pub place: Place,
    pub id: PodId,
    pub listeners: Vec<(Listener, TcpListener)>,
}

pub fn enrol(kernel: &Kernel, cell: &Cell, number: u32) -> Enrolled {
    enrol_as(kernel, cell.pod(number), number, |_| ())
}

pub fn enrol_as(kernel: &Kernel, place: Place, number: u32, adjust: impl FnOnce(&mut PodSteering<'_>)) -> Enrolled {
    let namespace = place.open();
    let mut listeners = Vec::new();
    for address in [place.v4(), place.v6()] {
        for (worker, kind) in (0..2).flat_map(|worker| Listener::ALL.map(|kind| (worker, kind))) {
            let socket = listener::open(namespace.as_fd(), address, kind).expect("a listener");
            socket.set_nonblocking(false).expect("blocking is simpler here");
            kernel.insert_listener(address, kind, worker, &socket).expect("it can be inserted");
            listeners.push((kind, socket));
        }
    }
    steer(kernel, &place, number, adjust);
    Enrolled { place, id: PodId(number), listeners }
}

/// Writes a pod that another agent serves into the maps of one that is not in charge.
pub fn take_up(kernel: &Kernel, pod: &Enrolled) {
    for (index, (kind, listener)) in pod.listeners.iter().enumerate() {
        // As they were opened: all kinds of a worker, all workers of an address.
        let worker = (index / Listener::ALL.len()) as u32 % 2;
        let address = listener.local_addr().expect("a listener").ip();
        kernel.insert_listener(address, *kind, worker, listener).expect("it can be inserted");
    }
    steer(kernel, &pod.place, pod.id.0, |_| ());
}

fn steer(kernel: &Kernel, place: &Place, number: u32, adjust: impl FnOnce(&mut PodSteering<'_>)) {
    let namespace = place.open();
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (place.v4(), place.v6()) else { panic!("one of each") };
    let mut steering = PodSteering {
        pod: PodId(number),
        namespace: namespace.as_fd(),
        cookie: namespace.cookie(),
        v4: Some(v4),
        v6: Some(v6),
        other_addresses: Vec::new(),
        cgroups: vec![PodCgroup::find(&place.cgroup).expect("the pod's cgroup")],
        class: number * 10,
        probe_ports: vec![9000],
        fail_open: false,
    };
    adjust(&mut steering);
    kernel.enrol(&steering).expect("it can be enrolled");
}

impl Enrolled {
    /// Accepts one connection on any listener of a kind.
    pub fn accept(&self, kind: Listener) -> TcpStream {
        let of_kind: Vec<_> = self.listeners.iter().filter(|(at, _)| *at == kind).map(|(_, socket)| socket).collect();
        let mut polled: Vec<_> = of_kind.iter().map(|socket| PollFd::new(*socket, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_ne!(poll(&mut polled, Some(&timeout)).expect("poll"), 0, "nobody came to {kind:?}");
        let ready = polled.iter().position(|fd| !fd.revents().is_empty()).expect("one is ready");
        of_kind[ready].accept().expect("a connection").0
    }

    pub fn is_idle(&self) -> bool {
        !self.listeners.iter().any(|(_, socket)| is_ready(socket, 0))
    }
}

pub fn start(cell: &Cell) -> Kernel {
    let kernel = Kernel::start(&cell.settings()).expect("the programs load");
    beat(&kernel);
    kernel
}

/// Beats for the next hour: a test may be slower than the 3 s after which an agent counts as hung.
pub fn beat(kernel: &Kernel) {
    for worker in 0..2 {
        let in_an_hour = monotonic_ns() + 3_600_000_000_000;
        kernel.maps.heartbeat.set(&worker, &in_an_hour, sys::ANY).expect("a heartbeat");
    }
}

pub fn dial(to: &str) -> Result<TcpStream, std::io::Error> {
    TcpStream::connect_timeout(&to.parse().expect("an address"), Duration::from_secs(5))
}

/// What a client found: the names of both ends and what the server sent, or why it was refused.
pub fn visit(place: &Place, to: impl Into<String>) -> Process {
    let to = to.into();
    place.start(move || match dial(&to) {
        Ok(mut stream) => {
            let names = (stream.peer_addr().expect("a name"), stream.local_addr().expect("a name"));
            stream.write_all(b"hello").expect("it can be written");
            stream.shutdown(std::net::Shutdown::Write).expect("half a close");
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            format!(
                "peer={} local={} read={:?}",
                names.0,
                names.1.ip(),
                read.map(|_| answer).map_err(|error| error.kind())
            )
        }
        Err(error) => format!("refused={:?}", error.kind()),
    })
}

/// The answer of a client that was refused.
pub const REFUSED: &str = "refused=ConnectionRefused";

/// A server of a pod, in the pod's namespace.
pub fn server(place: &Place, address: SocketAddr) -> TcpListener {
    place.open().run(|| TcpListener::bind(address)).expect("the namespace").expect("the address")
}

/// Takes one connection, reads what the client says, answers "welcome" and closes; who it was.
pub fn serve(server: &TcpListener) -> SocketAddr {
    assert!(is_ready(server, 5), "nobody came");
    let (mut stream, peer) = server.accept().expect("a connection");
    assert_eq!(stream.peer_addr().expect("a name"), peer);
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("the client says something");
    assert_eq!(said, "hello");
    stream.write_all(b"welcome").expect("it can be answered");
    peer
}

pub fn is_ready(socket: &TcpListener, seconds: i64) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).expect("poll") != 0
}

/// How often something was counted.
pub fn counted(kernel: &Kernel, counter: Counter) -> u64 {
    let counters = kernel.counters().expect("they can be read");
    counters.iter().find(|(at, _)| *at == counter).expect("every counter is there").1
}

/// Lets one class dial another directly.
pub fn allow(kernel: &Kernel, rules: &[(u32, u32, u16, PolicyValue)]) {
    let policy = rules.iter().map(|(from, to, port, value)| (PolicyKey::new(*from, *to, *port), *value)).collect();
    let tables = SteeringTables { policy, ..SteeringTables::default() };
    assert_eq!(kernel.apply_steering(&tables, &HashMap::new()).expect("the maps").failed, 0);
}

/// Handshakes leave nothing behind.
pub fn no_handshake_is_left(kernel: &Kernel) -> bool {
    let fill = kernel.map_fill().expect("the maps");
    fill.iter().filter(|map| ["PENDING", "TICKET"].contains(&map.name)).all(|map| map.entries == 0)
}
