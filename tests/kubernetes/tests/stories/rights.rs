//! RBAC: what the chart grants is what the programs ask for.

use std::collections::BTreeSet;

use mesh_kubernetes_tests::{Cluster, Grant, SLOW, eventually};

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
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-rights");
    shop.enrol();
    cluster.apply(MISTAKES);
    shop.ask_until_encrypted(None);

    for account in ["mesh-control", "mesh-agent"] {
        let granted = cluster.granted(account);
        assert!(!granted.is_empty());
        let Some(_) = cluster.requests(account) else { return };
        eventually("every right is used", SLOW, || {
            let requests = cluster.requests(account).unwrap_or_default();
            let used: BTreeSet<&Grant> = requests.iter().map(|request| &request.grant).collect();
            let unused: Vec<&Grant> = granted.iter().filter(|grant| !used.contains(grant)).collect();
            if unused.is_empty() { Ok(()) } else { Err(format!("{account} never uses {unused:?}")) }
        });
        let refused: Vec<_> =
            cluster.requests(account).unwrap_or_default().into_iter().filter(|request| request.code == 403).collect();
        assert!(refused.is_empty(), "{account} asks for what it may not: {refused:?}");
    }
}
