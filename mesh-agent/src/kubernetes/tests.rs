//! The decisions, against an API server with fixed answers and a registry that remembers. Real ones are in the stories.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_api::proto::admin::{CniAddRequest, Sandbox};
use serde_json::{Value, json};
use tonic::Code;

use super::*;
use crate::{
    config::KubernetesSettings,
    drain::Drain,
    enrol::{Conflict, EnrolError, Script},
};

static PLACES: AtomicU32 = AtomicU32::new(0);

/// What the API server has. Silent: nothing is answered.
#[derive(Default)]
struct Objects {
    pods: BTreeMap<String, Value>,
    namespaces: BTreeMap<String, Option<&'static str>>,
    /// A namespace that is being deleted.
    ending: Option<&'static str>,
    is_silent: bool,
    version: u64,
}

type Shared = Arc<Mutex<Objects>>;

fn namespace(name: &str, mode: Option<&str>) -> Value {
    let labels = mode.map(|mode| json!({"istio.io/dataplane-mode": mode})).unwrap_or(json!({}));
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": name, "labels": labels, "resourceVersion": "1"}})
}

fn pod(mode: Option<&str>, address: Option<&str>) -> Value {
    let labels = mode.map(|mode| json!({"istio.io/dataplane-mode": mode})).unwrap_or(json!({}));
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": labels, "resourceVersion": "1"},
        "spec": {"nodeName": "node-a", "serviceAccountName": "web",
            "containers": [{"name": "a", "livenessProbe": {"tcpSocket": {"port": 8080}}}]},
        "status": {"phase": "Running", "podIP": address}})
}

fn json_response(code: StatusCode, body: &Value) -> Response {
    (code, [("content-type", "application/json")], body.to_string()).into_response()
}

async fn one_pod(State(all): State<Shared>, Path((_, name)): Path<(String, String)>) -> Response {
    answer(&all, |all| all.pods.get(&name).cloned())
}

async fn one_namespace(State(all): State<Shared>, Path(name): Path<String>) -> Response {
    answer(&all, |all| all.namespaces.get(&name).map(|mode| namespace(&name, *mode)))
}

fn answer(all: &Shared, find: impl FnOnce(&Objects) -> Option<Value>) -> Response {
    let all = all.lock().unwrap();
    match find(&all) {
        _ if all.is_silent => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Some(found) => json_response(StatusCode::OK, &found),
        None => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
                "message": "not found", "code": 404});
            json_response(StatusCode::NOT_FOUND, &status)
        }
    }
}

/// A list of now; a watch ends at once, and with a version that is gone when something has changed.
fn list(all: &Shared, query: &BTreeMap<String, String>, items: impl FnOnce(&Objects) -> Vec<Value>) -> Response {
    let all = all.lock().unwrap();
    if all.is_silent {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if query.get("watch").is_some_and(|value| value == "true") {
        if query.get("resourceVersion").is_some_and(|version| *version == all.version.to_string()) {
            return String::new().into_response();
        }
        let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "reason": "Expired", "message": "too old", "code": 410}});
        return format!("{gone}\n").into_response();
    }
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": all.version.to_string()},
        "items": items(&all)});
    json_response(StatusCode::OK, &list)
}

async fn pods(State(all): State<Shared>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    list(&all, &query, |all| all.pods.values().cloned().collect())
}

async fn namespaces(State(all): State<Shared>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let told = |all: &Objects| {
        let one = |(name, mode): (&String, &Option<&'static str>)| {
            let mut one = namespace(name, *mode);
            if all.ending == Some(name) {
                one["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            one
        };
        all.namespaces.iter().map(one).collect()
    };
    list(&all, &query, told)
}

/// A node with one pod, whose one process is this one.
struct Scene {
    objects: Shared,
    script: Arc<Mutex<Script>>,
    cluster: Arc<Cluster>,
    place: PathBuf,
    tasks: Drain,
}

impl Scene {
    async fn with(pod: Value, mode: Option<&'static str>) -> Self {
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("mesh-kubernetes-{}-{number}", std::process::id()));
        let cgroup = place.join("cgroup/kubepods/burstable/podu1");
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        let objects = Shared::default();
        {
            let mut all = objects.lock().unwrap();
            all.pods.insert("web".into(), pod);
            all.namespaces.insert("shop".into(), mode);
        }
        let tasks = Drain::default();
        let kubeconfig = place.join("kubeconfig");
        serve(&objects, &kubeconfig, &tasks).await;
        let settings = KubernetesSettings { kubeconfig: Some(kubeconfig), daemon_set: None, cni: None };
        let api = Api::new("node-a", &settings).await.unwrap();
        let (enrolment, script) = Enrolment::scripted();
        let cluster = Cluster::new(api, &place.join("cgroup"), enrolment);
        Self { objects, script, cluster, place, tasks }
    }

    /// From here on the watches and the follower run.
    fn follow(&self, pods: values::Receiver<u64>) {
        for task in self.cluster.tasks(pods) {
            self.tasks.spawn(task);
        }
    }

    /// What the watches have told so far: the pod, and its namespace's label.
    fn knows(&self, pod: &Value, mode: Option<&str>) {
        let known = serde_json::from_value(pod.clone()).unwrap();
        self.cluster.known.set_pods(pod::NodePod::read(&known, None).into_iter().collect());
        self.cluster.known.set_namespaces([("shop".to_owned(), mode.map(str::to_owned))].into());
    }

    fn change(&self, change: impl FnOnce(&mut Objects)) {
        let mut all = self.objects.lock().unwrap();
        change(&mut all);
        all.version += 1;
    }

    async fn add(&self) -> Result<(bool, String), Code> {
        self.add_as("u1").await
    }

    async fn add_as(&self, uid: &str) -> Result<(bool, String), Code> {
        let request = CniAddRequest { sandbox: Some(sandbox(uid)), addresses: vec!["10.0.0.1".into()] };
        let answer = self.cluster.add(request).await.map_err(|status| status.code())?;
        Ok((answer.enrolled, answer.reason))
    }

    fn asked(&self) -> Vec<String> {
        // What has not changed is told again and again, and is nothing new to a registry.
        let asked = &self.script.lock().unwrap().asked;
        asked.iter().filter(|asked| !asked.starts_with("fail-open")).cloned().collect()
    }

    async fn becomes(&self, wanted: &[&str]) {
        for _ in 0..400 {
            if self.asked() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert_eq!(self.asked(), wanted);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.place).unwrap();
    }
}

async fn serve(objects: &Shared, kubeconfig: &std::path::Path, tasks: &Drain) {
    let router = Router::new()
        .route("/api/v1/pods", get(pods))
        .route("/api/v1/namespaces", get(namespaces))
        .route("/api/v1/namespaces/{name}", get(one_namespace))
        .route("/api/v1/namespaces/{namespace}/pods/{name}", get(one_pod))
        .with_state(objects.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = json!({"server": format!("http://{}", listener.local_addr().unwrap())});
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": server}], "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    fs::write(kubeconfig, config.to_string()).unwrap();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
}

fn sandbox(uid: &str) -> Sandbox {
    Sandbox {
        container_id: "c1".into(),
        network_namespace_path: "/proc/self/ns/net".into(),
        namespace: "shop".into(),
        name: "web".into(),
        uid: uid.into(),
    }
}

const LABEL: &str = "neither it nor its namespace is labelled istio.io/dataplane-mode=ambient";

#[tokio::test]
async fn a_pod_that_nobody_has_told_of_is_asked_for_and_its_labels_decide() {
    let cases = [
        (None, Some("ambient"), Ok((true, String::new()))),
        (None, None, Ok((false, LABEL.to_owned()))),
        (Some("none"), Some("ambient"), Ok((false, LABEL.to_owned()))),
        (Some("ambient"), None, Ok((true, String::new()))),
    ];
    for (own, inherited, expected) in cases {
        let scene = Scene::with(pod(own, None), inherited).await;
        assert_eq!(scene.add().await, expected, "{own:?} in {inherited:?}");
        let asked = if expected.unwrap().0 { vec!["enrol u1 [8080] false"] } else { vec![] };
        assert_eq!(scene.asked(), asked);
    }
}

#[tokio::test]
async fn what_nobody_can_say_does_not_start() {
    let scene = Scene::with(pod(None, None), Some("ambient")).await;
    assert_eq!(scene.add_as("another").await, Err(Code::FailedPrecondition));
    scene.change(|all| all.is_silent = true);
    assert_eq!(scene.add().await, Err(Code::Unavailable));
    scene.change(|all| {
        all.is_silent = false;
        all.pods.clear();
    });
    assert_eq!(scene.add().await, Err(Code::FailedPrecondition));
    assert_eq!(scene.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pod_that_cannot_be_steered_does_not_start() {
    let scene = Scene::with(pod(None, None), Some("ambient")).await;
    scene.script.lock().unwrap().refusals.push_back(EnrolError::Listener("in use".into()));
    assert_eq!(scene.add().await, Err(Code::InvalidArgument));
    fs::remove_dir_all(scene.place.join("cgroup/kubepods")).unwrap();
    assert_eq!(scene.add().await, Err(Code::FailedPrecondition));
}

#[tokio::test]
async fn a_label_that_the_watch_has_not_told_of_counts() {
    let scene = Scene::with(pod(None, None), Some("ambient")).await;
    scene.cluster.known.set_namespaces([("shop".to_owned(), None)].into());
    assert_eq!(scene.add().await.map(|answer| answer.0), Ok(true));

    // What the watch said last counts when there is no answer, for pods that it knows.
    let scene = Scene::with(pod(None, None), None).await;
    scene.knows(&pod(None, None), None);
    scene.change(|all| all.is_silent = true);
    assert_eq!(scene.add().await, Ok((false, LABEL.to_owned())));
    scene.cluster.known.set_namespaces([].into());
    assert_eq!(scene.add().await, Err(Code::Unavailable));
}

#[tokio::test]
async fn what_a_start_has_learned_is_not_taken_back_by_what_the_watch_said_before() {
    let pod = pod(None, Some("10.0.0.1"));
    let scene = Scene::with(pod.clone(), Some("ambient")).await;
    scene.knows(&pod, None);
    assert_eq!(scene.add().await.map(|answer| answer.0), Ok(true));
    let (_changes, pods) = values::channel(0);
    scene.tasks.spawn(Follower::new(scene.cluster.clone(), pods).run());
    // It looks at the pod, and leaves it where it is.
    let is_seen = || scene.script.lock().unwrap().asked.len() > 1;
    while !is_seen() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(scene.script.lock().unwrap().asked, ["enrol u1 [8080] false", "fail-open u1 false"]);
}

#[tokio::test]
async fn only_a_runtime_knows_of_a_new_sandbox() {
    let pod = pod(None, Some("10.0.0.1"));
    let scene = Scene::with(pod.clone(), Some("ambient")).await;
    scene.knows(&pod, Some("ambient"));
    let differs = Conflict::Differs { uid: "u1".into(), field: "addresses" };
    scene.script.lock().unwrap().refusals.push_back(differs.into());
    let (_changes, pods) = values::channel(0);
    scene.tasks.spawn(Follower::new(scene.cluster.clone(), pods).run());
    scene.becomes(&["enrol u1 [8080] false"]).await;
    scene.cluster.changed.notify_one();
    scene.becomes(&["enrol u1 [8080] false", "enrol u1 [8080] false"]).await;
}

#[tokio::test]
async fn an_agent_whose_namespace_is_being_deleted_is_not_wanted_any_more() {
    let scene = Scene::with(pod(None, None), None).await;
    scene.change(|all| _ = all.namespaces.insert("mesh-system".into(), None));
    let daemon_set = Some(("mesh-system".to_owned(), "mesh-agent".to_owned()));
    let settings = KubernetesSettings { kubeconfig: Some(scene.place.join("kubeconfig")), daemon_set, cni: None };
    let api = Api::new("node-a", &settings).await.unwrap();
    let cluster = Cluster::new(api, &scene.place, Enrolment::scripted().0);
    scene.tasks.spawn(watch::namespaces(cluster.clone()));
    while cluster.known.mode("mesh-system").is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!cluster.is_removed().await);
    scene.change(|all| all.ending = Some("mesh-system"));
    for _ in 0..400 {
        if cluster.is_removed().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it stays although its namespace goes");
}

#[tokio::test]
async fn a_new_sandbox_takes_the_place_of_the_old_one_whose_end_takes_nothing() {
    let scene = Scene::with(pod(None, None), Some("ambient")).await;
    let differs = Conflict::Differs { uid: "u1".into(), field: "network_namespace" };
    scene.script.lock().unwrap().refusals.push_back(differs.into());
    assert_eq!(scene.add().await.map(|answer| answer.0), Ok(true));
    let expected = ["enrol u1 [8080] false", "withdraw u1", "enrol u1 [8080] false"];
    assert_eq!(scene.asked(), expected);

    let of_before = Sandbox { network_namespace_path: "/run/netns/gone".into(), ..sandbox("u1") };
    let refused = scene.cluster.delete(Some(of_before)).await.map_err(|status| status.code());
    assert_eq!(refused, Err(Code::NotFound));
    assert_eq!(scene.asked(), expected);
    assert!(scene.cluster.check(Some(sandbox("u1"))).await.is_ok());
    assert!(scene.cluster.delete(Some(sandbox(""))).await.is_err(), "no uid, and the watch knows of none");
    assert!(scene.cluster.delete(Some(sandbox("u1"))).await.is_ok());
    assert_eq!(scene.asked().len(), 4);
    let refused = scene.cluster.check(Some(sandbox("u1"))).await.map_err(|status| status.code());
    assert_eq!(refused, Err(Code::NotFound));
}

#[tokio::test]
async fn running_pods_follow_their_labels() {
    let (_changes, pods) = values::channel(0);
    let scene = Scene::with(pod(None, Some("10.0.0.1")), None).await;
    scene.follow(pods);
    let mut expected = Vec::new();
    for (mode, does) in [(Some("ambient"), "enrol u1 [8080] false"), (None, "withdraw u1")].repeat(2) {
        scene.change(|all| {
            all.namespaces.insert("shop".into(), mode);
        });
        expected.push(does);
        scene.becomes(&expected).await;
    }
    let outside = scene.cluster.outside();
    for _ in 0..200 {
        if outside.load().get(&("shop".into(), "web".into())).is_some_and(|reason| reason == LABEL) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the reason is not shown: {:?}", outside.load());
}

#[tokio::test]
async fn when_the_mesh_leaves_pods_start_without_it_and_all_are_withdrawn() {
    let scene = Scene::with(pod(None, None), Some("ambient")).await;
    assert_eq!(scene.add().await.map(|answer| answer.0), Ok(true));
    scene.cluster.withdraw_all().await;
    assert_eq!(scene.add().await, Ok((false, "the mesh is being taken off this node".to_owned())));
    assert_eq!(scene.asked(), ["enrol u1 [8080] false", "withdraw u1"]);
}
