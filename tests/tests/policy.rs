//! Who may call whom: across nodes, on one node through the agent, and on the direct path.

use std::time::Duration;

use mesh_api::proto::admin::WorkloadRow;
use mesh_tests::{App, LIMIT, Mesh, eventually, identity, node::Node};

/// A permitted caller and another one, both on node-a, and a server on each node.
struct Pods {
    api: App,
    web: App,
    servers: [App; 2],
}

fn pods(mesh: &Mesh) -> Pods {
    Pods {
        api: mesh.app("api").on("node-a"),
        web: mesh.app("web").on("node-a"),
        servers: [("near", "node-a"), ("far", "node-b")].map(|(name, node)| mesh.app(name).on(node).echoing_on(5432)),
    }
}

#[test]
fn a_caller_without_permission_never_reaches_the_server() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let db = mesh.app("db").on("node-b").echoing_on(5432);
    mesh.policy("only-api").on(&db).allow(identity("ns/default/sa/api"));

    web.dial(&db).is_refused();

    db.saw_no_connection();
    mesh.node("node-b").counted(
        "istio_tcp_connections_failed_total",
        1,
        &[("reporter", "destination"), ("response_flags", "DENY"), ("source_workload", "web")],
    );
}

#[test]
fn an_allow_policy_admits_whom_it_names_over_both_families_and_on_both_paths() {
    let mesh = Mesh::new();
    let Pods { api, web, servers } = pods(&mesh);
    for server in &servers {
        mesh.policy(&format!("only-api-{}", server.name())).on(server).allow(identity("ns/default/sa/api"));
    }
    for server in &servers {
        for to in [server.at(5432), server.at_v6(5432), server.at_mapped(5432)] {
            api.dial_at(to).is_answered();
            web.dial_at(to).is_refused();
        }
        assert_eq!(server.connections().len(), 3, "only the permitted caller's connections");
    }
}

#[test]
fn a_deny_that_is_added_while_a_connection_is_open_closes_it_within_a_second() {
    let mesh = Mesh::new();
    let Pods { api, web, servers } = pods(&mesh);
    let open: Vec<_> = servers.iter().map(|server| (api.opens(server.at(5432)), web.opens(server.at(5432)))).collect();
    for (of_api, of_web) in &open {
        of_api.still_works();
        of_web.still_works();
    }

    // A second from the moment the manifest is written, not from when the agents have it.
    for (server, (of_api, of_web)) in servers.iter().zip(&open) {
        mesh.policy(&format!("not-web-{}", server.name())).on(server).deny(identity("ns/default/sa/web"));
        of_web.is_cut_within(Duration::from_secs(1));
        of_api.still_works();
    }
    for server in &servers {
        web.dial(server).is_refused();
    }
    for server in &servers {
        mesh.remove_policy(&format!("not-web-{}", server.name()));
        web.reaches(server.at(5432));
    }
}

#[test]
fn two_pods_of_one_account_with_different_labels_are_judged_by_their_own_policies() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    for (node, suffix) in [("node-a", "near"), ("node-b", "far")] {
        let [open, shut] = ["open", "shut"].map(|tier| {
            let app = mesh.app(&format!("{tier}-{suffix}")).account("store").labelled("tier", tier);
            app.on(node).echoing_on(80)
        });
        mesh.policy(&format!("nobody-{suffix}")).on(&shut).allow_nothing();

        web.dial(&open).is_answered();
        web.dial(&shut).is_refused();
        shut.saw_no_connection();
    }
}

/// Istio's name of the policy that is behind STRICT.
const STRICT: &str = "istio-system/istio_converted_static_strict";

/// What an operator sees of callers without a certificate that `server`'s node refused: in the metrics, in the access log
/// and in `meshctl sockets`.
fn refusals_name_strict(node: &Node, server: &App, count: u64) {
    let labels = [
        ("reporter", "destination"),
        ("destination_workload", server.name()),
        ("response_flags", "DENY"),
        ("source_principal", "unknown"),
        ("connection_security_policy", "none"),
    ];
    node.counted("istio_tcp_connections_failed_total", count, &labels);
    eventually("each refusal is in the access log with its reason", LIMIT, || {
        let to = server.at(server.port()).to_string();
        let log = node.access_log();
        let of_server: Vec<_> = log.iter().filter(|line| line["dst.addr"] == to && line["flag"] == "DENY").collect();
        for line in &of_server {
            assert_eq!((&line["policy"], &line["policy.verdict"]), (&STRICT.into(), &"denied_by_policy".into()));
            assert!(line["error"].as_str().is_some_and(|error| error.contains(STRICT)), "{line}");
            assert_eq!((&line["security"], &line["src.identity"]), (&"none".into(), &serde_json::Value::Null));
        }
        if of_server.len() as u64 == count { Ok(()) } else { Err(format!("{log:?}")) }
    });
    let rows = node.admin().sockets().expect("the agent lists sockets");
    let refused = rows.iter().find(|row| row.path == "denied" && row.pod == server.full_name());
    let refused = refused.unwrap_or_else(|| panic!("no refusal is listed: {rows:#?}"));
    assert_eq!((refused.policy.as_str(), refused.reason.as_str()), (STRICT, "denied_by_policy"));
    let shown = node.meshctl(&["sockets", "--why-denied"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains(STRICT) && shown.contains("denied_by_policy"), "{shown}");
}

#[test]
fn a_strict_workload_refuses_plaintext_with_its_reason_and_a_permissive_one_takes_it() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let plain = mesh.app("plain").not_enrolled().on("node-a");
    let [near, far] =
        [("near", "node-a"), ("far", "node-b")].map(|(name, node)| mesh.app(name).on(node).echoing_on(80));
    for server in [&near, &far] {
        plain.dial(server).is_answered();
    }
    mesh.apply(
        "strict.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: default, name: strict}\n\
         spec:\n  mtls: {mode: STRICT}\n",
    );

    for (server, node) in [(&near, "node-a"), (&far, "node-b")] {
        let node = mesh.node(node);
        eventually("the workload is strict", LIMIT, || {
            let rows = node.admin().workloads().map_err(|status| status.to_string())?;
            let is_strict = |row: &WorkloadRow| row.name == server.name() && row.policies == [STRICT];
            if rows.iter().any(is_strict) { Ok(()) } else { Err(format!("{rows:?}")) }
        });
        let seen = server.connections().len();
        for _ in 0..3 {
            plain.dial(server).is_refused();
        }
        assert_eq!(server.connections().len(), seen);
        refusals_name_strict(node, server, 3);
    }
    // Members of the mesh are as welcome as before.
    near.dial(&far).is_answered();
    far.dial(&near).is_answered();
}

#[test]
fn a_policy_that_is_only_tried_out_denies_nobody() {
    let mesh = Mesh::new();
    let Pods { web, servers, .. } = pods(&mesh);
    mesh.apply(
        "policy-trial.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  namespace: default\n  \
         name: trial\n  annotations: {istio.io/dry-run: \"true\"}\nspec: {}\n",
    );
    mesh.expect_policy("default/trial");
    for server in &servers {
        web.dial(server).is_answered();
    }
}
