//! RBAC: what the chart grants is what the programs ask for.

use std::collections::BTreeSet;

use mesh_kubernetes_tests::{Cluster, Grant, MESH, SLOW, eventually, moment};

use super::{Installed, Way, shop::Shop};

/// An author who is to be told: by a condition, and by an event.
const MISTAKES: &str = r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: http, namespace: shop-rights}
spec: {selector: {matchLabels: {app: nobody}}, rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop-rights}
spec: {type: ExternalName, externalName: example.com}
";

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn every_right_that_is_granted_is_used_and_nothing_else_is_asked_for() {
    let cluster = Cluster::reach();
    // What a mesh before this one has used says nothing of it.
    Way::clear(&cluster);
    let began = moment();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-rights");
    shop.enrol();
    cluster.apply(MISTAKES);
    shop.ask_until_encrypted(None);
    // An agent that is told to end asks whether that is for good.
    cluster.kubectl(&["-n", MESH, "delete", "pod", &cluster.agent_of(shop.node())]);
    cluster.kubectl(&["-n", MESH, "rollout", "status", "daemonset/mesh-agent", "--timeout=180s"]);

    for account in ["mesh-control", "mesh-agent"] {
        let granted = cluster.granted(account);
        assert!(!granted.is_empty());
        let Some(_) = cluster.requests(account, &began) else { return };
        eventually("every right is used", SLOW, || {
            let requests = cluster.requests(account, &began).unwrap_or_default();
            let used: BTreeSet<&Grant> = requests.iter().map(|request| &request.grant).collect();
            let unused: Vec<&Grant> = granted.iter().filter(|grant| !used.contains(grant)).collect();
            if unused.is_empty() { Ok(()) } else { Err(format!("{account} never uses {unused:?}")) }
        });
        let refused: Vec<_> = cluster
            .requests(account, &began)
            .unwrap_or_default()
            .into_iter()
            .filter(|request| request.code == 403)
            .collect();
        assert!(refused.is_empty(), "{account} asks for what it may not: {refused:?}");
    }
}
