//! Two agents on one kernel share nothing but the kernel.

use mesh_tests::{Mesh, identity};

#[test]
fn killing_and_detaching_one_agent_changes_nothing_for_the_pods_of_the_other() {
    let mesh = Mesh::new();
    let [a, b] = ["node-a", "node-b"].map(|node| {
        let client = mesh.app(&format!("client-{node}")).on(node);
        let server = mesh.app(&format!("server-{node}")).on(node).echoing_on(80);
        client.dial(&server).is_answered();
        (client, server)
    });

    mesh.node("node-a").kill_agent();
    let output = mesh.node("node-a").detach();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Plain networking on the one: it cannot speak for itself to the other any more, but to its own node.
    a.0.reaches(a.1.at(80));
    b.0.dial(&b.1).is_answered();
    assert_eq!(mesh.node("node-b").admin().list().expect("the other agent answers").len(), 2);
    let left = std::fs::read_dir(mesh.node("node-a").directory().join("bpf")).map(Iterator::count);
    assert_eq!(left.unwrap_or(0), 0, "detach leaves no pins");
}

#[test]
fn a_policy_of_one_mesh_is_not_a_policy_of_another_on_the_same_kernel() {
    let [strict, open] = [(), ()].map(|()| Mesh::new());
    let pairs = [&strict, &open].map(|mesh| {
        let web = mesh.app("web").on("node-a");
        let near = mesh.app("near").on("node-a").echoing_on(80);
        let far = mesh.app("far").on("node-b").echoing_on(80);
        (web, near, far)
    });
    for server in [&pairs[0].1, &pairs[0].2] {
        strict.policy(&format!("only-api-{}", server.name())).on(server).allow(identity("ns/default/sa/api"));
    }

    pairs[0].0.dial(&pairs[0].1).is_refused();
    pairs[0].0.dial(&pairs[0].2).is_refused();
    pairs[1].0.dial(&pairs[1].1).is_answered();
    pairs[1].0.dial(&pairs[1].2).is_answered();
}
