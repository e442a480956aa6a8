//! Connections of every shape that applications make, across nodes and on one: each reaches exactly what it dialled, and
//! both ends see the addresses that they would see without a mesh.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use mesh_tests::{
    App, Mesh, Setup,
    addresses::canonical,
    eventually, plain,
    protocol::{Behaviour, Command, Dial, End, Listen, Reply},
};

/// Who makes tens of thousands of connections has the processors to itself.
static ALONE: Mutex<()> = Mutex::new(());

/// A caller, and a server on its own node and one on the other, each built by `serve`.
fn near_and_far(mesh: &Mesh, serve: impl Fn(App) -> App) -> (App, [App; 2]) {
    let web = mesh.app("web").on("node-a");
    let servers = [("near", "node-a"), ("far", "node-b")].map(|(name, node)| serve(mesh.app(name).on(node)));
    (web, servers)
}

/// How many entries a map of an agent has: by name, from the agent's metrics.
fn entries(mesh: &Mesh, node: &str, map: &str) -> f64 {
    let metrics = mesh.node(node).metrics();
    let labels = [("map", map)];
    let mut found = metrics.select("mesh_map_entries", &labels);
    found.next().unwrap_or_else(|| panic!("no mesh_map_entries for {map}")).value
}

#[test]
fn twenty_thousand_connections_reach_what_they_dialled_and_leave_no_trace_in_the_maps() {
    let mesh = Mesh::new();
    let ports = 7000..7010;
    let serve = |app: App| ports.clone().fold(app, |app, port| app.serving(port, Behaviour::Name));
    let (web, servers) = near_and_far(&mesh, serve);
    let api = mesh.app("api").on("node-b");
    let all: Vec<SocketAddr> = servers
        .iter()
        .flat_map(|server| ports.clone().flat_map(|port| [server.at(port), server.at_v6(port), server.at_mapped(port)]))
        .collect();
    mesh.settle();
    let capture = mesh.link().capture(&[]);
    let fill = || {
        let maps = ["PENDING", "TICKET", "DIRECT", "LISTEN"];
        maps.map(|map| ["node-a", "node-b"].map(|node| entries(&mesh, node, map)))
    };
    let before = fill();

    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let reports = std::thread::scope(|scope| {
        let storms = [&web, &api].map(|app| scope.spawn(|| app.storms(&all, 10_000, 8, true)));
        storms.map(|storm| storm.join().expect("the storm ran"))
    });
    drop(alone);

    for report in reports {
        let wrong = (report.wrong_destination, report.wrong_source, report.failed);
        assert_eq!((report.answered, wrong), (10_000, (0, 0, 0)), "{report:?}");
    }
    mesh_tests::eventually("the maps are as before", mesh_tests::LIMIT, || {
        let after = fill();
        if after == before { Ok(()) } else { Err(format!("{before:?} became {after:?}")) }
    });
    capture.shows_only_tunnels(&mesh.addresses());
}

#[test]
fn sixty_thousand_connections_in_a_minute_do_not_run_out_of_ports() {
    let mesh = Mesh::new();
    let (web, servers) = near_and_far(&mesh, |app| app.serving(80, Behaviour::Name));
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for server in servers {
        let storm = || {
            let report = web.storms(&[server.at(80)], 60_000, 8, true);
            assert_eq!((report.answered, report.failed), (60_000, 0), "{report:?}");
            let twelfths = &report.twelfths_ms;
            assert!(twelfths[11] < 60_000, "it took {} ms", twelfths[11]);
            (twelfths[1], twelfths[11] - twelfths[9])
        };
        let (first, last) = storm();
        let is_steady = |first: u64, last: u64| 2 * last <= 3 * first;
        // Somebody else on the machine may have been busy; ports run out every time.
        let (first, last) = if is_steady(first, last) { (first, last) } else { storm() };
        assert!(is_steady(first, last), "the first 10,000 took {first} ms, the last {last} ms");
    }
}

#[test]
fn both_ends_see_the_addresses_they_would_see_without_a_mesh() {
    let mesh = Mesh::new();
    let (web, servers) = near_and_far(&mesh, |app| app.echoing_on(80));
    for server in &servers {
        for to in [server.at(80), server.at_v6(80), server.at_mapped(80)] {
            let dialled = web.dial_at(to).is_answered();
            assert_eq!(dialled.report().peer, Some(to), "the client's getpeername");
            let own = dialled.report().local.expect("a connected socket has an address");
            let seen = server.connections().pop().expect("the server accepted it");
            assert_eq!(canonical(seen.peer), canonical(own), "accept");
            assert_eq!(seen.peer_name.map(canonical), Some(canonical(own)), "getpeername of the server");
            assert_eq!(canonical(seen.local), canonical(to), "getsockname of the server");
        }
    }
}

#[test]
fn sockets_may_be_bound_non_blocking_and_connected_twice() {
    let mesh = Mesh::new();
    let (web, servers) = near_and_far(&mesh, |app| app.echoing_on(80));
    let kinds: [fn(&App, u16) -> SocketAddr; 3] = [App::at, App::at_v6, App::at_mapped];
    let cases = servers.iter().flat_map(|server| kinds.map(|at| (server, at)));
    for ((server, at), port) in cases.zip(4444..) {
        let to = at(server, 80);
        let base = Dial { send: "x\n".to_owned(), ..plain(to) };
        let late = web.dial_with(Dial { non_blocking: true, ..base.clone() }).is_answered();
        assert_eq!(late.report().peer, Some(to), "after a connect that did not block");
        let bound = web.dial_with(Dial { from: Some(at(&web, port)), ..base.clone() }).is_answered();
        assert_eq!(bound.report().local, Some(at(&web, port)), "bound before connect");
        // Its own port 9: refused by its own kernel, then the same socket goes elsewhere.
        let twice = web.dial_with(Dial { first_to: Some(at(&web, 9)), ..base }).is_answered();
        assert_eq!(twice.report().peer, Some(to), "connected twice");
    }
}

#[test]
fn half_closes_resets_and_a_server_that_speaks_first_pass_through() {
    let mesh = Mesh::new();
    let serve = |app: App| {
        app.serving(80, Behaviour::Sink)
            .serving(81, Behaviour::Greet("220 ready\n".to_owned()))
            .serving(82, Behaviour::Reset)
    };
    let (web, servers) = near_and_far(&mesh, serve);
    for server in &servers {
        web.sends_intact(server.at(80), 20_000_000);

        let greeted = web.opens(server.at(81));
        greeted.hears("220 ready\n").still_works();
        greeted.finishes();
        let end = greeted.end_within(Duration::from_secs(5));
        assert_eq!(end.map(|(end, _)| end), Some(End::Finished));

        let cut = web.opens(server.at(82));
        cut.still_works();
        cut.says("now\n");
        cut.is_cut_within(Duration::from_secs(5));
    }
}

/// The kernel forgets a socket that is reset: of those that have read an end and said none, how many are left in the pod.
fn half_closed(app: &App, count: usize) {
    eventually(&format!("{count} half-closed sockets in {}", app.name()), Duration::from_secs(5), || {
        let listed = app.run(&["ss", "-Htn", "state", "close-wait"]).stdout;
        let listed = String::from_utf8_lossy(&listed);
        if listed.lines().count() == count { Ok(()) } else { Err(listed.into_owned()) }
    });
}

#[test]
fn a_reset_after_an_end_passes_through_the_agent_while_the_other_side_is_silent() {
    let mesh = Mesh::with(Setup { settings: "  sameNode: encrypt\n".to_owned(), ..Setup::default() });
    let serve = |app: App| app.serving(80, Behaviour::Hold).serving(81, Behaviour::FinishThenReset);
    let (web, servers) = near_and_far(&mesh, serve);
    for server in &servers {
        let silent = web.opens(server.at(80));
        silent.finishes();
        half_closed(server, 1);
        silent.resets();
        half_closed(server, 0);

        let silent = web.opens(server.at(81));
        assert_eq!(silent.end_within(Duration::from_secs(5)).map(|(end, _)| end), Some(End::Finished));
        half_closed(&web, 1);
        silent.says("now\n");
        half_closed(&web, 0);
    }
}

#[test]
fn a_port_on_which_nobody_listens_is_refused() {
    let mesh = Mesh::new();
    let (web, servers) = near_and_far(&mesh, |app| app.echoing_on(80));
    for server in &servers {
        web.dial_at(server.at(9)).is_refused();
        web.dial_at(server.at_v6(9)).is_refused();
    }
}

#[test]
fn servers_are_reachable_exactly_where_they_are_bound() {
    let mesh = Mesh::new();
    let (web, servers) = near_and_far(&mesh, |app| app);
    for server in &servers {
        let bind = |address: SocketAddr, only_v6| {
            server.listen(&Listen { address, only_v6, reuse_port: false, behaviour: Behaviour::Echo });
        };
        bind(server.at(81), false);
        bind((Ipv6Addr::UNSPECIFIED, 82).into(), true);
        bind((Ipv4Addr::LOCALHOST, 83).into(), false);
        bind((Ipv6Addr::LOCALHOST, 84).into(), false);
        bind(server.at_v6(85), false);
        bind((Ipv6Addr::UNSPECIFIED, 86).into(), false);

        web.dial_at(server.at(81)).is_answered();
        web.dial_at(server.at_mapped(81)).is_answered();
        web.dial_at(server.at_v6(81)).is_refused();
        web.dial_at(server.at_v6(82)).is_answered();
        web.dial_at(server.at(82)).is_refused();
        web.dial_at(server.at_v6(85)).is_answered();
        web.dial_at(server.at(85)).is_refused();
        for everywhere in [server.at(86), server.at_v6(86), server.at_mapped(86)] {
            web.dial_at(everywhere).is_answered();
        }
        web.dial_at(server.at(83)).is_refused();
        web.dial_at(server.at_v6(84)).is_refused();
        // The server itself reaches its loopback as before.
        server.dial_at((Ipv4Addr::LOCALHOST, 83).into()).is_answered();
    }
}

#[test]
fn datagrams_are_left_alone() {
    let mesh = Mesh::new();
    let (web, servers) = near_and_far(&mesh, |app| app);
    for server in &servers {
        for (to, own) in [(server.at(5353), web.v4().into()), (server.at_v6(5353), IpAddr::from(web.v6()))] {
            let listener = server.place().namespace.inside(|| UdpSocket::bind(to).expect("a socket"));
            let answer = std::thread::spawn(move || {
                let mut buffer = [0; 64];
                let (length, from) = listener.recv_from(&mut buffer).expect("a datagram");
                listener.send_to(&buffer[..length], from).expect("the caller's address");
                from
            });

            let reply = web.client().ask(Command::Datagram { to, text: "query".to_owned() });

            let Reply::Datagram { peer, answer: text } = reply else { panic!("{reply:?}") };
            assert_eq!((peer, text.as_deref()), (to, Some("query")));
            assert_eq!(answer.join().expect("it answered").ip(), own);
        }
    }
}
