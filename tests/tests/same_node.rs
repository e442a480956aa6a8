//! `sameNode: encrypt`: nothing goes straight from app to app any more. What is on one node passes the agent, which judges
//! every connection by itself, and everything that shows connections says so.

use std::time::Duration;

use mesh_tests::{App, LIMIT, Mesh, Setup, conversation::Conversation, eventually, identity, node::Node};

const ENCRYPT: &str = "  sameNode: encrypt\n";

/// How often the hooks of a node did this.
fn steered(node: &Node, reason: &str) -> f64 {
    node.metrics().sum("mesh_steering_total", &[("reason", reason)])
}

/// Connections that the hooks of a node let through without the agent, seen from both ends.
fn direct(node: &Node) -> f64 {
    steered(node, "outbound_direct") + steered(node, "inbound_direct")
}

fn web_and_near(mesh: &Mesh) -> (App, App) {
    (mesh.app("web").on("node-a"), mesh.app("near").on("node-a").echoing_on(80))
}

#[test]
fn where_the_direct_path_is_off_everything_on_one_node_passes_the_agent_and_is_shown_as_such() {
    let mesh = Mesh::with(Setup { settings: ENCRYPT.to_owned(), ..Setup::default() });
    let (web, near) = web_and_near(&mesh);
    let service = mesh.service("front").port(90, 80).selecting("app", "near");
    mesh.policy("web-may").on(&near).allow(identity("ns/default/sa/web"));
    mesh.settle();
    let node = mesh.node("node-a");
    let by_agent = steered(node, "outbound_agent");

    let dialled = [near.at(80), near.at_v6(80), near.at_mapped(80), service.at(90), service.at_v6(90)];
    let open: Vec<Conversation> = dialled.iter().map(|to| web.opens(*to)).collect();
    for conversation in &open {
        conversation.still_works();
    }

    assert_eq!(direct(node), 0.0, "a connection went direct");
    assert_eq!(steered(node, "outbound_agent") - by_agent, 5.0);
    let rows = node.admin().sockets().expect("the agent lists sockets");
    assert_eq!(rows.len(), 10, "one row for each end: {rows:#?}");
    for row in &rows {
        let shown = (row.path.as_str(), row.connection_security_policy.as_str(), row.cipher.as_str());
        // It does not leave the node, and nothing that is not encrypted is called so.
        assert_eq!(shown, ("node_local", "node_local", ""), "{row:?}");
        assert_eq!(row.policy, "default/web-may", "each is judged: {row:?}");
        assert_eq!(
            (row.source_identity.as_str(), row.destination_identity.as_str()),
            (&*web.identity(), &*near.identity())
        );
        assert!(row.bytes_sent >= 17 && row.bytes_received >= 17, "{row:?}");
    }
    let explained = node.admin().explain("default/web", "default/near", 80).expect("an answer");
    assert_eq!((explained.verdict.as_str(), explained.path.as_str()), ("allowed", "node_local"));
    for reporter in ["source", "destination"] {
        let labels = [("reporter", reporter), ("source_workload", "web"), ("connection_security_policy", "node_local")];
        node.counted("istio_tcp_connections_opened_total", 5, &labels);
    }
    let seen: Vec<_> = near.connections().iter().map(|seen| seen.peer.ip().to_canonical()).collect();
    assert!(seen.iter().all(|ip| web.addresses().contains(ip)), "the server sees the client: {seen:?}");

    // They really hang on the agent: when it dies they end, and no new one gets past it.
    node.kill_agent();
    for conversation in &open {
        conversation.is_cut_within(Duration::from_secs(1));
    }
    web.dial(&near).is_refused();
}

#[test]
fn where_the_direct_path_is_off_policy_is_judged_for_each_connection_and_again_while_it_lives() {
    let mesh = Mesh::with(Setup { settings: ENCRYPT.to_owned(), ..Setup::default() });
    let (web, near) = web_and_near(&mesh);
    let near = near.echoing_on(81);
    let api = mesh.app("api").on("node-a");
    mesh.policy("not-web-on-81").on(&near).apply(
        "DENY",
        "  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/web]}}], to: [{operation: {ports: ['81']}}]}]\n",
    );
    let node = mesh.node("node-a");

    web.dial_at(near.at(81)).is_refused();
    api.dial_at(near.at(81)).is_answered();
    let (of_web, of_api) = (web.opens(near.at(80)), api.opens(near.at(80)));
    of_web.still_works();
    assert_eq!(near.connections().len(), 3, "the refused one never came");
    let refused = node.admin().sockets().expect("the agent lists sockets").into_iter().find(|row| row.path == "denied");
    let refused = refused.expect("the refusal is listed");
    assert_eq!((refused.pod.as_str(), refused.policy.as_str()), ("default/web", "default/not-web-on-81"));

    mesh.policy("not-web").on(&near).deny(identity("ns/default/sa/web"));
    of_web.is_cut_within(Duration::from_secs(1));
    of_api.still_works();
    assert_eq!(direct(node), 0.0);
}

#[test]
fn turning_the_direct_path_off_ends_what_is_direct_and_turning_it_on_again_ends_nothing() {
    let mesh = Mesh::new();
    let (web, near) = web_and_near(&mesh);
    let node = mesh.node("node-a");
    let live = web.opens(near.at(80));
    live.still_works();
    assert_eq!(direct(node), 2.0, "both ends of one direct connection");

    mesh.set(ENCRYPT);
    live.is_cut_within(Duration::from_secs(1));
    let by_agent = web.opens(near.at(80));
    by_agent.still_works();
    assert_eq!(direct(node), 2.0, "the next one passes the agent");

    mesh.set("");
    eventually("new connections go direct again", LIMIT, || {
        let before = direct(node);
        web.dial(&near).is_answered();
        if direct(node) - before == 2.0 { Ok(()) } else { Err("by the agent".to_owned()) }
    });
    by_agent.still_works();
}

#[test]
fn a_handshake_that_ends_after_its_pair_was_denied_is_cut_within_a_second() {
    let mesh = Mesh::new();
    let (web, near) = web_and_near(&mesh);
    let node = mesh.node("node-a");
    let nft = |rule: &str| assert!(web.run(&["nft", rule]).status.success(), "{rule}");
    // The SYN arrives, and is judged; its answer does not.
    nft("add table inet hold; add chain inet hold in { type filter hook input priority 0; }; \
         add rule inet hold in tcp flags & (syn | ack) == syn | ack drop");
    let late = std::thread::scope(|scope| {
        let dialling = scope.spawn(|| web.opens(near.at(80)));
        eventually("the SYN has arrived", LIMIT, || {
            let listed = near.run(&["ss", "-Htn", "state", "syn-recv"]).stdout;
            if listed.is_empty() { Err("none".to_owned()) } else { Ok(()) }
        });
        mesh.policy("not-web").on(&near).deny(identity("ns/default/sa/web"));
        web.dial(&near).is_refused();
        nft("delete table inet hold");
        dialling.join().expect("the handshake ends")
    });
    late.is_cut_within(Duration::from_secs(1));
    let rows = node.admin().sockets().expect("the agent lists sockets");
    assert!(rows.iter().all(|row| row.path == "denied"), "neither end is left: {rows:#?}");
}
