//! Garbage and floods at every listener, as docs/limits.md lists them: each is ended, counted and named in the log, takes
//! little memory, and keeps nobody else waiting.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Setup,
    attack::{self, Attacker, h2},
    cost::{begin_peak, peak},
    eventually,
    forge::{Authority, Credentials},
    namespace::Namespace,
    protocol::Behaviour,
    web::{self, Metrics},
};

const DAY: Duration = Duration::from_secs(86_400);
const PEER: &str = "spiffe://cluster.local/ns/default/sa/peer";

/// What all attacks of a story together may cost a daemon; most of it is what the allocator keeps.
const MEMORY: u64 = 64 << 20;

/// The longest that anybody else may wait meanwhile, on a machine that does other things, too.
const OTHERS_WAIT: Duration = Duration::from_secs(5);

/// A listener that is attacked, in a daemon that counts.
#[derive(Clone, Copy)]
struct Ground<'a> {
    listener: &'static str,
    metrics: &'a dyn Fn() -> Metrics,
    log: &'a dyn Fn() -> String,
}

impl Ground<'_> {
    fn refused(&self, reason: &str) -> f64 {
        (self.metrics)().sum("mesh_listener_refused_total", &[("listener", self.listener), ("reason", reason)])
    }

    /// Runs the attack, which says whether it was ended; it must be, and counted by this reason and in the log.
    #[track_caller]
    fn refuses(&self, name: &str, reason: &str, attack: impl FnOnce() -> bool) {
        let before = self.refused(reason);
        assert!(attack(), "{}: {name}: it is not ended", self.listener);
        self.has_refused(name, reason, before);
    }

    #[track_caller]
    fn has_refused(&self, name: &str, reason: &str, before: f64) {
        eventually(&format!("{}: {name} is counted as {reason}", self.listener), mesh_tests::LIMIT, || {
            if self.refused(reason) > before {
                return Ok(());
            }
            let metrics = (self.metrics)();
            let labels = [("listener", self.listener)];
            let counted = metrics.select("mesh_listener_refused_total", &labels);
            Err(format!("{:?}", counted.filter(|series| series.value > 0.0).collect::<Vec<_>>()))
        });
        let (listener, reason) = (format!("listener=\"{}\"", self.listener), format!("reason=\"{reason}\""));
        let is_named = |line: &str| line.contains(&listener) && line.contains(&reason);
        assert!((self.log)().lines().any(is_named), "{name}: no line of the log has {listener} {reason}");
    }
}

/// Bytes of HTTP/2 that no server has to bear, and as what they are counted. `request` opens a stream.
fn floods_of_http2(request: &[(&str, &str)]) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    use h2::*;
    const MANY: usize = 60_000;
    let block = block(request);
    let open = |stream: u32| frame(HEADERS, END_HEADERS, stream, &block);
    let reset = |stream: u32| [open(stream), frame(RESET, 0, stream, &[0, 0, 0, 8])].concat();
    let window = |by: u32| frame(WINDOW, 0, 0, &by.to_be_bytes());
    let resets: Vec<u8> = (0..2000).flat_map(|number| reset(2 * number + 1)).collect();
    let no_end = frame(CONTINUATION, 0, 1, &[]).repeat(2000);
    let long = h2::block(&[(":method", "CONNECT"), (":authority", &"a".repeat(1 << 20))]);
    let long: Vec<u8> = long.chunks(16 << 10).flat_map(|part| frame(CONTINUATION, 0, 1, part)).collect();
    let cases = [
        ("no HTTP/2", "protocol", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(4)),
        ("a frame larger than is allowed", "protocol", head((1 << 24) - 1, DATA, 0, 1)),
        ("CONTINUATIONs without end", "protocol", [frame(HEADERS, 0, 1, &block), no_end].concat()),
        ("streams that are opened and reset", "protocol", resets),
        ("PINGs", "frames", frame(PING, 0, 0, &[0; 8]).repeat(MANY)),
        ("SETTINGS", "frames", frame(SETTINGS, 0, 0, &[]).repeat(MANY)),
        ("PRIORITY", "frames", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(MANY)),
        ("frames of no known kind", "frames", frame(0xbe, 0, 1, b"?").repeat(MANY)),
        ("DATA of no content", "protocol", [open(1), frame(DATA, 0, 1, &[]).repeat(2000)].concat()),
        ("a window that overflows", "protocol", window(0x7fff_ffff).repeat(2)),
        ("a window that is opened by nothing", "protocol", window(0)),
        ("windows that are opened byte by byte", "frames", window(1).repeat(MANY)),
        ("a window beyond all bounds", "protocol", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("an authority of 1 MiB", "protocol", [frame(HEADERS, 0, 1, &[]), long].concat()),
    ];
    let greeted = |(name, reason, bytes): (&'static str, &'static str, Vec<u8>)| {
        let hello = if name == "no HTTP/2" { Vec::new() } else { hello(&[]) };
        (name, reason, [hello, bytes].concat())
    };
    cases.into_iter().map(greeted).collect()
}

/// Does `work` while `call` is made over and over: every call must succeed, and soon.
fn while_others_are_served(call: impl Fn() -> Result<(), String> + Send + Sync, work: impl FnOnce()) {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let (mut made, mut longest) = (0, Duration::ZERO);
            while !is_done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                call().unwrap_or_else(|reason| panic!("a caller that does nothing wrong is not served: {reason}"));
                (made, longest) = (made + 1, longest.max(begun.elapsed()));
            }
            (made, longest)
        });
        // Also when an attack is not ended: the calls must.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_done.store(true, Ordering::Relaxed);
        let (made, longest) = calls.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(made > 20 && longest < OTHERS_WAIT, "{made} calls, the longest took {longest:?}");
    });
}

/// Whether the last of so many connections that say nothing is ended, as early as in `connect`, while the others are still there.
fn is_one_too_many(count: usize, from: &Namespace, to: SocketAddr) -> bool {
    let mut crowd: Vec<_> = (0..count).map(|_| Attacker::plain(from, to)).collect();
    let Some(last) = crowd.pop() else { return false };
    last.map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |mut last| last.is_ended())
}

#[track_caller]
fn took_little(process: u32, before: u64, log: &str) {
    let most = peak(process);
    assert!(most < before + MEMORY, "{before} bytes before, {most} at most since");
    assert!(!log.contains("panicked"), "{log}");
}

fn one_worker() -> Setup {
    Setup { agent_arguments: ["--workers", "1"].map(str::to_owned).into(), ..Setup::default() }
}

#[test]
fn whatever_comes_to_the_port_of_tunnels_is_ended_and_counted_and_costs_others_nothing() {
    let mesh = Mesh::with(one_worker());
    let web = mesh.app("web").on("node-a");
    let [attacked, other] = ["attacked", "other"].map(|name| mesh.app(name).on("node-b").echoing_on(80));
    mesh.settle();
    let (node, outside) = (mesh.node("node-b"), &mesh.outside().namespace);
    let authority = Authority::of_mesh(&mesh.control().state());
    let to = attacked.at(15008);
    let credentials = || Some(authority.sign(PEER, -60, DAY));
    let sealed = || Attacker::sealed(outside, to, credentials()).expect("a tunnel");
    let ground = Ground { listener: "15008", metrics: &|| node.metrics(), log: &|| node.agent_log() };
    web.dial(&other).is_answered();
    let before = begin_peak(node.agent_id());

    let call = || Some(web.dial(&other)).filter(|dialled| dialled.was_answered()).map(drop).ok_or("no answer".into());
    while_others_are_served(call, || {
        let timeouts = ground.refused("timeout");
        // Silent before TLS, in the middle of it, and after it.
        let hello = [22, 3, 1, 1, 0, 1, 0, 0, 252];
        let mut slow = [&[][..], &hello].map(|bytes| {
            let mut attacker = Attacker::plain(outside, to).expect("a listener");
            attacker.sends(bytes);
            attacker
        });
        let mut mute = sealed();

        let plain = |bytes: &[u8]| Attacker::plain(outside, to).expect("a listener").sends(bytes).is_ended();
        ground.refuses("no TLS", "handshake", || plain(&noise()));
        ground.refuses("handshake records of no content", "handshake", || plain(&[22, 3, 1, 0, 0].repeat(10_000)));
        ground.refuses("no certificate", "handshake", || {
            Attacker::sealed(outside, to, None).map_or(true, |mut attacker| attacker.is_ended())
        });
        let authority = attacked.at(80).to_string();
        for (name, reason, bytes) in floods_of_http2(&[(":method", "CONNECT"), (":authority", &authority)]) {
            ground.refuses(name, reason, || sealed().sends(&bytes).is_ended());
        }
        ground.refuses("an end inside a frame", "truncated", || {
            sealed().sends(&h2::hello(&[])).sends(&h2::head(100, h2::DATA, 0, 1)).falls_silent().is_ended()
        });
        ground.refuses("records of no content", "records", || {
            attack::sends_empty_records(outside, to, credentials(), 10_000).expect("a tunnel")
        });
        ground.refuses("half-open handshakes without end", "crowded", || is_one_too_many(300, outside, to));

        assert!(slow.iter_mut().chain([&mut mute]).all(Attacker::is_ended), "who says nothing is ended in time");
        assert!(ground.refused("timeout") >= timeouts + 3.0);
    });

    took_little(node.agent_id(), before, &node.agent_log());
    web.reaches(attacked.at(80));
}

#[test]
fn whatever_comes_to_the_control_daemon_is_ended_and_counted_and_keeps_no_agent_waiting() {
    let mesh = Mesh::with(Setup { nodes: vec!["node-a".to_owned()], ..Setup::default() });
    let (control, outside) = (mesh.control(), &mesh.outside().namespace);
    let log = || control.log();
    let agents = Ground { listener: "15012", metrics: &|| control.metrics(), log: &log };
    let to = control.address();
    let sealed = || Attacker::sealed(outside, to, None).expect("a connection");
    let plain = |bytes: &[u8]| Attacker::plain(outside, to).expect("a listener").sends(bytes).is_ended();
    let before = begin_peak(control.id());

    // As an agent connects, from its own address.
    let node = &mesh.node("node-a").system().namespace;
    let call = || {
        let mut agent = Attacker::sealed(node, to, None).map_err(|error| error.to_string())?;
        let heard = agent.sends(&h2::hello(&[])).hears(Duration::from_secs(10));
        if heard.is_empty() { Err("no SETTINGS".to_owned()) } else { Ok(()) }
    };
    while_others_are_served(call, || {
        let timeouts = agents.refused("timeout");
        let (mut silent, mut mute) = (Attacker::plain(outside, to).expect("a listener"), sealed());
        agents.refuses("no TLS", "handshake", || plain(&noise()));
        let post = [(":method", "POST"), (":scheme", "https"), (":path", "/none"), (":authority", "x")];
        for (name, reason, bytes) in floods_of_http2(&post) {
            agents.refuses(name, reason, || sealed().sends(&bytes).is_ended());
        }
        agents.refuses("an end inside a frame", "truncated", || {
            sealed().sends(&h2::hello(&[])).sends(&h2::head(100, h2::DATA, 0, 1)).falls_silent().is_ended()
        });
        agents.refuses("records of no content", "records", || {
            attack::sends_empty_records(outside, to, None, 10_000).expect("a connection")
        });
        let crowd = || is_one_too_many(200, outside, to);
        agents.refuses("half-open handshakes from one address", "crowded_address", crowd);
        let debug = (std::net::Ipv4Addr::LOCALHOST, 15013).into();
        let slow = [
            attack_pages(outside, control.metrics_address(), Ground { listener: "15014", ..agents }),
            attack_pages(&control.place().namespace, debug, Ground { listener: "debug", ..agents }),
        ];
        slow.into_iter().for_each(Slow::ends);
        assert!(silent.is_ended() && mute.is_ended(), "who says nothing is ended in time");
        assert!(agents.refused("timeout") >= timeouts + 2.0);
    });

    took_little(control.id(), before, &control.log());
    // The agent has heard of nothing else meanwhile, and hears of what is new.
    mesh.app("late").on("node-a");
    mesh.settle();
}

#[test]
fn whatever_comes_to_the_ports_of_a_node_and_to_the_admin_socket_is_ended_and_counted() {
    let mesh = Mesh::with(Setup { nodes: vec!["node-a".to_owned()], ..Setup::default() });
    let node = mesh.node("node-a");
    let (metrics, log) = (|| node.metrics(), || node.agent_log());
    let before = begin_peak(node.agent_id());
    let call = || {
        node.admin().list().map_err(|status| status.to_string())?;
        let ready =
            web::ask(&node.system().namespace, (std::net::Ipv4Addr::LOCALHOST, 15021).into(), "/healthz/ready")?;
        if ready.status == 200 { Ok(()) } else { Err(format!("{ready:?}")) }
    };
    while_others_are_served(call, || {
        let admin = Ground { listener: "admin", metrics: &metrics, log: &log };
        let open = || Attacker::local(node.admin().socket()).expect("the socket is there");
        let timeouts = admin.refused("timeout");
        let mut silent = open();
        admin.refuses("noise", "protocol", || open().sends(&noise()).is_ended());
        let post = [(":method", "POST"), (":scheme", "http"), (":path", "/none"), (":authority", "x")];
        for (name, reason, bytes) in floods_of_http2(&post) {
            admin.refuses(name, reason, || open().sends(&bytes).is_ended());
        }
        admin.refuses("an end inside a frame", "truncated", || {
            open().sends(&h2::hello(&[])).sends(&h2::head(100, h2::DATA, 0, 1)).falls_silent().is_ended()
        });
        let outside = &mesh.outside().namespace;
        let at = |port| (node.addresses().v4, port).into();
        // On loopback only: there the attacker is of the node, and at the address of those who ask in good faith.
        let operators = (std::net::Ipv4Addr::LOCALHOST, 15000).into();
        let slow = [
            attack_pages(outside, at(15020), Ground { listener: "15020", ..admin }),
            attack_pages(outside, at(15021), Ground { listener: "15021", ..admin }),
            attack_pages(&node.system().namespace, operators, Ground { listener: "15000", ..admin }),
        ];
        slow.into_iter().for_each(Slow::ends);
        assert!(silent.is_ended(), "who says nothing is ended in time");
        assert!(admin.refused("timeout") >= timeouts + 1.0);
    });
    took_little(node.agent_id(), before, &node.agent_log());
}

/// A request's head that does not end.
struct Slow<'a> {
    attacker: Attacker,
    ground: Ground<'a>,
    before: f64,
}

impl Slow<'_> {
    fn ends(mut self) {
        assert!(self.attacker.is_ended(), "{}: a head that does not end", self.ground.listener);
        self.ground.has_refused("a head that does not end", "timeout", self.before);
    }
}

/// A port of pages, attacked from inside `namespace`; what takes its time is left to be looked at in the end.
fn attack_pages<'a>(namespace: &Namespace, to: SocketAddr, ground: Ground<'a>) -> Slow<'a> {
    let open = || Attacker::plain(namespace, to).expect("a listener");
    let before = ground.refused("timeout");
    let mut attacker = open();
    attacker.sends(b"GET /metrics HTTP/1.1\r\nhost: ");
    ground.refuses("noise", "head", || open().sends(&noise()).is_ended());
    ground.refuses("a head of 1 MiB", "head", || {
        let head = [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; 1 << 20]].concat();
        open().sends(&head).is_ended()
    });
    ground.refuses("a thousand fields", "head", || {
        let head = [b"GET / HTTP/1.1\r\n".to_vec(), b"x: y\r\n".repeat(1000), b"\r\n".to_vec()].concat();
        open().sends(&head).is_ended()
    });
    ground.refuses("an end inside a head", "truncated", || open().sends(b"GET / HTT").falls_silent().is_ended());
    ground.refuses("connections without end", "crowded_address", || is_one_too_many(100, namespace, to));
    Slow { attacker, ground, before }
}

#[test]
fn a_peer_that_speaks_in_single_bytes_to_a_reader_that_stalls_costs_what_it_says() {
    let mesh = Mesh::with(one_worker());
    let stalled = mesh.app("stalled").on("node-b").serving(80, Behaviour::Hold).serving(81, Behaviour::Source(1 << 30));
    mesh.settle();
    let node = mesh.node("node-b");
    let authority = Authority::of_mesh(&mesh.control().state());
    let open = |port: u16, settings: &[(u16, u32)]| {
        let mut peer = Attacker::sealed(&mesh.outside().namespace, stalled.at(15008), signed(&authority)).expect("one");
        let block = h2::block(&[(":method", "CONNECT"), (":authority", &stalled.at(port).to_string())]);
        // The window that the server offers counts from our ACK on.
        peer.sends(&h2::hello(settings)).sends(&h2::frame(h2::SETTINGS, h2::ACK, 0, &[])).sends(&h2::frame(
            h2::HEADERS,
            h2::END_HEADERS,
            1,
            &block,
        ));
        peer
    };
    let mut peer = open(80, &[]);
    let left = fill(&mut peer);
    let before = begin_peak(node.agent_id());

    let singles = h2::frame(h2::DATA, 0, 1, b"x").repeat(left);
    singles.chunks(1 << 20).for_each(|part| {
        peer.sends(part);
    });
    // Who takes nothing and has opened no window is sent nothing, and little is kept for it.
    let _shut = open(81, &[(4, 0)]);
    peer.sends(&h2::frame(h2::PING, 0, 0, b"go on?  "));

    let mut heard = Vec::new();
    eventually("the single bytes have arrived, and the tunnel goes on", mesh_tests::LIMIT, || {
        heard.extend(peer.hears(Duration::from_millis(100)));
        let is_pong = |frame: &h2::Heard| frame.kind == h2::PING && frame.payload == b"go on?  ";
        if h2::frames(&heard).iter().any(is_pong) { Ok(()) } else { Err(format!("{heard:?}")) }
    });
    assert!(left > 200_000, "only {left} single bytes had room");
    let grown = peak(node.agent_id()).saturating_sub(before);
    assert!(grown < 16 << 20, "{left} single bytes cost {grown}");
}

fn signed(authority: &Authority) -> Option<Credentials> {
    Some(authority.sign(PEER, -60, DAY))
}

/// Sends until the far application takes no more; what of stream 1's window is left then.
fn fill(peer: &mut Attacker) -> usize {
    const WINDOW: usize = 1 << 20;
    let step = h2::frame(h2::DATA, 0, 1, &[0; 16 << 10]).repeat(4);
    let (mut sent, mut heard) = (0, Vec::new());
    loop {
        let left = |heard: &[u8]| WINDOW + h2::allowed(heard, 1) - sent;
        heard.extend(peer.hears(Duration::from_millis(20)));
        // What was taken is given back once it is half of the window.
        while left(&heard) < WINDOW / 2 {
            let more = peer.hears(Duration::from_millis(500));
            if more.is_empty() {
                return left(&heard);
            }
            heard.extend(more);
        }
        peer.sends(&step);
        sent += 64 << 10;
    }
}

/// Bytes without meaning, always the same.
fn noise() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    fastrand::Rng::with_seed(11).fill(&mut bytes);
    bytes
}
