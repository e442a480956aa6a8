//! The application of the stories: a server on one node and a caller on another, in a namespace of their own.

use mesh_kubernetes_tests::{Cluster, MESH, Namespace, Wire};

/// Where the server listens: HTTP, and TCP that answers what it is told.
pub const HTTP: u16 = 8080;

/// `web` calls, `db` answers.
pub struct Shop<'a> {
    cluster: &'a Cluster,
    namespace: Namespace<'a>,
    nodes: Vec<String>,
    /// Address of the service of db.
    pub service: String,
}

impl<'a> Shop<'a> {
    /// Both run when this returns; in no mesh.
    pub fn open(cluster: &'a Cluster, name: &str) -> Self {
        let namespace = cluster.namespace(name);
        let nodes = cluster.nodes();
        assert!(nodes.len() >= 2, "stories need two nodes");
        cluster.apply(&manifests(name, &nodes));
        for pod in ["pod/web", "pod/db"] {
            cluster.wait("condition=Ready", pod, name);
        }
        let service = cluster.kubectl(&["-n", name, "get", "service", "db", "-o", "jsonpath={.spec.clusterIP}"]);
        Self { cluster, namespace, nodes, service }
    }

    pub fn name(&self) -> &str {
        &self.namespace.name
    }

    /// The node of web.
    pub fn node(&self) -> &str {
        &self.nodes[0]
    }

    pub fn enrol(&self) {
        let label = "istio.io/dataplane-mode=ambient";
        self.cluster.kubectl(&["label", "namespace", self.name(), label, "--overwrite"]);
    }

    /// web asks db for something; what db answers.
    pub fn ask(&self, what: &str) -> Result<String, String> {
        let url = format!("http://{}:{HTTP}/{what}", self.service);
        self.cluster.exec(self.name(), "web", &["wget", "-q", "-O", "-", &url])
    }

    /// Until a question to db is answered and does not pass in the clear. Every question is another, so that one of before the
    /// label has no part in it.
    pub fn ask_until_encrypted(&self, wire: Option<&Wire>) {
        let mut number = 0;
        mesh_kubernetes_tests::eventually("what web asks db is encrypted", super::READY, || {
            number += 1;
            let question = format!("question-{number}-of-{}", self.name());
            self.ask(&question)?;
            let is_encrypted = self.is_encrypted()?;
            if wire.is_some_and(|wire| wire.has_seen(&question)) {
                return Err(format!("{question} passed in the clear"));
            }
            is_encrypted.then_some(()).ok_or_else(|| "the agent of db has taken no such connection".to_owned())
        });
    }

    /// The label goes again.
    pub fn unlabel(&self) {
        self.cluster.kubectl(&["label", "namespace", self.name(), "istio.io/dataplane-mode-"]);
    }

    /// A pod opens a connection to db, says something on it and keeps it.
    pub fn hold(&self, pod: &str) {
        let line = format!(
            "(while echo tick; do sleep 0.2; done | nc {} 9000 >/tmp/echoed; echo cut >/tmp/held) >/dev/null 2>&1 &",
            self.service
        );
        self.cluster.exec(self.name(), pod, &["sh", "-c", &line]).expect("a shell in the pod");
    }

    /// It is still there. What is said on it later tells nothing: busybox's nc waits for more once it has heard something.
    pub fn holds(&self, pod: &str) {
        let run = |line: &str| self.cluster.exec(self.name(), pod, &["sh", "-c", line]);
        let lives = run("cat /tmp/held 2>/dev/null; pidof nc >/dev/null && echo lives");
        assert_eq!(lives.as_deref(), Ok("lives"), "the connection that {pod} holds was cut");
    }

    /// web asks one question after the other, each on a connection of its own, and keeps account.
    pub fn load(&self, question: &str) -> Load<'_> {
        let url = format!("http://{}:{HTTP}/{question}", self.service);
        let line = format!(
            "(while true; do if wget -q -O /dev/null {url} 2>/tmp/said; then echo x >>/tmp/answered; \
             else echo \"$(date) $(cat /tmp/said)\" >>/tmp/failed; fi; done) >/dev/null 2>&1 &"
        );
        self.cluster.exec(self.name(), "web", &["sh", "-c", &line]).expect("a shell in web");
        let load = Load { shop: self, seen: std::cell::Cell::new(0) };
        load.answered_more();
        load
    }

    /// Whether the agent of db's node has taken a connection of web by mutual TLS, each end under its own name.
    fn is_encrypted(&self) -> Result<bool, String> {
        let agent = self.cluster.agent_of(&self.nodes[1]);
        let log = self.cluster.try_kubectl(&["-n", MESH, "logs", &agent, "--since=60s"])?;
        let identity = |end: &str, account: &str| {
            format!(" {end}.identity=spiffe://cluster.local/ns/{}/sa/{account} ", self.name())
        };
        let (source, destination) = (identity("src", "web"), identity("dst", "db"));
        let is_such = |line: &str| {
            line.contains(" direction=inbound ")
                && line.contains(" security=mutual_tls ")
                && line.contains(&source)
                && line.contains(&destination)
        };
        Ok(log.lines().any(is_such))
    }
}

/// Questions that go on.
pub struct Load<'a> {
    shop: &'a Shop<'a>,
    seen: std::cell::Cell<usize>,
}

impl Load<'_> {
    /// Waits until more questions are answered; how many since it was asked before.
    pub fn answered_more(&self) -> usize {
        mesh_kubernetes_tests::eventually("questions are answered", super::READY, || {
            let (before, now) = (self.seen.get(), self.lines("answered").len());
            if now < before + 20 {
                return Err(format!("{now} after {before}; failed: {:?}", self.failures()));
            }
            self.seen.set(now);
            Ok(now - before)
        })
    }

    /// All that was not answered.
    pub fn failures(&self) -> Vec<String> {
        self.lines("failed")
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let line = format!("cat /tmp/{file} 2>/dev/null || true");
        let text = self.shop.cluster.exec(self.shop.name(), "web", &["sh", "-c", &line]).expect("a shell in web");
        text.lines().map(str::to_owned).collect()
    }
}

fn manifests(namespace: &str, nodes: &[String]) -> String {
    format!(
        r#"
apiVersion: v1
kind: ServiceAccount
metadata: {{name: web, namespace: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: db, namespace: {namespace}}}
---
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: {namespace}}}
spec:
  selector: {{app: db}}
  ports: [{{name: http, port: {HTTP}}}, {{name: tcp, port: 9000}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: db, namespace: {namespace}, labels: {{app: db}}}}
spec:
  serviceAccountName: db
  nodeName: {db}
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: localhost/echo:1
    imagePullPolicy: IfNotPresent
    ports: [{{containerPort: {HTTP}}}, {{containerPort: 9000}}]
    readinessProbe: {{httpGet: {{path: /healthz, port: {HTTP}}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: {namespace}, labels: {{app: web}}}}
spec:
  serviceAccountName: web
  nodeName: {web}
  terminationGracePeriodSeconds: 0
  containers:
  - name: busybox
    image: localhost/busybox:1
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
"#,
        web = nodes[0],
        db = nodes[1],
    )
}
