//! What authors are told of their objects, by one of two replicas.

use std::time::Duration;

use k8s_openapi::api::{coordination::v1::Lease, events::v1::Event};
use kube::{Api, Client, api::ListParams};
use serde_json::{Value, json};

use super::{
    api_server::{ApiServer, api, apply, apply_all, definitions},
    eventually,
};
use crate::testing::Running;

/// A condition, an event, another leader after one that said goodbye.
const LIMIT: Duration = Duration::from_secs(20);

fn policy(name: &str, spec: Value) -> Value {
    let metadata = json!({"namespace": "shop", "name": name});
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
}

fn good(name: &str) -> Value {
    policy(name, json!({"action": "DENY", "rules": [{}]}))
}

async fn conditions(client: &Client, name: &str) -> Vec<Value> {
    let (api, name) = api(client, &good(name));
    let object = api.get(&name).await.expect("there");
    object.data["status"]["conditions"].as_array().cloned().unwrap_or_default()
}

/// Waits until our condition says so, and answers its message.
async fn says(client: &Client, name: &str, status: &str, generation: i64) -> String {
    eventually(&format!("{name} is {status}"), LIMIT, async || {
        let all = conditions(client, name).await;
        let ours = all.iter().find(|condition| condition["type"] == "mesh.dev/Accepted");
        let is_said = |ours: &&Value| ours["status"] == status && ours["observedGeneration"] == generation;
        let message = ours.filter(is_said).and_then(|ours| ours["message"].as_str().map(str::to_owned));
        message.ok_or_else(|| format!("{all:?}"))
    })
    .await
}

async fn events(client: &Client, about: &str) -> Vec<Event> {
    let all: Api<Event> = Api::all(client.clone());
    let all = all.list(&ListParams::default()).await.expect("listed").items;
    let is_about = |event: &Event| event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(about);
    all.into_iter().filter(is_about).collect()
}

async fn holder(client: &Client) -> String {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "mesh-system");
    let lease = leases.get_opt("mesh-control").await.expect("answered");
    lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default()
}

/// Another controller says its own.
async fn another_says(client: &Client, name: &str, kind: &str) {
    let (api, name) = api(client, &good(name));
    let condition = json!({"type": kind, "status": "True", "reason": "Accepted", "message": "attached"});
    let body = json!({"status": {"conditions": [condition]}});
    api.patch_status(&name, &Default::default(), &kube::api::Patch::Merge(&body)).await.expect("written");
}

fn types(conditions: &[Value]) -> Vec<&str> {
    conditions.iter().filter_map(|condition| condition["type"].as_str()).collect()
}

#[tokio::test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
async fn authors_are_told_once_whichever_replica_leads() {
    let server = ApiServer::start().await;
    let client = server.client().await;
    apply(&client, &good("good")).await;
    another_says(&client, "good", "ZtunnelAccepted").await;
    apply(&client, &policy("http", json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}))).await;
    let name = json!({"namespace": "shop", "name": "out"});
    let spec = json!({"type": "ExternalName", "externalName": "example.com"});
    apply(&client, &json!({"apiVersion": "v1", "kind": "Service", "metadata": name, "spec": spec})).await;

    let first = Running::on_kubernetes(&server.kubeconfig(), "first").await;
    let message = says(&client, "http", "False", 1).await;
    assert!(message.starts_with("spec.rules[0].to[0].operation.methods: speaks of HTTP requests"), "{message}");
    assert!(message.ends_with("Everything that it selects is denied until it is mended"), "{message}");
    says(&client, "good", "True", 1).await;
    assert_eq!(types(&conditions(&client, "good").await), ["ZtunnelAccepted", "mesh.dev/Accepted"]);
    for refused in ["http", "out"] {
        let told = eventually("an event", LIMIT, async || match events(&client, refused).await {
            told if told.is_empty() => Err("none".to_owned()),
            told => Ok(told),
        })
        .await;
        assert_eq!((told.len(), told[0].reason.as_deref()), (1, Some("Refused")));
    }
    assert!(events(&client, "good").await.is_empty());
    assert_eq!(holder(&client).await, "first");

    // A second one watches and is silent; when the first ends, it goes on where that one stopped.
    let second = Running::on_kubernetes(&server.kubeconfig(), "second").await;
    apply(&client, &policy("http", json!({"rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}))).await;
    says(&client, "http", "True", 2).await;
    assert_eq!(holder(&client).await, "first");
    first.stop().await;
    apply(&client, &good("late")).await;
    says(&client, "late", "True", 1).await;
    assert_eq!(holder(&client).await, "second");
    assert_eq!(events(&client, "out").await.len(), 1, "told again by another replica");
    second.stop().await;
}

#[tokio::test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
async fn where_conditions_are_a_list_by_type_only_ours_is_ours() {
    let server = ApiServer::bare().await;
    let client = server.client().await;
    let condition = "{type: object, required: [type], properties: {type: {type: string}}, x-kubernetes-preserve-unknown-fields: true}";
    let list =
        format!("{{type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [type], items: {condition}}}");
    let status = format!("{{type: object, properties: {{conditions: {list}}}}}");
    let whole = "openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true";
    let with = format!("{whole}, properties: {{status: {status}}}");
    apply_all(&client, &definitions().replace(whole, &with)).await;
    eventually("the kind is served", LIMIT, async || {
        let (api, name) = api(&client, &good("good"));
        api.get_opt(&name).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    apply(&client, &good("good")).await;
    another_says(&client, "good", "ZtunnelAccepted").await;
    let daemon = Running::on_kubernetes(&server.kubeconfig(), "only").await;
    says(&client, "good", "True", 1).await;
    assert_eq!(types(&conditions(&client, "good").await), ["ZtunnelAccepted", "mesh.dev/Accepted"]);
    let (api, name) = api(&client, &good("good"));
    let managed = api.get(&name).await.expect("there").metadata.managed_fields.unwrap_or_default();
    let ours: Vec<_> = managed.iter().filter(|entry| entry.manager.as_deref() == Some("mesh-control")).collect();
    let fields = serde_json::to_string(&ours[0].fields_v1).expect("JSON");
    assert!(ours.len() == 1 && fields.contains("mesh.dev/Accepted") && !fields.contains("Ztunnel"), "{fields}");
    daemon.stop().await;
}
