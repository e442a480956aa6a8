//! `meshctl sockets`: every column of every row, compared with what a story opened and with what the kernel's own tool says
//! about the sockets of the applications.

use std::{net::SocketAddr, time::Instant};

use mesh_tests::{
    App, LIMIT, Mesh,
    client::Client,
    conversation::Conversation,
    eventually, identity,
    node::Node,
    peer::{self, Asked},
    plain,
    process::printed,
    protocol::{Behaviour, Command, Dial, Listen},
};
use serde_json::{Value, json};

/// What every server of these stories says first; what comes back differs in length from what is sent.
const GREETING: &str = "welcome\n";
const LINE: &str = "a line that the server sends back\n";
/// As the client's end counts them.
const SENT: usize = LINE.len();
const RECEIVED: usize = GREETING.len() + LINE.len();
const CIPHER: &str = "TLS13_AES_128_GCM_SHA256";

fn greeting() -> Behaviour {
    Behaviour::Greet(GREETING.to_owned())
}

/// A conversation, with the times between which it was opened and had said everything.
struct Talk {
    conversation: Conversation,
    begun: Instant,
    said: Instant,
}

impl Talk {
    fn new(open: impl FnOnce() -> Conversation) -> Self {
        let begun = Instant::now();
        let conversation = open();
        conversation.hears(GREETING).says(LINE).hears(LINE);
        Self { conversation, begun, said: Instant::now() }
    }

    fn source(&self) -> SocketAddr {
        self.conversation.local()
    }
}

/// The application's socket as `ss` shows it.
struct Socket {
    cookie: u64,
    peer_port: u16,
    retransmits: u64,
}

/// The established socket of a pod's application with this port of its own.
fn kernel_socket(app: &App, port: u16) -> Socket {
    let listing = printed(&app.run(&["ss", "-H", "-t", "-n", "-e", "-p", "-i", "-O", "state", "established"]));
    let process = format!("pid={},", app.client().id());
    let of = |address: &str| address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let mut lines = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| of(words[2]) == Some(port) && words.iter().any(|word| word.contains(&process)));
    let words = line.unwrap_or_else(|| panic!("no socket of {} with port {port}:\n{listing}", app.name()));
    let after = |prefix: &str| words.iter().find_map(|word| word.strip_prefix(prefix));
    Socket {
        cookie: u64::from_str_radix(after("sk:").expect("a cookie"), 16).expect("a hexadecimal number"),
        peer_port: of(words[3]).expect("a port"),
        retransmits: after("retrans:")
            .and_then(|counts| counts.split_once('/'))
            .map_or(0, |(_, total)| total.parse().expect("a number")),
    }
}

/// The same row with other values in some columns.
fn but(row: &Value, columns: Value) -> Value {
    let mut row = row.clone();
    let (Value::Object(all), Value::Object(changed)) = (&mut row, columns) else { panic!("rows are objects") };
    all.extend(changed);
    row
}

fn is_of(row: &Value, pod: &str, direction: &str, source: &str) -> bool {
    row["pod"] == pod && row["direction"] == direction && row["source"] == source
}

/// Compares every column of the row of one end: what `expected` says, and what can only be measured.
#[track_caller]
fn is_listed(node: &Node, app: &App, talk: &Talk, expected: &Value) {
    let (direction, source) = (expected["direction"].as_str().expect("a text"), talk.source());
    let (row, asked) = eventually(&format!("{direction} {source} of {} with all bytes", app.name()), LIMIT, || {
        let asked = Instant::now();
        let rows = node.meshctl_json(&["sockets"]);
        let mut rows = rows["sockets"].as_array().expect("a list").iter();
        let found = rows.find(|row| is_of(row, &app.full_name(), direction, &source.to_string()));
        let found = found.filter(|row| ["bytes_sent", "bytes_received"].iter().all(|of| row[of] == expected[of]));
        found.map(|row| (row.clone(), asked)).ok_or_else(|| printed(&node.meshctl(&["-o", "wide", "sockets"])))
    });
    let port = match direction {
        "outbound" => source.port(),
        _ => address(&expected["endpoint"]).port(),
    };
    let socket = kernel_socket(app, port);
    let process = format!("mesh-app[{}]", app.client().id());
    let told = but(
        expected,
        json!({
            "pod": app.full_name(), "process": process, "source": source.to_string(), "cookie": socket.cookie,
            "retransmits": socket.retransmits, "rtt_us": row["rtt_us"], "age_ms": row["age_ms"],
        }),
    );
    assert_eq!(row, told, "left: as listed; right: as it is");
    let (least, most) = (asked.duration_since(talk.said), talk.begun.elapsed());
    let (age_ms, rtt_us) = (row["age_ms"].as_u64().expect("a number"), row["rtt_us"].as_u64().expect("a number"));
    assert!((least.as_millis()..=most.as_millis()).contains(&age_ms.into()), "{age_ms} ms, {least:?} to {most:?}");
    assert!(rtt_us > 0 && rtt_us < 1_000_000, "a round trip of {rtt_us} us");
}

fn address(text: &Value) -> SocketAddr {
    text.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{text} is no ip:port"))
}

/// The far end's row: the same connection, seen from the pod that was called.
fn inbound(outbound: &Value) -> Value {
    let (sent, received) = (&outbound["bytes_received"], &outbound["bytes_sent"]);
    but(outbound, json!({"direction": "inbound", "bytes_sent": sent, "bytes_received": received}))
}

fn is_through_the_agent(app: &App, talk: &Talk) -> bool {
    kernel_socket(app, talk.source().port()).peer_port == 15001
}

/// Until the kernel has been told that policy allows it, the agent carries what may go direct.
fn goes_direct(app: &App, to: SocketAddr) {
    eventually(&format!("{} reaches {to} directly", app.name()), LIMIT, || {
        let talk = Talk::new(|| app.opens(to));
        if is_through_the_agent(app, &talk) { Err("the agent carries it".to_owned()) } else { Ok(()) }
    });
}

/// What is common to all connections of `source` that are listed while they are open.
fn open_row(source: &App) -> Value {
    json!({
        "direction": "outbound", "service": null, "source_identity": source.identity(),
        "destination_identity": null, "connection_security_policy": "none", "cipher": null, "policy": null,
        "reason": null, "bytes_sent": SENT, "bytes_received": RECEIVED,
    })
}

#[test]
fn a_connection_between_nodes_is_listed_at_both_ends_as_it_is() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").serving(80, greeting()).serving(81, greeting());
    let service = mesh.service("far").port(8000, 81).selecting("app", "far");
    mesh.policy("web-may").on(&far).allow(identity("ns/default/sa/web"));
    let base = but(
        &open_row(&web),
        json!({"path": "hbone", "destination_identity": far.identity(), "connection_security_policy": "mutual_tls",
               "cipher": CIPHER}),
    );
    let name = "default/far.default.svc.cluster.local";
    for (dialled, endpoint, service) in [(far.at(80), far.at(80), None), (service.at(8000), far.at(81), Some(name))] {
        let talk = Talk::new(|| web.opens(dialled));
        let row = but(&base, json!({"original_destination": dialled, "endpoint": endpoint}));
        is_listed(mesh.node("node-a"), &web, &talk, &but(&row, json!({"service": service})));
        // The tunnel asks for the endpoint: what was dialled for it is not known there.
        let there = but(&inbound(&row), json!({"original_destination": endpoint, "policy": "default/web-may"}));
        is_listed(mesh.node("node-b"), &far, &talk, &there);
    }
}

#[test]
fn a_connection_within_a_node_is_listed_at_both_ends_as_it_is() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a").serving(84, greeting());
    let near = mesh.app("near").on("node-a");
    let near = [80, 81, 82].into_iter().fold(near, |near, port| near.serving(port, greeting()));
    let direct = mesh.service("direct").port(8000, 81).selecting("app", "near");
    // Affinity is kept by the agent, so this service does not go direct.
    let sticky = mesh.service("sticky").port(8000, 82).with("  sessionAffinity: ClientIP\n").selecting("app", "near");
    mesh.policy("web-may").on(&near).allow(identity("ns/default/sa/web"));
    let node = mesh.node("node-a");
    let base = but(
        &open_row(&web),
        json!({"path": "node_local", "destination_identity": near.identity(), "policy": "default/web-may",
               "connection_security_policy": "node_local"}),
    );
    goes_direct(&web, near.at(80));
    let named = |service: &str| Some(format!("default/{service}.default.svc.cluster.local"));
    for (dialled, endpoint, service, by_agent) in [
        (near.at(80), near.at(80), None, false),
        (direct.at(8000), near.at(81), named("direct"), false),
        (sticky.at(8000), near.at(82), named("sticky"), true),
    ] {
        let talk = Talk::new(|| web.opens(dialled));
        assert_eq!(is_through_the_agent(&web, &talk), by_agent, "{dialled}");
        let columns = json!({"original_destination": dialled, "endpoint": endpoint, "service": service});
        let row = but(&base, columns);
        is_listed(node, &web, &talk, &row);
        is_listed(node, &near, &talk, &inbound(&row));
    }
    let talk = Talk::new(|| web.opens(web.at(84)));
    let columns = json!({"path": "self", "original_destination": web.at(84), "endpoint": web.at(84),
                         "destination_identity": web.identity(), "policy": null});
    let row = but(&base, columns);
    is_listed(node, &web, &talk, &row);
    is_listed(node, &web, &talk, &inbound(&row));
}

#[test]
fn a_connection_in_the_clear_is_listed_as_it_is_and_why() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let web = mesh.app("web").on("node-a").serving(81, greeting());
    let stranger = mesh.app("stranger").not_enrolled().on("node-b").serving(80, greeting());
    let outside = SocketAddr::from((mesh.outside_addresses().v4, 80));
    let listen = Listen { address: outside, only_v6: false, reuse_port: false, behaviour: greeting() };
    mesh.stranger().ask(Command::Listen(listen));
    let node = mesh.node("node-a");

    for (to, path, reason) in [(stranger.at(80), "plaintext", "not_in_mesh"), (outside, "passthrough", "external")] {
        let talk = Talk::new(|| web.opens(to));
        let columns = json!({"path": path, "original_destination": to, "endpoint": to, "reason": reason});
        is_listed(node, &web, &talk, &but(&open_row(&web), columns));
    }
    mesh.settle();
    let talk = Talk::new(|| mesh.stranger().opens(web.at(81)));
    let columns = json!({
        "path": "plaintext", "original_destination": web.at(81), "endpoint": web.at(81), "reason": "permissive",
        "source_identity": null, "destination_identity": web.identity(),
    });
    is_listed(node, &web, &talk, &inbound(&but(&open_row(&web), columns)));
}

#[test]
fn segments_that_were_sent_again_are_counted() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let near = mesh.app("near").on("node-a").serving(80, greeting());
    goes_direct(&web, near.at(80));
    let talk = Talk::new(|| web.opens(near.at(80)));
    let loss = "table inet loss { chain input { type filter hook input priority filter; tcp dport 80 drop; }; }";
    near.place().namespace.nft(loss);
    talk.conversation.says(LINE);
    let source = talk.source().to_string();
    eventually("segments are sent again", LIMIT, || {
        let listed = mesh.node("node-a").meshctl_json(&["sockets"]);
        let mut rows = listed["sockets"].as_array().expect("a list").iter();
        let row = rows.find(|row| is_of(row, "default/web", "outbound", &source)).expect("an open connection");
        match (row["retransmits"].as_u64(), kernel_socket(&web, talk.source().port()).retransmits) {
            (Some(listed), kernel) if listed > 0 && listed == kernel => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    near.place().namespace.nft("delete table inet loss");
    talk.conversation.hears(LINE);
}

/// The row of a refusal, every column compared but its age, which is below the time since `begun`.
#[track_caller]
fn is_listed_as_refused(node: &Node, begun: Instant, expected: &Value) {
    let nothing = json!({
        "process": null, "path": "denied", "service": null, "cipher": null, "destination_identity": null,
        "policy": null, "bytes_sent": 0, "bytes_received": 0, "rtt_us": 0, "retransmits": 0, "cookie": 0,
    });
    let expected = but(&nothing, expected.clone());
    eventually(&format!("{expected:#} is listed on {}", node.name()), LIMIT, || {
        let listed = node.meshctl_json(&["sockets", "--why-denied"]);
        let rows = listed["sockets"].as_array().expect("a list");
        let is_it = |row: &&Value| {
            let age_ms = row["age_ms"].as_u64().map(u128::from);
            age_ms.is_some_and(|age| age <= begun.elapsed().as_millis())
                && **row == but(&expected, json!({"age_ms": row["age_ms"]}))
        };
        rows.iter().find(is_it).map(|_| ()).ok_or_else(|| format!("{rows:#?}"))
    });
    let table = printed(&node.meshctl(&["sockets", "--why-denied"]));
    let shown = ["pod", "original_destination", "reason"].map(|column| expected[column].as_str().expect("a text"));
    assert!(
        table.lines().any(|line| shown.iter().all(|text| line.contains(text))),
        "{shown:?} in one line of\n{table}"
    );
}

/// Refused after `connect` had succeeded; the client's own address.
fn refused(client: &Client, to: SocketAddr) -> SocketAddr {
    let dialled = client.dial(Dial { send: "ping\n".to_owned(), ..plain(to) }).is_refused();
    dialled.report().local.expect("it was connected")
}

#[test]
fn a_connection_that_policy_denied_is_listed_with_its_ends_and_the_policy() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let near = mesh.app("near").on("node-a").echoing_on(80);
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let sticky = mesh.service("sticky").port(8000, 80).with("  sessionAffinity: ClientIP\n").selecting("app", "near");
    for app in [&near, &far] {
        mesh.policy(&format!("{}-not-web", app.name())).on(app).deny(identity("ns/default/sa/web"));
    }
    mesh.settle();
    let (node_a, node_b) = (mesh.node("node-a"), mesh.node("node-b"));
    let begun = Instant::now();
    let outbound = json!({"pod": "default/web", "direction": "outbound", "source_identity": web.identity()});

    let source = refused(web.client(), far.at(80));
    let row = but(
        &outbound,
        json!({"source": source, "original_destination": far.at(80), "endpoint": far.at(80),
               "connection_security_policy": "mutual_tls"}),
    );
    is_listed_as_refused(node_a, begun, &but(&row, json!({"reason": "DENY"})));
    let there = json!({"pod": "default/far", "direction": "inbound", "destination_identity": far.identity(),
                       "policy": "default/far-not-web", "reason": "denied_by_policy", "cipher": CIPHER});
    is_listed_as_refused(node_b, begun, &but(&row, there));

    let by_policy = json!({"endpoint": near.at(80), "destination_identity": near.identity(),
                           "policy": "default/near-not-web", "reason": "denied_by_policy"});
    let base = but(&outbound, by_policy);
    let source = refused(web.client(), sticky.at(8000));
    let by_agent = json!({"source": source, "original_destination": sticky.at(8000),
                          "service": "default/sticky.default.svc.cluster.local",
                          "connection_security_policy": "node_local"});
    is_listed_as_refused(node_a, begun, &but(&base, by_agent));

    web.dial(&near).is_refused();
    // The kernel refused it in `connect`, when it had no port yet.
    let by_kernel = json!({"source": format!("{}:0", web.v4()), "original_destination": near.at(80),
                           "connection_security_policy": "none"});
    is_listed_as_refused(node_a, begun, &but(&base, by_kernel));
}

#[test]
fn a_connection_that_failed_early_is_listed_with_its_pod_and_destination() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let begun = Instant::now();
    let mut unknown = far.at(80);
    unknown.set_ip(std::net::Ipv4Addr::from_bits(far.v4().to_bits() + 100).into());

    let source = refused(web.client(), unknown);
    let row = json!({
        "pod": "default/web", "direction": "outbound", "source": source, "source_identity": web.identity(),
        "original_destination": unknown, "endpoint": null, "connection_security_policy": "none",
        "reason": "UNKNOWN_DESTINATION",
    });
    is_listed_as_refused(mesh.node("node-a"), begun, &row);

    let asked = Asked { method: http::Method::CONNECT, authority: far.at(80).to_string() };
    let place = mesh.outside().namespace.clone();
    let without = peer::ask(&place, far.at(15008), None, &asked);
    without.expect_err("nobody without a certificate is served");
    let node = mesh.node("node-b");
    eventually("the handshake that failed is listed", LIMIT, || {
        let listed = node.meshctl_json(&["sockets", "--why-denied"]);
        let rows = listed["sockets"].as_array().expect("a list");
        let is_it = |row: &&Value| {
            row["reason"] == "TLS_FAILURE" && row["pod"] == "default/far" && row["direction"] == "inbound"
        };
        let row = rows.iter().find(is_it).ok_or_else(|| format!("{rows:#?}"))?;
        assert_eq!(address(&row["source"]).ip(), mesh.outside_addresses().v4);
        assert_eq!((&row["original_destination"], &row["endpoint"]), (&json!(far.at(15008)), &json!(far.at(15008))));
        assert_eq!((&row["source_identity"], &row["cipher"]), (&Value::Null, &Value::Null));
        Ok(())
    });
}
