//! A workload that takes only mutual TLS, seen from everywhere on its node: the kubelet's probes pass, nobody else does.

use mesh_kubernetes_tests::{Cluster, MESH, SLOW, eventually};
use serde_json::Value;

use super::{
    Installed, Way,
    shop::{HTTP, Shop},
};

/// Its namespace.
const SHOP: &str = "shop-strict";

const STRICT: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop-strict}
spec: {mtls: {mode: STRICT}}
";

/// Ports of every node that lead to db, through whichever node they are dialled.
const OUTSIDE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop-strict}
spec:
  type: NodePort
  externalTrafficPolicy: Cluster
  selector: {app: db}
  ports: [{name: tcp, port: 9000, nodePort: 31900}, {name: http, port: 8080, nodePort: 31901}]
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

/// Somebody outside the mesh who dials into it.
struct Place<'a> {
    who: &'static str,
    /// A process of this node; none: the pod of the host's network.
    node: Option<&'a str>,
    /// What it dials; the port of HTTP is there to ask whom the server sees.
    address: &'a str,
    port: u16,
    http: u16,
    /// Where that leads.
    destination: String,
}

impl Place<'_> {
    /// What a shell there prints; none where the nodes are somebody's.
    fn run(&self, cluster: &Cluster, line: &str) -> Option<String> {
        let in_pod =
            || cluster.exec(SHOP, "host", &["sh", "-c", line]).expect("a shell in the pod of the host's network");
        self.node.map_or_else(|| Some(in_pod()), |node| cluster.on_node(node, line))
    }

    /// `heard`, or `refused` with all else that can keep it from an answer.
    fn dials(&self, cluster: &Cluster) -> Option<String> {
        self.run(cluster, &dial(self.address, self.port))
    }

    /// Until it is answered as it should be.
    fn becomes(&self, wanted: &str, cluster: &Cluster) {
        eventually(&format!("{} is {wanted}", self.who), SLOW, || match self.dials(cluster) {
            Some(answer) if answer != wanted => Err(answer),
            _ => Ok(()),
        });
    }

    /// The address under which the server sees it; asked while it is let in.
    fn source(&self, cluster: &Cluster) -> Option<String> {
        let url = format!("http://{}:{}/who", self.address, self.http);
        let line = format!("timeout 5 busybox wget -q -O - {url} | grep -o 'client=[^ ]*' || true");
        eventually(&format!("the server says whom it sees: {}", self.who), SLOW, || {
            let Some(answer) = self.run(cluster, &line) else { return Ok(None) };
            let client = answer.strip_prefix("client=").and_then(|client| client.rsplit_once(':'));
            client.map(|(address, _)| Some(address.to_owned())).ok_or(answer)
        })
    }

    /// The log says that it was denied just that: no other place has both its address and its destination.
    fn is_named(&self, source: &str, cluster: &Cluster, node: &str) {
        let (source, destination) = (format!(" src.addr={source}:"), format!(" dst.addr={} ", self.destination));
        eventually(&format!("{} is named", self.who), SLOW, || {
            let log = cluster.try_kubectl(&["-n", MESH, "logs", &cluster.agent_of(node), "--since=10m"])?;
            let is_such =
                |line: &str| line.contains(" flag=DENY") && line.contains(&source) && line.contains(&destination);
            if log.lines().any(is_such) {
                return Ok(());
            }
            let denied: Vec<&str> = log.lines().filter(|line| line.contains(" flag=DENY")).collect();
            Err(format!("no line with{source} and{destination}among {denied:#?}"))
        });
    }
}

/// Says something and hears it again, of port 9000; or asks for an answer of HTTP.
fn dial(address: &str, port: u16) -> String {
    let question = if port == HTTP {
        format!("timeout 5 busybox wget -q -O - http://{address}:{port}/from-outside")
    } else {
        format!("echo from-outside | timeout 5 busybox nc -w 2 {address} {port}")
    };
    format!("{question} | grep -q from-outside && echo heard || echo refused")
}

#[test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
fn probes_of_a_strict_workload_pass_and_whoever_else_comes_from_a_node_is_refused_and_named() {
    let cluster = Cluster::reach();
    let _mesh = Installed::by(Way::Helm, &cluster);
    let shop = Shop::open(&cluster, SHOP);
    shop.enrol();
    let nodes = cluster.nodes();
    let (of_web, of_db) = (nodes[0].as_str(), nodes[1].as_str());
    cluster.apply(OUTSIDE);
    cluster.apply(&others(of_db));
    for pod in ["pod/host", "pod/probed"] {
        cluster.wait("condition=Ready", pod, SHOP);
    }
    shop.ask_until_encrypted(None);
    let address = |pod: &str| cluster.kubectl(&["-n", SHOP, "get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
    let node = |name: &str| {
        let path = r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#;
        cluster.kubectl(&["get", "node", name, "-o", path])
    };
    let (db, probed, node_of_web) = (address("db"), address("probed"), node(of_web));
    let from_host = |who, address, port| Place {
        who,
        node: None,
        address,
        port,
        http: HTTP,
        destination: format!("{address}:{port}"),
    };
    let places = [
        Place { node: Some(of_db), ..from_host("a process of the node", &probed, 9000) },
        from_host("a pod of the host's network", &db, 9000),
        from_host("the same, to a port of a probe", &probed, HTTP),
        Place {
            who: "the port of a node",
            node: Some(of_web),
            address: &node_of_web,
            port: 31900,
            http: 31901,
            destination: format!("{db}:9000"),
        },
    ];

    // All of them are let in before: what keeps them out afterwards is the mode.
    let sources = places.each_ref().map(|place| {
        place.becomes("heard", &cluster);
        place.source(&cluster)
    });
    cluster.apply(STRICT);
    for (place, source) in places.iter().zip(&sources) {
        place.becomes("refused", &cluster);
        if let Some(source) = source {
            place.is_named(source, &cluster, of_db);
        }
    }

    // An enrolled pod may dial a node, and that is listed as what it is.
    let kubelet = format!("(sleep 20 | nc {} 10250) >/dev/null 2>&1 & sleep 1; kill -0 $! && echo open", node(of_db));
    assert_eq!(cluster.exec(SHOP, "web", &["sh", "-c", &kubelet]).as_deref(), Ok("open"));
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
    let status = cluster.json(&["-n", SHOP, "get", "pod", "probed"])["status"].clone();
    assert_eq!(ready(&status), "True", "{status}");
    let restarts: Vec<_> =
        status["containerStatuses"].as_array().into_iter().flatten().map(|one| one["restartCount"].clone()).collect();
    assert!(restarts.iter().all(|count| count == 0), "{restarts:?}");
    if let Some(answer) = places[0].dials(&cluster) {
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
