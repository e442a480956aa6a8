//! The next version, and back, while connections are opened all the time, and one that is direct is held.

use std::collections::BTreeSet;

use mesh_kubernetes_tests::{Cluster, NEXT, SLOW, eventually};

use super::{Installed, Way, shop::Shop};

/// A pod on the node of db, so that its connections to db are direct.
struct Neighbour<'a> {
    cluster: &'a Cluster,
    shop: &'a Shop<'a>,
    node: String,
    address: String,
}

impl<'a> Neighbour<'a> {
    /// It runs and is heard by db.
    fn start(cluster: &'a Cluster, shop: &'a Shop<'a>) -> Self {
        let (namespace, node, service) = (shop.name(), cluster.nodes()[1].clone(), &shop.service);
        cluster.apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: near, namespace: {namespace}}}
spec:
  serviceAccountName: web
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: one, image: localhost/busybox:1, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}}
"#
        ));
        cluster.wait("condition=Ready", "pod/near", namespace);
        let line = format!("echo hello | nc -w 2 {service} 9000 | grep -q hello");
        cluster.exec_until("the neighbour is heard", namespace, "near", &["sh", "-c", &line]);
        let address = cluster.kubectl(&["-n", namespace, "get", "pod", "near", "-o", "jsonpath={.status.podIP}"]);
        Self { cluster, shop, node, address }
    }

    /// Opens the connection that it holds; the address and port that it has.
    fn hold(&self) -> String {
        self.shop.hold("near");
        self.connection()
    }

    /// The connection that it held is there, the very same, and still direct.
    fn holds(&self, connection: &str) {
        self.shop.holds("near");
        assert_eq!(self.connection(), connection, "another connection than before");
    }

    /// The only one that it has; direct.
    fn connection(&self) -> String {
        let from_here = format!("{}:", self.address);
        eventually("the neighbour has one connection, and it is direct", SLOW, || {
            let sockets = self.cluster.meshctl(&self.node, &["sockets"])?;
            let rows = sockets["sockets"].as_array().cloned().unwrap_or_default();
            let own = rows.iter().filter(|row| row["source"].as_str().is_some_and(|from| from.starts_with(&from_here)));
            // One row for each end.
            let all: BTreeSet<_> =
                own.map(|row| (row["source"].as_str().unwrap_or_default(), row["path"].as_str())).collect();
            match all.first() {
                Some((source, Some("node_local"))) if all.len() == 1 => Ok((*source).to_owned()),
                _ => Err(format!("{all:?}")),
            }
        })
    }
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn an_upgrade_and_a_rollback_under_load_refuse_nothing_cut_nothing_direct_and_show_nothing() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-upgrade");
    shop.enrol();
    let wire = cluster.capture();
    shop.ask_until_encrypted(wire.as_ref());
    let neighbour = Neighbour::start(&cluster, &shop);
    let direct = neighbour.hold();
    let load = shop.load("under-load");

    let image = format!("--set=image.tag={NEXT}");
    cluster.helm(&["upgrade", "mesh", "deploy/helm", "--reuse-values", &image, "--wait", "--timeout=180s"]);
    for node in cluster.nodes() {
        let agent = cluster.agent_image(&node);
        assert!(agent.ends_with(&format!(":{NEXT}")), "{node} runs {agent}");
    }
    let upgraded = load.answered_more();
    neighbour.holds(&direct);
    cluster.helm(&["rollback", "mesh", "--wait", "--timeout=180s"]);
    for node in cluster.nodes() {
        let agent = cluster.agent_image(&node);
        assert!(!agent.ends_with(&format!(":{NEXT}")), "{node} runs {agent}");
    }
    let rolled_back = load.answered_more();
    neighbour.holds(&direct);
    eprintln!("answered {upgraded} and then {rolled_back}");

    assert_eq!(load.failures(), Vec::<String>::new());
    if let Some(wire) = &wire {
        assert!(!wire.has_seen("under-load"), "something passed in the clear");
    }
}
