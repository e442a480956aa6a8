//! A workload gets another service account while it runs: what it begins afterwards speaks for the new one, and what it began
//! before does not go on under the old one.

use std::{fs, time::Duration};

use mesh_tests::{LIMIT, Mesh, eventually, identity};

#[test]
fn a_workload_whose_identity_changes_speaks_for_the_new_one_and_its_old_connections_end() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let [near, far] = ["node-a", "node-b"].map(|node| mesh.app(&format!("shop-{node}")).on(node).echoing_on(80));
    mesh.policy("only-web").on(&far).allow(identity("ns/default/sa/web"));
    mesh.policy("only-web-near").on(&near).allow(identity("ns/default/sa/web"));
    web.dial(&far).is_answered();
    web.dial(&near).is_answered();
    let (carried, direct) = (web.opens(far.at(80)), web.opens(near.at(80)));
    carried.still_works();
    direct.still_works();

    // Control says so first: nothing is known yet of a pod with that account.
    let file = "pod-default-web.yaml";
    let manifest = fs::read_to_string(mesh.control().manifests().join(file)).expect("it is published");
    mesh.apply(file, &manifest.replace("serviceAccountName: web", "serviceAccountName: other"));
    carried.is_cut_within(Duration::from_secs(5));
    direct.is_cut_within(Duration::from_secs(5));
    let node = mesh.node("node-b");
    eventually("the reason is in the log", LIMIT, || {
        let lines = node.access_log();
        let is_it = |line: &serde_json::Value| line["flag"] == "IDENTITY_ERROR" && line.to_string().contains("sa/web");
        if lines.iter().any(is_it) { Ok(()) } else { Err(format!("{lines:?}")) }
    });

    // Then the runtime: the pod is enrolled with it.
    let (node, mut enrolment) = (mesh.node("node-a"), web.enrolment());
    node.admin().withdraw(web.uid()).expect("it is enrolled");
    "other".clone_into(&mut enrolment.service_account);
    node.admin().enrol(enrolment).expect("it is enrolled again");
    web.dial(&far).is_refused();
    web.dial(&near).is_refused();
    mesh.policy("only-web").on(&far).allow(identity("ns/default/sa/other"));
    web.reaches(far.at(80));
    let carried = web.opens(far.at(80));
    carried.still_works();
    let rows = mesh.node("node-b").admin().sockets().expect("the agent lists its connections");
    let row = rows.iter().find(|row| row.path == "hbone" && row.source.starts_with(&web.v4().to_string()));
    assert!(row.is_some_and(|row| row.source_identity.ends_with("sa/other")), "{rows:?}");
}
