//! Bad ways between nodes: narrow, long, lossy, broken for a while, and broken for good.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use mesh_tests::{
    App, LIMIT, Mesh, Setup, eventually,
    process::printed,
    protocol::{Behaviour, Command, End, Reply},
};

const ECHO: u16 = 80;
const SINK: u16 = 81;
/// How long a link may be broken without a stream's being lost, and how soon a node that has gone is known to have.
const HALF_A_MINUTE: Duration = Duration::from_secs(30);
const A_MINUTE: Duration = Duration::from_secs(60);

fn app(mesh: &Mesh, name: &str, node: &str) -> App {
    mesh.app(name).on(node).echoing_on(ECHO).serving(SINK, Behaviour::Sink)
}

#[test]
fn over_a_narrow_and_then_a_long_and_lossy_way_everything_arrives_as_it_was_sent() {
    let mesh = Mesh::new();
    let (web, far) = (app(&mesh, "web", "node-a"), app(&mesh, "far", "node-b"));

    mesh.link().narrows_to(1400);
    for (from, to) in [(&web, far.at(SINK)), (&web, far.at_v6(SINK)), (&far, web.at(SINK))] {
        from.sends_intact(to, 8_000_000);
    }
    let route = printed(&web.run(&["ip", "route", "get", &far.v4().to_string()]));
    assert!(route.contains("mtu 1400"), "the way is as narrow as it was made: {route}");

    let weather = mesh.link().degraded(0.02, Duration::from_millis(50));
    let kept = web.opens(far.at(ECHO));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| web.sends_intact(far.at(SINK), 100_000));
            scope.spawn(|| far.sends_intact(web.at(SINK), 100_000));
        }
        for _ in 0..8 {
            kept.still_works();
            far.dial(&web).is_answered();
        }
    });
    let (carried, lost) = weather.packets();
    assert!(lost * 200 > carried, "of {carried} packets {lost} were lost: this was no bad weather");
    drop(weather);
    kept.still_works();
}

#[test]
fn callers_of_a_pod_that_is_withdrawn_are_told_within_one_round_trip() {
    let mesh = Mesh::new();
    let (web, far) = (app(&mesh, "web", "node-a"), app(&mesh, "far", "node-b"));
    let one_way = Duration::from_millis(200);
    let conversations: Vec<_> = (0..8).map(|_| web.opens(far.at(ECHO))).collect();
    for conversation in &conversations {
        conversation.still_works();
    }
    let _weather = mesh.link().degraded(0.0, one_way);

    thread::scope(|scope| {
        let begun = Instant::now();
        let ends: Vec<_> = conversations
            .iter()
            .map(|conversation| scope.spawn(move || (conversation.end_within(LIMIT), begun.elapsed())))
            .collect();
        mesh.node("node-b").admin().withdraw(far.uid()).expect("it is enrolled");
        for end in ends {
            let (end, after) = end.join().expect("it waited");
            assert!(matches!(end, Some((End::Failed(libc::ECONNRESET), _))), "{end:?}");
            assert!(after < 2 * one_way, "told after {after:?}");
        }
    });
}

/// Whether what was sent is what was read, and how long it took.
fn uploads(web: &App, to: SocketAddr) -> (bool, Duration) {
    match web.client().ask(Command::Transfer { to, bytes: 50_000_000 }) {
        Reply::Transfer { is_intact, took_ms } => (is_intact, Duration::from_millis(took_ms)),
        other => panic!("not an answer to transfer: {other:?}"),
    }
}

/// Two promises about time, each on nodes of its own, share the minute that the longer of them takes.
#[test]
fn a_link_broken_for_half_a_minute_costs_no_stream_and_a_node_that_vanishes_is_found_within_one() {
    let nodes = ["node-a", "node-b", "node-c", "node-d"].map(str::to_owned).into();
    let mesh = Mesh::with(Setup { nodes, ..Setup::default() });
    let web = mesh.app("web").on("node-a");
    let unplugged = app(&mesh, "unplugged", "node-b");
    let silenced = app(&mesh, "silenced", "node-c");
    let vanished = app(&mesh, "vanished", "node-d");
    let kept = [&unplugged, &silenced].map(|app| web.opens(app.at(ECHO)));
    let lost = web.opens(vanished.at(ECHO));
    for conversation in kept.iter().chain([&lost]) {
        conversation.still_works();
    }
    let link = mesh.link();
    let node_b = mesh.node("node-b");

    thread::scope(|scope| {
        let uploads = [&unplugged, &silenced].map(|app| {
            let to = app.at(SINK);
            let web = &web;
            scope.spawn(move || uploads(web, to))
        });
        for app in [&unplugged, &silenced] {
            eventually("the upload has begun", LIMIT, || match app.connections().len() {
                2 => Ok(()),
                connections => Err(format!("{connections} connections")),
            });
        }
        let begun = Instant::now();
        link.goes_down(node_b.name());
        link.silences(&["node-c", "node-d"]);
        let told = scope.spawn(|| lost.end_within(A_MINUTE));
        thread::sleep(HALF_A_MINUTE.saturating_sub(begun.elapsed()));
        link.comes_up(node_b.name(), node_b.addresses());
        link.silences(&["node-d"]);

        for upload in uploads {
            let (is_intact, took) = upload.join().expect("no stream is lost");
            assert!(is_intact && took >= HALF_A_MINUTE, "intact: {is_intact}, took {took:?}");
        }
        for conversation in &kept {
            conversation.still_works();
        }
        let end = told.join().expect("it waited");
        assert!(matches!(end, Some((End::Failed(libc::ECONNRESET), _))), "of the node that vanished: {end:?}");
    });
}
