//! A real API server with its etcd, started and ended by the scripts of tests/cluster. Every test that changes what it is
//! has one of its own.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use k8s_openapi::api::{authentication::v1::TokenRequest, core::v1::ServiceAccount};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{kubernetes::connect, testing::TempFolder};

/// Who writes in tests.
const WRITER: &str = "test";
/// A running API server; ended, with all that it stored, when dropped.
pub struct ApiServer {
    state: TempFolder,
    port: u16,
}

impl ApiServer {
    /// A new one, with the kinds of Istio and of the mesh, and what admission wants to find.
    pub async fn start() -> ApiServer {
        let server = ApiServer::bare().await;
        apply_all(&server.client().await, &definitions()).await;
        server
    }

    /// A new one without any kind but Kubernetes' own.
    pub async fn bare() -> ApiServer {
        let server = ApiServer { state: TempFolder::new(), port: free_ports() };
        server.up();
        let client = server.client().await;
        for namespace in ["shop", "other", "istio-system", "mesh-system", "default"] {
            apply(&client, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).await;
            for account in ["default", "web", "api", "mesh-agent", "mesh-control"] {
                let metadata = json!({"namespace": namespace, "name": account});
                apply(&client, &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})).await;
            }
        }
        apply_all(&client, include_str!("../roles.yaml")).await;
        server.write_control(&token_of_control(&client).await);
        server
    }

    /// Credentials that may do what the control daemon needs, and nothing else.
    fn write_control(&self, token: &str) {
        let text = std::fs::read_to_string(self.administrator()).expect("it was started");
        let mut config: Value = serde_saphyr::from_str(&text).expect("YAML");
        config["users"][0]["user"] = json!({"token": token});
        std::fs::write(self.kubeconfig(), config.to_string()).expect("written");
    }

    /// Starts what does not run.
    pub fn up(&self) {
        self.script("up", &["--api-only"]);
    }

    /// Kills the API server; etcd and what it stores stay.
    pub fn kill(&self) {
        let file = self.state.0.join("run/kube-apiserver.pid");
        let text = std::fs::read_to_string(file).expect("it was started");
        let id = text.split(' ').next().and_then(|word| word.parse().ok()).expect("a process number");
        let process = rustix::process::Pid::from_raw(id).expect("a process number");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("it runs");
        // It holds its port until all of its memory is given back.
        let until = Instant::now() + Duration::from_secs(10);
        while TcpListener::bind(self.address()).is_err() {
            assert!(Instant::now() < until, "the API server outlives being killed");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Makes etcd forget all earlier versions of everything.
    pub fn forget_history(&self) {
        let get = self.etcd("range", r#"{"key": "AA=="}"#);
        let revision = get["header"]["revision"].as_str().expect("a revision").to_owned();
        self.etcd("compaction", &format!(r#"{{"revision": {revision}, "physical": true}}"#));
    }

    /// Asks etcd by its JSON gateway.
    fn etcd(&self, call: &str, body: &str) -> Value {
        let path = if call == "range" { "kv/range" } else { "kv/compaction" };
        let url = format!("http://127.0.0.1:{}/v3/{path}", self.port + 1);
        let output = Command::new("curl").args(["-sf", "-d", body, &url]).output().expect("curl starts");
        assert!(output.status.success(), "etcd refuses {call}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The administrator's credentials.
    fn administrator(&self) -> PathBuf {
        self.state.0.join("pki/admin.kubeconfig")
    }

    /// The control daemon's credentials.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.0.join("pki/mesh-control.kubeconfig")
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Credentials for the same by way of another address.
    pub fn kubeconfig_by(&self, address: SocketAddr) -> PathBuf {
        let text = std::fs::read_to_string(self.kubeconfig()).expect("it was started");
        let path = self.state.0.join(format!("by-{}.kubeconfig", address.port()));
        std::fs::write(&path, text.replace(&self.address().to_string(), &address.to_string())).expect("written");
        path
    }

    /// The administrator's client.
    pub async fn client(&self) -> Client {
        connect(Some(&self.administrator())).await.expect("good credentials")
    }

    fn script(&self, name: &str, arguments: &[&str]) {
        let output = self.run(name, arguments);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "tests/cluster/{name} failed; build it by `cargo xtask test --cluster`:\n{log}"
        );
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(root().join("tests/cluster").join(name));
        command.args(arguments).env("CLUSTER_STATE", &self.state.0).env("CLUSTER_PORT", self.port.to_string());
        command.env("CLUSTER_SERVICES6", "fd00:96::/108");
        command.output().expect("the script starts")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.run("down", &[]);
    }
}

async fn token_of_control(client: &Client) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "mesh-system");
    let made = accounts.create_token_request("mesh-control", &PostParams::default(), &TokenRequest::default()).await;
    made.expect("a token").status.expect("a token").token
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a directory of the workspace")
}

/// The definitions of Istio's kinds, for tests, and of the mesh's own.
pub fn definitions() -> String {
    let files = ["tests/cluster/manifests/istio-crds.yaml", "deploy/helm/files/crds/meshconfigs.mesh.dev.yaml"];
    let text = |file| std::fs::read_to_string(root().join(file)).expect("a file of the workspace");
    files.map(text).join("\n---\n")
}

/// The first of five ports in a row that nobody has.
fn free_ports() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = u16::try_from(std::process::id() % 1_000).expect("below a thousand");
    loop {
        let first = 18_000 + (process * 10 + NEXT.fetch_add(10, Ordering::Relaxed)) % 12_000;
        let are_free = (first..first + 5).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        if are_free {
            return first;
        }
    }
}

/// What an object is, as the API server has it.
pub fn resource(object: &Value) -> ApiResource {
    let api_version = object["apiVersion"].as_str().expect("apiVersion").to_owned();
    let kind = object["kind"].as_str().expect("kind").to_owned();
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{}s", kind.to_lowercase()),
    };
    ApiResource {
        group: group.into(),
        version: version.into(),
        plural: plural.to_lowercase(),
        kind,
        api_version: api_version.clone(),
    }
}

/// The client for objects like this one, and its name.
pub fn api(client: &Client, object: &Value) -> (Api<DynamicObject>, String) {
    let resource = resource(object);
    let metadata = &object["metadata"];
    let api = match metadata["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    (api, metadata["name"].as_str().expect("a name").to_owned())
}

/// Puts an object as `kubectl apply --server-side` does; its status too, and the end that its metadata speak of.
pub async fn apply(client: &Client, object: &Value) {
    let (api, name) = api(client, object);
    let (params, mut body) = (PatchParams::apply(WRITER).force(), object.clone());
    let metadata = body["metadata"].as_object_mut().expect("metadata");
    let is_ending = metadata.remove("deletionTimestamp").is_some();
    metadata.remove("deletionGracePeriodSeconds");
    let status = body.as_object_mut().expect("an object").remove("status");
    api.patch(&name, &params, &Patch::Apply(&body)).await.unwrap_or_else(|error| panic!("{object}: {error}"));
    if let Some(status) = status {
        let body = json!({"status": status});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&body))
            .await
            .unwrap_or_else(|error| panic!("{object}: {error}"));
    }
    if is_ending {
        let slowly = DeleteParams::default().grace_period(3_600);
        api.delete(&name, &slowly).await.unwrap_or_else(|error| panic!("{object}: {error}"));
    }
}

/// Puts all objects of a text.
pub async fn apply_all(client: &Client, text: &str) {
    for object in objects(text) {
        apply(client, &object).await;
    }
}

/// The objects of a YAML text.
pub fn objects(text: &str) -> Vec<Value> {
    let documents = crate::source::document::split(text).into_iter();
    documents.map(|chunk| serde_saphyr::from_str(chunk.text).expect("YAML")).collect()
}

/// Removes an object at once.
pub async fn delete(client: &Client, object: &Value) {
    let (api, name) = api(client, object);
    match api.delete(&name, &DeleteParams::default().grace_period(0)).await {
        Ok(_) => {}
        // A pod that has ended is removed when it is asked to end.
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => panic!("{object}: {error}"),
    }
}
