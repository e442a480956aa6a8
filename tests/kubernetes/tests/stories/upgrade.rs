//! The next version, and back, while connections are opened all the time.

use mesh_kubernetes_tests::{Cluster, NEXT};

use super::{Installed, Way, shop::Shop};

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn an_upgrade_and_a_rollback_under_load_refuse_nothing_and_show_nothing() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-upgrade");
    shop.enrol();
    let wire = cluster.capture();
    shop.ask_until_encrypted(wire.as_ref());
    let load = shop.load("under-load");

    let image = format!("--set=image.tag={NEXT}");
    cluster.helm(&["upgrade", "mesh", "deploy/helm", "--reuse-values", &image, "--wait", "--timeout=180s"]);
    for node in cluster.nodes() {
        let agent = cluster.agent_image(&node);
        assert!(agent.ends_with(&format!(":{NEXT}")), "{node} runs {agent}");
    }
    let upgraded = load.answered_more();
    cluster.helm(&["rollback", "mesh", "--wait", "--timeout=180s"]);
    for node in cluster.nodes() {
        let agent = cluster.agent_image(&node);
        assert!(!agent.ends_with(&format!(":{NEXT}")), "{node} runs {agent}");
    }
    let rolled_back = load.answered_more();
    eprintln!("answered {upgraded} and then {rolled_back}");

    assert_eq!(load.failures(), Vec::<String>::new());
    if let Some(wire) = &wire {
        assert!(!wire.has_seen("under-load"), "something passed in the clear");
    }
}
