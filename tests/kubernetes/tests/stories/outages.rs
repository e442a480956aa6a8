//! The control daemon, and the API server behind it: away, one, many, and without a kind of object; all of it under load. What
//! is in force stays so, and what changes is in force soon after they are back.

use std::time::{Duration, Instant};

use mesh_kubernetes_tests::{Cluster, MESH, eventually};

use super::{
    Installed, Way,
    shop::{Load, Shop},
};

/// From the moment from which the API server answers until all agents hold what a fresh one would.
const SOON: Duration = Duration::from_secs(5);
/// As long as operators need to notice.
const AWAY: Duration = Duration::from_secs(300);

/// Why a story fails on a cluster that is somebody's.
const OURS: &str = "shown only on a cluster of ours: what it takes away is used by others elsewhere";

/// A policy that denies nobody who asks here; another each time, so that a View that holds it is a new one.
fn policy(namespace: &str, number: u32) -> String {
    format!(
        r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: not-somebody, namespace: {namespace}}}
spec:
  action: DENY
  rules: [{{from: [{{source: {{principals: ["cluster.local/ns/{namespace}/sa/somebody-{number}"]}}}}]}}]
"#
    )
}

/// A shop under load, and what the agents know of it.
struct Scene<'a> {
    cluster: &'a Cluster,
    shop: &'a Shop<'a>,
    load: Load<'a>,
    changes: u32,
}

impl<'a> Scene<'a> {
    fn set(cluster: &'a Cluster, shop: &'a Shop<'a>) -> Self {
        shop.enrol();
        shop.ask_until_encrypted(None);
        let load = shop.load("under-load");
        let mut scene = Self { cluster, shop, load, changes: 0 };
        scene.takes_changes_since(Instant::now());
        scene
    }

    /// A change is with all agents within [`SOON`] of `since`; the load has gone on.
    fn takes_changes_since(&mut self, since: Instant) {
        let nodes = self.cluster.nodes();
        let before = self.views(&nodes).ok();
        self.changes += 1;
        self.cluster.apply(&policy(self.shop.name(), self.changes));
        let views = eventually("all agents hold the change", Duration::from_secs(60), || {
            let views = self.views(&nodes)?;
            let is_new = before.as_ref() != Some(&views) && views.iter().all(|view| *view == views[0]);
            if is_new { Ok(views) } else { Err(format!("{before:?}, and now {views:?}")) }
        });
        let took = since.elapsed();
        eprintln!("{} views of {} after {took:?}", views.len(), views[0]);
        assert!(took < SOON, "the change was with all agents only after {took:?}");
        self.load.answered_more();
        assert_eq!(self.load.failures(), Vec::<String>::new());
    }

    fn views(&self, nodes: &[String]) -> Result<Vec<String>, String> {
        nodes.iter().map(|node| self.cluster.view(node)).collect()
    }

    /// An agent that starts now and knows nothing of before comes to hold the same.
    fn is_as_of_a_fresh_agent(&self) {
        let nodes = self.cluster.nodes();
        let before = self.views(&nodes).expect("all are in step");
        self.cluster.start_agent_afresh(&nodes[1]).expect(OURS);
        eventually("a fresh agent holds the same", super::READY, || match self.cluster.view(&nodes[1])? {
            view if view == before[0] => Ok(()),
            view => Err(format!("{view}, not {}", before[0])),
        });
    }
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn an_api_server_that_is_away_for_five_minutes_is_not_missed_and_what_changes_afterwards_is_soon_in_force() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-outage");
    let mut scene = Scene::set(&cluster, &shop);
    let since = cluster.without_api_server(AWAY).expect(OURS);
    scene.takes_changes_since(since);
    scene.is_as_of_a_fresh_agent();
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn control_that_is_one_many_and_killed_keeps_what_is_in_force() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-control");
    let mut scene = Scene::set(&cluster, &shop);
    let scale = |replicas: u32| {
        let replicas = format!("--replicas={replicas}");
        cluster.kubectl(&["-n", MESH, "scale", "deployment/mesh-control", &replicas]);
        cluster.kubectl(&["-n", MESH, "rollout", "status", "deployment/mesh-control", "--timeout=120s"]);
    };
    for replicas in [1, 3, 1] {
        scale(replicas);
        in_step(&scene);
        scene.takes_changes_since(Instant::now());
    }
    let all = ["-n", MESH, "delete", "pod", "-l=app.kubernetes.io/name=mesh-control", "--grace-period=0", "--force"];
    cluster.kubectl(&all);
    scale(2);
    in_step(&scene);
    scene.takes_changes_since(Instant::now());
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn a_kind_of_object_that_goes_takes_its_policies_and_is_followed_again_when_it_is_back() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-kind");
    let mut scene = Scene::set(&cluster, &shop);
    let kind = "authorizationpolicies.security.istio.io";
    let with_policies = scene.views(&cluster.nodes()).expect("all are in step");
    cluster.without_kind(kind).expect(OURS);
    eventually("the policies are gone", super::READY, || match scene.views(&cluster.nodes())? {
        views if views == with_policies => Err(views.join("; ")),
        _ => Ok(()),
    });
    scene.load.answered_more();
    cluster.kubectl(&["apply", "-f", "deploy/manifests/crds/istio.yaml"]);
    cluster.wait("condition=Established", &format!("crd/{kind}"), "default");
    let since = Instant::now();
    scene.takes_changes_since(since);
    scene.is_as_of_a_fresh_agent();
}

/// All agents have found a control pod that runs.
fn in_step(scene: &Scene<'_>) {
    eventually("all agents are in step", super::READY, || scene.views(&scene.cluster.nodes()));
}
