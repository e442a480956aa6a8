//! Watches through all that happens to an API server.

use std::{path::Path, sync::Arc, time::Duration};

use clap::Parser;
use serde_json::json;

use super::{
    api_server::{ApiServer, apply, apply_all, definitions, delete, objects},
    cut::Way,
    eventually, never,
};
use crate::{
    begin::{self, Started},
    kubernetes::store::Availability,
    metrics::Metrics,
    publish::snapshot::Kind,
    settings::Settings,
};

/// What a change takes at most to be published; the return of an API server is one.
const LIMIT: Duration = Duration::from_secs(10);

fn settings(kubeconfig: &Path) -> Settings {
    let file = kubeconfig.to_str().expect("utf-8");
    let line = ["mesh-control", "--kubernetes", "--kubeconfig", file, "--namespace", "mesh-system"];
    Settings::parse_from(line)
}

fn service(name: &str) -> serde_json::Value {
    let metadata = json!({"namespace": "shop", "name": name});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}})
}

fn policy(name: &str) -> serde_json::Value {
    let metadata = json!({"namespace": "shop", "name": name});
    let spec = json!({"action": "DENY", "rules": [{}]});
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
}

/// Waits until a service is published, or is not any more.
async fn publishes(started: &Started, name: &str, is_there: bool) {
    let key = format!("shop/{name}.shop.svc.cluster.local");
    has(started, Kind::Address, &key, is_there).await;
}

async fn has(started: &Started, kind: Kind, key: &str, is_there: bool) {
    let what = format!("{key} is {}", if is_there { "published" } else { "withdrawn" });
    eventually(&what, LIMIT, async || match started.state.borrow().entry(kind, key).is_some() == is_there {
        true => Ok(()),
        false => Err(format!("{:?}", started.config.borrow().kinds)),
    })
    .await;
}

fn availability(started: &Started, kind: &str) -> Availability {
    let report = started.config.borrow().clone();
    let found = report.kinds.iter().find(|found| found.kind.starts_with(kind)).map(|found| found.availability.clone());
    found.unwrap_or_default()
}

async fn is_failing(started: &Started, kind: &str) {
    eventually(&format!("{kind} is said to fail"), LIMIT, async || match availability(started, kind) {
        Availability::Failing(_) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

async fn is_missing(started: &Started, kind: &str) {
    eventually(&format!("{kind} is said to be missing"), LIMIT, async || match availability(started, kind) {
        Availability::Missing => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

fn lists(metrics: &Metrics, kind: &str) -> String {
    let start = format!("mesh_kubernetes_lists_total{{kind=\"{kind}\"}} ");
    metrics.text().lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_default().to_owned()
}

#[tokio::test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
async fn an_api_server_may_be_late_go_away_and_forget() {
    let server = ApiServer::start().await;
    let client = server.client().await;
    apply(&client, &service("first")).await;
    let way = Way::to(server.address()).await;
    let settings = settings(&server.kubeconfig_by(way.address));
    let metrics = Metrics::new();

    // Late: control waits, and says nothing to agents.
    server.kill();
    let waiting = tokio::spawn({
        let metrics: Arc<Metrics> = metrics.clone();
        async move { begin::on_kubernetes(&settings, &metrics, never()).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished() && !metrics.is_ready(), "it has begun without knowing anything");
    server.up();
    let started = waiting.await.expect("no panic").expect("begun");
    publishes(&started, "first", true).await;

    // Away: what was seen stays, and watches go on from where they were.
    let before = lists(&metrics, "Service");
    server.kill();
    is_failing(&started, "Service").await;
    publishes(&started, "first", true).await;
    server.up();
    apply(&client, &service("second")).await;
    publishes(&started, "second", true).await;
    assert_eq!(availability(&started, "Service"), Availability::Watched);
    let after_restart = lists(&metrics, "Service");
    eventually("a kind of which nothing changes is said to be watched", LIMIT * 2, async || {
        match availability(&started, "Node") {
            Availability::Watched => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // Forgotten: the versions between are gone for good, so everything is listed again.
    way.cut();
    is_failing(&started, "Service").await;
    delete(&client, &service("first")).await;
    apply(&client, &service("third")).await;
    server.forget_history();
    server.kill();
    server.up();
    way.mend();
    publishes(&started, "third", true).await;
    publishes(&started, "first", false).await;
    assert_ne!(
        lists(&metrics, "Service"),
        after_restart,
        "it was not listed again, so it went on from a version that is gone"
    );
    println!(
        "lists of Services: {before} at first, {after_restart} after a restart, {} at the end",
        lists(&metrics, "Service")
    );
}

#[tokio::test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
async fn a_kind_that_is_missing_is_said_and_picked_up_when_it_appears() {
    let server = ApiServer::bare().await;
    let client = server.client().await;
    apply(&client, &service("web")).await;
    let started = begin::on_kubernetes(&settings(&server.kubeconfig()), &Metrics::new(), never()).await.expect("begun");
    publishes(&started, "web", true).await;
    for kind in ["AuthorizationPolicy", "PeerAuthentication", "WorkloadEntry", "ServiceEntry", "MeshConfig"] {
        is_missing(&started, kind).await;
    }

    for _ in 0..2 {
        apply_all(&client, &definitions()).await;
        eventually("the kind is served", LIMIT, async || {
            let (api, name) = super::api_server::api(&client, &policy("deny"));
            api.get_opt(&name).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        apply(&client, &policy("deny")).await;
        has(&started, Kind::Authorization, "shop/deny", true).await;
        let definition =
            |object: &serde_json::Value| object["metadata"]["name"] == "authorizationpolicies.security.istio.io";
        let definition = objects(&definitions()).into_iter().find(definition).expect("there");
        delete(&client, &definition).await;
        has(&started, Kind::Authorization, "shop/deny", false).await;
        is_missing(&started, "AuthorizationPolicy").await;
    }
    publishes(&started, "web", true).await;
}
