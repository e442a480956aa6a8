//! `meshctl`, and what it lists, compared with what a story opened.

use std::collections::BTreeMap;

use mesh_tests::{LIMIT, Mesh, eventually, identity, node::Node, process::printed};

/// What `explain` prints, and whether its exit code says yes.
fn explain(node: &Node, source: &str, destination: &str) -> (serde_json::Value, bool) {
    let output = node.meshctl(&["-o", "json", "explain", source, destination]);
    let shown = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not JSON: {error}: {shown}"));
    (answer, output.status.success())
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

    let table = printed(&node.meshctl(&["workloads"]));
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
