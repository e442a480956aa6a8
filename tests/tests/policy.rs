//! Who may call whom: across nodes, on one node through the agent, and on the direct path.

use std::time::Duration;

use mesh_tests::{App, Mesh, identity};

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

#[test]
fn a_strict_workload_refuses_plaintext_and_a_permissive_one_takes_it() {
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

    for server in [&near, &far] {
        mesh_tests::eventually("plaintext is refused", mesh_tests::LIMIT, || {
            let dialled = plain.dial(server);
            if dialled.was_refused() { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
        });
        let seen = server.connections().len();
        plain.dial(server).is_refused();
        assert_eq!(server.connections().len(), seen);
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
