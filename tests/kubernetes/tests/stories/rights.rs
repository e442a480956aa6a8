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

/// What the agent only asks where a watch has not told it yet: at a moment that no story can bring about.
const RARE: [(&str, &str); 3] = [("pods", "get"), ("namespaces", "get"), ("daemonsets", "get")];

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn every_right_that_is_granted_is_used_and_nothing_else_is_asked_for() {
    let cluster = Cluster::reach();
    Way::clear(&cluster);
    let told =
        cluster.told().expect("rights are shown by the API server's own account, which only a cluster of ours has");
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-rights");
    shop.enrol();
    cluster.apply(MISTAKES);
    shop.ask_until_encrypted(None);

    for account in ["mesh-control", "mesh-agent"] {
        let granted = cluster.granted(account);
        assert!(!granted.is_empty());
        eventually("every right is used", SLOW, || {
            let requests = cluster.requests(account, told);
            let used: BTreeSet<&Grant> = requests.iter().map(|request| &request.grant).collect();
            let is_rare = |grant: &Grant| account == "mesh-agent" && RARE.contains(&(&grant.resource, &grant.verb));
            let unused: Vec<&Grant> = granted.iter().filter(|grant| !used.contains(grant) && !is_rare(grant)).collect();
            if unused.is_empty() { Ok(()) } else { Err(format!("{account} never uses {unused:?}")) }
        });
        let requests = cluster.requests(account, told);
        let refused: Vec<_> = requests.iter().filter(|request| request.code == 403).collect();
        assert!(refused.is_empty(), "{account} asks for what it may not: {refused:?}");
    }
}
