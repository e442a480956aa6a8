//! `meshctl`, and what it lists, compared with what a story opened.

use std::{collections::BTreeMap, net::SocketAddr, process::Output};

use mesh_api::proto::admin::SocketRow;
use mesh_tests::{
    App, LIMIT, Mesh,
    conversation::Conversation,
    eventually, identity,
    node::Node,
    protocol::{Behaviour, Command, Listen},
};

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `explain` prints, and whether its exit code says yes.
fn explain(node: &Node, source: &str, destination: &str) -> (serde_json::Value, bool) {
    let output = node.meshctl(&["-o", "json", "explain", source, destination]);
    let shown = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not JSON: {error}: {shown}"));
    (answer, output.status.success())
}

/// The row of a connection on the node of one of its ends.
fn row(node: &Node, conversation: &Conversation, direction: &str) -> SocketRow {
    eventually(&format!("{direction} {:?} is listed on {}", conversation.local(), node.name()), LIMIT, || {
        let rows = node.admin().sockets().map_err(|status| status.to_string())?;
        let is_it = |row: &&SocketRow| row.source == conversation.local().to_string() && row.direction == direction;
        rows.iter().find(is_it).cloned().ok_or_else(|| format!("{rows:#?}"))
    })
}

struct Expected<'a> {
    path: &'a str,
    destination: SocketAddr,
    endpoint: SocketAddr,
    server: Option<&'a App>,
    security: &'a str,
    is_encrypted: bool,
    reason: &'a str,
}

fn compare(row: &SocketRow, web: &App, expected: &Expected<'_>) {
    let Expected { path, destination, endpoint, server, security, is_encrypted, reason } = expected;
    let identity = server.map(App::identity).unwrap_or_default();
    assert_eq!(row.pod, web.full_name());
    assert_eq!(row.process, format!("mesh-app[{}]", web.client().id()));
    assert_eq!(row.path, *path);
    assert_eq!(row.original_destination, destination.to_string());
    assert_eq!(row.endpoint, endpoint.to_string());
    assert_eq!(row.source_identity, web.identity());
    assert_eq!(row.destination_identity, identity);
    assert_eq!(row.connection_security_policy, *security);
    assert_eq!(!row.cipher.is_empty(), *is_encrypted, "{}", row.cipher);
    assert_eq!(row.reason, *reason);
    assert!(row.bytes_sent >= 17 && row.bytes_received >= 17, "{row:?}");
    assert!(row.age_ms < 60_000);
}

#[test]
fn sockets_shows_every_connection_as_it_is() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let web = mesh.app("web").on("node-a").serving(81, Behaviour::Echo);
    let near = mesh.app("near").on("node-a").echoing_on(80);
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let stranger = mesh.app("stranger").not_enrolled().on("node-b").echoing_on(80);
    // Affinity is kept by the agent, so this service does not go direct.
    let sticky = mesh.service("sticky").port(80, 80).with("  sessionAffinity: ClientIP\n").selecting("app", "near");
    let outside = SocketAddr::from((mesh.outside_addresses().v4, 80));
    let listen = Listen { address: outside, only_v6: false, reuse_port: false, behaviour: Behaviour::Echo };
    mesh.stranger().ask(Command::Listen(listen));
    mesh.policy("web-may").on(&far).allow(identity("ns/default/sa/web"));

    let base = Expected {
        path: "",
        destination: outside,
        endpoint: outside,
        server: None,
        security: "none",
        is_encrypted: false,
        reason: "",
    };
    let cases = [
        Expected {
            path: "hbone",
            destination: far.at(80),
            endpoint: far.at(80),
            server: Some(&far),
            security: "mutual_tls",
            is_encrypted: true,
            ..base
        },
        Expected {
            path: "node_local",
            destination: near.at(80),
            endpoint: near.at(80),
            server: Some(&near),
            security: "node_local",
            ..base
        },
        Expected {
            path: "node_local",
            destination: sticky.at(80),
            endpoint: near.at(80),
            server: Some(&near),
            security: "node_local",
            ..base
        },
        Expected {
            path: "self",
            destination: web.at(81),
            endpoint: web.at(81),
            server: Some(&web),
            security: "node_local",
            ..base
        },
        Expected { path: "plaintext", destination: stranger.at(80), endpoint: stranger.at(80), ..base },
        Expected { path: "passthrough", ..base },
    ];
    for expected in &cases {
        let conversation = web.opens(expected.destination);
        conversation.still_works();
        let mut found = row(mesh.node("node-a"), &conversation, "outbound");
        if expected.path == "plaintext" || expected.path == "passthrough" {
            assert!(!found.reason.is_empty(), "why {} is said", expected.path);
            found.reason.clear();
        }
        compare(&found, &web, expected);
        if expected.path == "hbone" {
            let inbound = row(mesh.node("node-b"), &conversation, "inbound");
            assert_eq!((inbound.pod.as_str(), inbound.policy.as_str()), ("default/far", "default/web-may"));
            assert_eq!((inbound.path.as_str(), inbound.source_identity), ("hbone", web.identity()));
        }
    }
}

#[test]
fn a_denied_connection_is_listed_with_the_policy_that_denied_it() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    mesh.policy("not-web").on(&far).deny(identity("ns/default/sa/web"));
    web.dial(&far).is_refused();
    eventually("the denial is listed", LIMIT, || {
        let rows = mesh.node("node-b").admin().sockets().map_err(|status| status.to_string())?;
        let is_it =
            |row: &&SocketRow| row.path == "denied" && row.policy == "default/not-web" && row.pod == "default/far";
        rows.iter().find(is_it).map(|_| ()).ok_or_else(|| format!("{rows:#?}"))
    });
    let why = text(&mesh.node("node-b").meshctl(&["sockets", "--why-denied"]));
    assert!(why.contains("default/not-web"), "{why}");
}

#[test]
fn explain_names_the_stages_the_verdict_and_the_policy() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let node = mesh.node("node-a");
    let (allowed, is_yes) = explain(node, "default/web", "default/far:80");
    assert!(is_yes, "{allowed}");
    assert_eq!(allowed["verdict"], "allowed", "{allowed}");
    assert_eq!(allowed["path"], "hbone", "{allowed}");

    mesh.policy("not-web").on(&far).deny(identity("ns/default/sa/web"));
    mesh.settle();
    let (denied, is_yes) = explain(node, "default/web", "default/far:80");
    assert!(!is_yes, "{denied}");
    assert_eq!((&denied["verdict"], &denied["policy"]), (&"denied".into(), &"default/not-web".into()), "{denied}");
    assert!(denied["steps"].as_array().is_some_and(|steps| steps.len() >= 2), "{denied}");
}

#[test]
fn workloads_certificates_status_and_check_tell_what_is() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let node = mesh.node("node-a");

    let table = text(&node.meshctl(&["workloads"]));
    assert!(table.contains("web") && table.contains("far") && table.contains("HBONE"), "{table}");
    let certificates = node.admin().certificates().expect("the agent lists certificates");
    let kinds: BTreeMap<_, _> = certificates.iter().map(|row| (row.identity.clone(), row.state.clone())).collect();
    assert_eq!(kinds.get(&web.identity()).map(String::as_str), Some("valid"), "{certificates:?}");
    assert!(!kinds.contains_key(&far.identity()), "only identities of this node's pods: {certificates:?}");

    let status = node.admin().status().expect("the agent answers");
    assert_eq!(
        (status.node.as_str(), status.state.as_str(), status.control.as_str()),
        ("node-a", "ready", "connected")
    );
    assert!(status.resource_types.iter().all(|kind| kind.synced && kind.nack.is_empty()), "{status:?}");
    assert_eq!(status.pods, 1);

    let failed: Vec<_> =
        node.admin().check().expect("the agent answers").into_iter().filter(|row| row.result == "failed").collect();
    assert_eq!(failed, []);
    let rights = node.admin().check().expect("the agent answers").into_iter().find(|row| row.name == "pod_rights");
    let rights = rights.expect("a row about what pods may send past the mesh");
    // Its processes are root's.
    assert_eq!((rights.result.as_str(), rights.text.as_str()), ("warning", "default/web: NET_ADMIN, NET_RAW"));
    mesh.control().kill();
    eventually("check notices that control is away", LIMIT, || {
        let rows = node.admin().check().map_err(|status| status.to_string())?;
        let found = rows.iter().find(|row| row.result != "ok" && row.name.contains("control"));
        found.map(|row| assert!(!row.remedy.is_empty(), "{row:?}")).ok_or_else(|| format!("{rows:?}"))
    });
}

#[test]
fn the_log_level_is_changed_while_running() {
    let mesh = Mesh::new();
    let admin = mesh.node("node-a").admin();
    assert_eq!(admin.log("debug").expect("a filter"), "debug");
    assert_eq!(admin.log("").expect("reading"), "debug");
    assert!(admin.log("not=a=filter,,").is_err());
    assert_eq!(admin.log("").expect("reading"), "debug");
}

#[test]
fn every_connection_leaves_one_line_and_the_same_metrics_at_both_ends() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    for _ in 0..5 {
        web.dial(&far).is_answered();
    }
    for (node, reporter) in [("node-a", "source"), ("node-b", "destination")] {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "web"),
            ("destination_workload", "far"),
            ("source_principal", &web.identity()),
            ("destination_principal", &far.identity()),
            ("connection_security_policy", "mutual_tls"),
            ("response_flags", "-"),
        ];
        for metric in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
            mesh.node(node).counted(metric, 5, &labels);
        }
        for metric in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
            mesh.node(node).counted(metric, 25, &labels);
        }
        eventually("an access-log line for each", LIMIT, || match mesh.node(node).access_log().len() {
            5 => Ok(()),
            lines => Err(format!("{lines} lines")),
        });
    }
}

/// The row of `check` with this name.
fn checked(node: &Node, name: &str) -> Result<(String, String), String> {
    let rows = node.admin().check().map_err(|status| status.to_string())?;
    let row = rows.iter().find(|row| row.name == name).ok_or_else(|| format!("no {name} in {rows:?}"))?;
    Ok((row.result.clone(), row.remedy.clone()))
}

#[test]
fn check_says_what_is_wrong_with_hooks_and_with_connections_older_than_the_mesh() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let web = mesh.app("web").late().on("node-a");
    let older = web.opens(far.at(80));
    older.still_works();
    let node = mesh.node("node-a");
    for name in ["before_enrolment", "links"] {
        assert_eq!(checked(node, name).map(|(result, _)| result).as_deref(), Ok("ok"), "{name}");
    }

    node.admin().enrol(web.enrolment()).expect("a running pod can be enrolled");
    let pins = std::fs::read_dir(node.directory().join("bpf/v1/links"));
    let pins: Vec<_> = pins.expect("pins of the agent").flatten().map(|entry| entry.path()).collect();
    let link = pins.iter().find(|path| path.to_string_lossy().ends_with("connect4")).expect("a pinned link");
    let detach = node.system().run(&["bpftool", "link", "detach", "pinned", &link.display().to_string()]);
    text(&detach);

    for name in ["before_enrolment", "links"] {
        eventually(&format!("{name} is not ok any more"), LIMIT, || match checked(node, name)? {
            (result, remedy) if result != "ok" && !remedy.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}
