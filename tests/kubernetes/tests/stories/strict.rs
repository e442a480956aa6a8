//! A workload that takes only mutual TLS, seen from everywhere on its node: the kubelet's probes pass, nobody else does.

use mesh_kubernetes_tests::{Cluster, MESH, SLOW, eventually};
use serde_json::Value;

use super::{Installed, Way, shop::Shop};

const STRICT: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop-strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop-strict}
spec:
  type: NodePort
  externalTrafficPolicy: Cluster
  selector: {app: db}
  ports: [{name: tcp, port: 9000, nodePort: 31900}]
";

/// A pod of the host's network on the node of db, and one with every kind of probe.
fn others(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: host, namespace: shop-strict}}
spec:
  hostNetwork: true
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: one, image: localhost/busybox:1, imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: probed, namespace: shop-strict}}
spec:
  serviceAccountName: db
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: localhost/echo:1
    imagePullPolicy: IfNotPresent
    ports: [{{name: web, containerPort: 8080}}]
    startupProbe: {{tcpSocket: {{port: web}}, periodSeconds: 1}}
    livenessProbe: {{httpGet: {{path: /healthz, port: web}}, periodSeconds: 1, failureThreshold: 3}}
    readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1, failureThreshold: 1}}
  - name: other
    image: localhost/busybox:1
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
    livenessProbe: {{exec: {{command: ["true"]}}, periodSeconds: 1}}
"#
    )
}

/// Asks for an answer of db's second port, which no probe declares.
fn dial(address: &str, port: u16) -> String {
    format!(
        "echo from-outside | timeout 5 busybox nc -w 2 {address} {port} | grep -q from-outside && echo heard || echo refused"
    )
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn probes_of_a_strict_workload_pass_and_whoever_else_comes_from_a_node_is_refused_and_named() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, "shop-strict");
    shop.enrol();
    cluster.apply(STRICT);
    let nodes = cluster.nodes();
    let (of_web, of_db) = (nodes[0].as_str(), nodes[1].as_str());
    cluster.apply(&others(of_db));
    for pod in ["pod/host", "pod/probed"] {
        cluster.wait("condition=Ready", pod, "shop-strict");
    }
    shop.ask_until_encrypted(None);
    let address =
        |pod: &str| cluster.kubectl(&["-n", "shop-strict", "get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
    let (db, probed) = (address("db"), address("probed"));

    let from_host = cluster.exec("shop-strict", "host", &["sh", "-c", &dial(&db, 9000)]);
    assert_eq!(from_host.as_deref(), Ok("refused"), "a pod of the host's network");
    let from_host = cluster.exec("shop-strict", "host", &["sh", "-c", &dial(&probed, 8080)]);
    assert_eq!(from_host.as_deref(), Ok("refused"), "the same, to a port of a probe");
    if let Some(answer) = cluster.on_node(of_db, &dial(&db, 9000)) {
        assert_eq!(answer, "refused", "a process of the node");
    }
    let node = |name: &str| {
        let path = r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#;
        cluster.kubectl(&["get", "node", name, "-o", path])
    };
    if let Some(answer) = cluster.on_node(of_web, &dial(&node(of_web), 31900)) {
        assert_eq!(answer, "refused", "the port of a node");
    }
    eventually("the refused are named", SLOW, || {
        let log = cluster.kubectl(&["-n", MESH, "logs", &cluster.agent_of(of_db), "--since=10m"]);
        let named = log.lines().filter(|line| line.contains("flag=DENY")).count();
        if named >= 3 {
            Ok(())
        } else {
            Err(format!("{named} lines; {}", log.lines().rev().take(5).collect::<Vec<_>>().join("\n")))
        }
    });

    // An enrolled pod may dial a node, and that is listed as what it is.
    let kubelet = format!("(sleep 20 | nc {} 10250) >/dev/null 2>&1 & sleep 1; kill -0 $! && echo open", node(of_db));
    assert_eq!(cluster.exec("shop-strict", "web", &["sh", "-c", &kubelet]).as_deref(), Ok("open"));
    eventually("the connection to the kubelet is listed as one to a node", SLOW, || {
        let sockets = cluster.meshctl(of_web, &["sockets"])?;
        let all = sockets["sockets"].as_array().cloned().unwrap_or_default();
        let found =
            all.iter().find(|row| row["original_destination"].as_str().is_some_and(|to| to.ends_with(":10250")));
        match found.map(|row| row["reason"].clone()) {
            Some(reason) if reason == "node" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    // Probes need no agent.
    cluster.send_agents_away();
    // Ten probes of each kind: one that fails takes the pod out at once.
    std::thread::sleep(std::time::Duration::from_secs(10));
    let status = cluster.json(&["-n", "shop-strict", "get", "pod", "probed"])["status"].clone();
    assert_eq!(ready(&status), "True", "{status}");
    let restarts: Vec<_> =
        status["containerStatuses"].as_array().into_iter().flatten().map(|one| one["restartCount"].clone()).collect();
    assert!(restarts.iter().all(|count| count == 0), "{restarts:?}");
    if let Some(answer) = cluster.on_node(of_db, &dial(&db, 9000)) {
        assert_eq!(answer, "refused", "a process of the node, while the agent is away");
    }
    cluster.let_agents_back();
}

fn ready(status: &Value) -> String {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let found =
        conditions.filter(|condition| condition["type"] == "Ready").map(|condition| condition["status"].clone()).next();
    found.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
