//! Enrolment on a real cluster: pods that start are steered before their first instruction, or do not start; labels count at
//! once; probes pass where nobody else does.

use std::time::Duration;

use mesh_kubernetes_tests::{Cluster, MESH, SLOW, Wire, eventually};
use serde_json::Value;

use super::{Installed, Way, shop::Shop};

/// What callers say all the time. On the link it may only be seen inside TLS.
const WORD: &str = "said-before-anybody-listens";
/// Pods of one round, each with a connect loop as its first instruction.
const CALLERS: usize = 25;
/// Labels take effect within this.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Pods on the node of web that dial db as fast as they can.
struct Callers<'a> {
    cluster: &'a Cluster,
    shop: &'a Shop<'a>,
    name: String,
}

impl<'a> Callers<'a> {
    /// Asked for, and perhaps not there yet.
    fn start(cluster: &'a Cluster, shop: &'a Shop<'a>, name: &str) -> Self {
        let callers = Self { cluster, shop, name: name.to_owned() };
        cluster.apply(&callers.manifest());
        callers
    }

    fn manifest(&self) -> String {
        let (namespace, name, node) = (self.shop.name(), &self.name, self.shop.node());
        let service = &self.shop.service;
        // From the first instruction of the first container on; each round tells whether one got through.
        let line =
            format!("while true; do echo {WORD} | nc -w 1 {service} 9000 >>/tmp/heard 2>/dev/null; sleep 0.2; done");
        format!(
            r#"
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {CALLERS}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      serviceAccountName: web
      nodeName: {node}
      terminationGracePeriodSeconds: 0
      initContainers:
      - name: first
        image: localhost/busybox:1
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "echo {WORD} | nc -w 1 {service} 9000 || true"]
      containers:
      - name: caller
        image: localhost/busybox:1
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "{line}"]
"#
        )
    }

    /// All of them run and have been heard by db.
    fn are_heard(&self) {
        let (namespace, label) = (self.shop.name(), format!("app={}", self.name));
        eventually("all callers run", SLOW * 2, || {
            let list = self.cluster.json(&["-n", namespace, "get", "pods", "-l", &label]);
            let pods = list["items"].as_array().cloned().unwrap_or_default();
            let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
            if running >= CALLERS { Ok(()) } else { Err(format!("{running} of {CALLERS}")) }
        });
        let one = self.cluster.kubectl(&[
            "-n",
            namespace,
            "get",
            "pods",
            "-l",
            &label,
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ]);
        self.cluster.exec_until("a caller is answered", namespace, &one, &["grep", "-q", WORD, "/tmp/heard"]);
    }

    fn end(self) {
        self.cluster.kubectl(&["-n", self.shop.name(), "delete", "replicaset", &self.name, "--wait"]);
        let label = format!("app={}", self.name);
        self.cluster.kubectl(&["-n", self.shop.name(), "wait", "--for=delete", "pod", "-l", &label, "--timeout=180s"]);
    }
}

fn enrolled<'a>(cluster: &'a Cluster, name: &str) -> Shop<'a> {
    let shop = Shop::open(cluster, name);
    shop.enrol();
    shop.ask_until_encrypted(None);
    shop
}

/// Without it such a story says nothing.
fn capture(cluster: &Cluster) -> Wire {
    cluster.capture().expect("this story needs a capture of the link: run it on the cluster of this machine")
}

/// None of the callers' words; and the capture would have seen one: at the end somebody outside the mesh says the same.
fn nothing_was_seen(cluster: &Cluster, shop: &Shop<'_>, wire: &Wire) {
    assert!(!wire.has_seen(WORD), "a pod that started sent something in the clear");
    let (namespace, node, service) = (shop.name(), shop.node(), &shop.service);
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: outsider, namespace: {namespace}, labels: {{istio.io/dataplane-mode: none}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: one, image: localhost/busybox:1, imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}}
"#
    ));
    cluster.wait("condition=Ready", "pod/outsider", namespace);
    let line = format!("echo {WORD} | nc -w 2 {service} 9000 | grep -q {WORD}");
    cluster.exec_until("somebody outside the mesh is heard", namespace, "outsider", &["sh", "-c", &line]);
    eventually("the capture sees what is in the clear", SLOW, || {
        wire.has_seen(WORD).then_some(()).ok_or_else(|| "nothing seen".to_owned())
    });
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn a_pod_whose_first_instruction_is_a_connect_loop_sends_nothing_in_the_clear() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = enrolled(&cluster, "shop-starts");
    let wire = capture(&cluster);

    for round in 0..3 {
        let callers = Callers::start(&cluster, &shop, &format!("calm-{round}"));
        callers.are_heard();
        callers.end();
    }
    for round in 0..3 {
        let callers = Callers::start(&cluster, &shop, &format!("killed-{round}"));
        // Among the starts, without a word to anybody. Once a round: the kubelet waits longer each time before it starts it again.
        cluster.kill_agent(shop.node());
        eventually("the kubelet starts it again", SLOW, || cluster.meshctl(shop.node(), &["status"]).map(drop));
        callers.are_heard();
        callers.end();
    }
    let callers = Callers::start(&cluster, &shop, "rolled");
    cluster.kubectl(&["-n", MESH, "rollout", "restart", "daemonset/mesh-agent"]);
    cluster.kubectl(&["-n", MESH, "rollout", "status", "daemonset/mesh-agent", "--timeout=180s"]);
    callers.are_heard();
    callers.end();
    nothing_was_seen(&cluster, &shop, &wire);
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn without_an_agent_no_pod_starts_but_of_excluded_namespaces_and_the_event_says_why() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = enrolled(&cluster, "shop-reboot");
    let wire = capture(&cluster);
    cluster.send_agents_away();
    cluster.reboot(shop.node()).expect("a node that may be rebooted");

    let callers = Callers::start(&cluster, &shop, "early");
    eventually("an event says why callers do not start", SLOW, || {
        let events = cluster.json(&["-n", shop.name(), "get", "events"]);
        let all = events["items"].as_array().cloned().unwrap_or_default();
        let reasons = all.iter().filter_map(|event| event["message"].as_str());
        let found = reasons.into_iter().find(|reason| reason.contains("the agent of this node does not answer"));
        found.map(|_| ()).ok_or_else(|| format!("{} events", all.len()))
    });
    let label = "app=early";
    let running = cluster.kubectl(&[
        "-n",
        shop.name(),
        "get",
        "pods",
        "-l",
        label,
        "--field-selector=status.phase=Running",
        "-o",
        "name",
    ]);
    assert_eq!(running, "", "pods run without an agent");
    // The agent's own pod, which is of an excluded namespace, may.
    cluster.let_agents_back();
    callers.are_heard();
    callers.end();
    nothing_was_seen(&cluster, &shop, &wire);
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn labels_of_namespaces_and_pods_take_effect_at_once() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-labels");
    let node = shop.node().to_owned();
    let (ambient, none, nothing) =
        ("istio.io/dataplane-mode=ambient", "istio.io/dataplane-mode=none", "istio.io/dataplane-mode-");
    let (namespace, pod) = (["namespace", shop.name()], ["pod", "web"]);
    let steps = [
        (namespace, ambient, true),
        (pod, none, false),
        (pod, ambient, true),
        (namespace, nothing, true),
        (pod, nothing, false),
    ];
    for (what, label, is_enrolled) in steps {
        cluster.kubectl(&["-n", shop.name(), "label", what[0], what[1], label, "--overwrite"]);
        // Asking takes longer than the label may: whoever asks after that time has to see it.
        std::thread::sleep(AT_ONCE);
        let pods = cluster.meshctl(&node, &["pods"]).expect("the agent answers");
        let found = rows(&pods, "pods").iter().any(|pod| pod["namespace"] == shop.name() && pod["name"] == "web");
        assert_eq!(found, is_enrolled, "{AT_ONCE:?} after {label} on {what:?}");
    }
    shop.ask("plain").expect("pods that have left the mesh are on plain networking");
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn pods_of_every_shape_are_enrolled_and_those_of_the_hosts_network_are_named() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = enrolled(&cluster, "shop-shapes");
    let (name, node, service) = (shop.name(), shop.node(), &shop.service);
    cluster.apply(&format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: once, namespace: {name}}}
spec:
  template:
    spec:
      serviceAccountName: web
      nodeName: {node}
      restartPolicy: Never
      containers:
      - name: ask
        image: localhost/busybox:1
        imagePullPolicy: IfNotPresent
        command: [wget, -q, -O, "-", "http://{service}:8080/job"]
---
apiVersion: v1
kind: Pod
metadata: {{name: two, namespace: {name}}}
spec:
  serviceAccountName: web
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - &one
    name: one
    image: localhost/busybox:1
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "sleep 2; wget -q -O /tmp/said http://{service}:8080/two; sleep 3600"]
  - {{name: other, image: localhost/busybox:1, imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: host, namespace: {name}}}
spec:
  hostNetwork: true
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: one, image: localhost/busybox:1, imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}}
"#
    ));
    cluster.wait("condition=Complete", "job/once", name);
    cluster.exec_until("both containers are in the mesh", name, "two", &["test", "-s", "/tmp/said"]);
    cluster.exec_until(
        "the other one, too",
        name,
        "two",
        &["wget", "-q", "-O", "-", &format!("http://{service}:8080/x")],
    );
    eventually("the pod of the host's network is listed with its reason", SLOW, || {
        let workloads = cluster.meshctl(node, &["workloads"])?;
        let state = |wanted: &str| {
            let row =
                rows(&workloads, "workloads").into_iter().find(|row| row["namespace"] == name && row["name"] == wanted);
            row.map(|row| row["state"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
        };
        match (state("two").as_str(), state("host").as_str()) {
            ("enrolled", "not enrolled: it is on the host's network") => Ok(()),
            states => Err(format!("{states:?}")),
        }
    });
}

fn rows(answer: &Value, name: &str) -> Vec<Value> {
    answer[name].as_array().cloned().unwrap_or_default()
}
