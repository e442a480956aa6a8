//! Install and removal, both ways.

use mesh_kubernetes_tests::{Cluster, SLOW, eventually};

use super::{Installed, READY, Way, shop::Shop};

/// A mesh comes, is used, and goes.
fn comes_and_goes(way: Way, name: &str) {
    let cluster = Cluster::reach();
    Way::clear(&cluster);
    let shop = Shop::open(&cluster, name);
    let plain = Shop::open(&cluster, &format!("{name}-plain"));
    plain.hold();
    let before = cluster.traces();

    let wire = cluster.capture();
    shop.ask("in-the-clear").expect("before the mesh");
    if let Some(wire) = &wire {
        eventually("the capture sees what is in the clear", SLOW, || {
            wire.has_seen("in-the-clear").then_some(()).ok_or_else(|| "not yet".to_owned())
        });
    }
    let mesh = Installed::by(way, &cluster);
    eprintln!("installed after {:?}", mesh.began.elapsed());
    shop.enrol();
    shop.ask_until_encrypted(wire.as_ref());
    let took = mesh.began.elapsed();
    eprintln!("ready and meshed after {took:?}");
    assert!(took < READY, "it took {took:?}");
    for node in cluster.nodes() {
        let check = cluster.meshctl(&node, &["check"]).expect("every check of the node is good");
        eprintln!("{node}: {check}");
    }

    drop(mesh);
    shop.unlabel();
    eventually("nothing is left behind", SLOW, || {
        let after = cluster.traces();
        if after == before { Ok(()) } else { Err(difference(&before, &after)) }
    });
    shop.ask("after-the-mesh").expect("plain networking is back for pods that run");
    plain.holds();
}

/// Lines that only one of two texts has.
fn difference(before: &str, after: &str) -> String {
    let only = |one: &str, other: &str, mark: char| -> String {
        one.lines()
            .filter(|line| !other.lines().any(|found| found == *line))
            .map(|line| format!("\n{mark} {line}"))
            .collect()
    };
    only(before, after, '-') + &only(after, before, '+')
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn a_mesh_by_helm_is_ready_within_two_minutes_and_leaves_nothing_behind() {
    comes_and_goes(Way::Helm, "shop-helm");
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn a_mesh_by_plain_manifests_is_ready_within_two_minutes_and_leaves_nothing_behind() {
    comes_and_goes(Way::Manifests, "shop-kubectl");
}
