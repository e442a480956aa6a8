//! What passes between nodes: everything that members of the mesh say to each other is encrypted, and what is not is
//! what `meshctl sockets` lists and the story opened on purpose.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use mesh_tests::{
    Mesh, plain,
    protocol::{Behaviour, Command, Dial, Listen},
};

const MARKER: &str = "marker-4f1c";

/// A line that carries the marker, often enough that no segment boundary hides it.
fn telling() -> String {
    format!("{}\n", MARKER.repeat(64))
}

#[test]
fn what_members_of_the_mesh_say_to_each_other_never_passes_in_the_clear() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a").echoing_on(80);
    let far = mesh.app("far").on("node-b").echoing_on(80).serving(81, Behaviour::Sink);
    let service = mesh.service("far").port(80, 80).selecting("app", "far");
    let capture = mesh.link().capture(&[MARKER]);
    let before = mesh.link().passed();

    for to in [far.at(80), far.at_v6(80), far.at_mapped(80), service.at(80), service.at_v6(80)] {
        web.dial_with(Dial { send: telling(), ..plain(to) }).is_answered();
    }
    far.dial_with(Dial { send: telling(), ..plain(web.at(80)) }).is_answered();
    web.sends_intact(far.at(81), 50_000_000);
    capture.settle();

    assert_eq!(capture.flows_with(MARKER), []);
    let members = [web.addresses(), far.addresses()].concat();
    assert_eq!(capture.payload_outside(15008, &members), []);
    assert!(capture.payload_on(15008) > 50_000_000, "the capture saw the tunnels");
    let passed = mesh.link().passed();
    assert_eq!(passed.clear, before.clear);
    assert!(passed.encrypted > before.encrypted);
    let versions = capture.tls_versions(15008);
    assert!(!versions.is_empty());
    assert!(versions.iter().all(|(_, version)| *version == Some(0x0304)), "{versions:?}");
}

#[test]
fn connections_in_the_clear_are_those_that_are_listed_as_such() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let stranger = mesh.app("stranger").not_enrolled().on("node-b").echoing_on(80);
    let outside = SocketAddr::from((mesh.outside_addresses().v4, 80));
    mesh.stranger().ask(Command::Listen(Listen {
        address: outside,
        only_v6: false,
        reuse_port: false,
        behaviour: Behaviour::Echo,
    }));
    let capture = mesh.link().capture(&[MARKER]);

    let encrypted = web.opens(far.at(80));
    let to_stranger = web.opens(stranger.at(80));
    let passthrough = web.opens(outside);
    for conversation in [&encrypted, &to_stranger, &passthrough] {
        conversation.says(&telling()).hears(&telling());
    }
    let from_outside = mesh.stranger().opens(far.at(80));
    from_outside.says(&telling()).hears(&telling());
    capture.settle();

    // Who called which server; the agent dials on with a port of its own.
    let on_purpose = BTreeSet::from([
        (to_stranger.local().ip(), stranger.at(80)),
        (passthrough.local().ip(), outside),
        (from_outside.local().ip(), far.at(80)),
    ]);
    let members: Vec<IpAddr> = [web.addresses(), far.addresses()].concat();
    let seen = capture.payload_outside(15008, &members).into_iter().map(|(flow, _)| match flow.destination.port() {
        80 => (flow.source.ip(), flow.destination),
        _ => (flow.destination.ip(), flow.source),
    });
    assert_eq!(seen.collect::<BTreeSet<_>>(), on_purpose, "on the wire");

    let rows = mesh.nodes().iter().flat_map(|node| node.admin().sockets().expect("sockets"));
    let clear = rows.filter(|row| matches!(row.path.as_str(), "passthrough" | "plaintext"));
    let address = |text: &str| text.parse::<SocketAddr>().expect("ip:port");
    let listed: BTreeSet<_> =
        clear.map(|row| (address(&row.source).ip(), address(&row.original_destination))).collect();
    assert_eq!(listed, on_purpose, "in `meshctl sockets`");
}

#[test]
fn a_strict_workload_takes_at_most_the_first_bytes_of_a_caller_outside_the_mesh() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    mesh.apply(
        "strict.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: default, name: strict}\n\
         spec:\n  mtls: {mode: STRICT}\n",
    );
    mesh.settle();
    let dial = || mesh.stranger().dial(Dial { send: telling(), ..plain(far.at(80)) });
    mesh_tests::eventually("plaintext is refused", mesh_tests::LIMIT, || {
        let dialled = dial();
        if dialled.was_refused() { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
    });
    let before = far.connections().len();
    let node = mesh.node("node-b");
    let labels = [("response_flags", "DENY"), ("destination_workload", "far"), ("source_principal", "unknown")];
    node.counted("istio_tcp_connections_failed_total", 1, &labels);
    let capture = mesh.link().capture(&[]);

    dial().is_refused();
    capture.settle();

    assert_eq!(far.connections().len(), before);
    let from_app: Vec<_> = capture
        .payload_outside(15008, &far.addresses())
        .into_iter()
        .filter(|(flow, _)| flow.source.ip() == IpAddr::from(far.v4()))
        .collect();
    assert_eq!(from_app, [], "nothing was answered");
    node.counted("istio_tcp_connections_failed_total", 2, &labels);
}
