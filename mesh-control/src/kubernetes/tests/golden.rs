//! The table of golden cases over an API server.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    api_server::{ApiServer, apply, delete, objects},
    eventually,
};
use crate::{
    golden::{cases, compiled, lines},
    kubernetes::{self, store::Store},
    metrics::Metrics,
};

/// What a change takes at most to be seen.
const LIMIT: Duration = Duration::from_secs(10);

fn state(store: &Store) -> String {
    if !store.is_complete() {
        return format!("{:?}", store.kinds());
    }
    let desired = store.desired();
    lines(&desired, &compiled(&desired))
}

async fn comes_to(store: &Store, expected: &str) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let found = state(store);
        if found == expected {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(found);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Namespaces cannot be removed while nobody finishes them off: they are made as they were.
async fn undo(client: &kube::Client, object: &Value) {
    match object["kind"] == "Namespace" {
        true => {
            apply(
                client,
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": object["metadata"]["name"]}}),
            )
            .await
        }
        false => delete(client, object).await,
    }
}

#[tokio::test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
async fn an_api_server_comes_to_what_the_table_says() {
    let server = ApiServer::start().await;
    let client = server.client().await;
    let control = kubernetes::connect(Some(&server.kubeconfig())).await.expect("good credentials");
    let store = kubernetes::watch(&control, &Metrics::new());
    eventually("all kinds are listed", LIMIT, async || match state(&store) {
        text if text.is_empty() => Ok(()),
        text => Err(text),
    })
    .await;
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for case in cases().into_iter().filter(|case| case.is_for_api_server()) {
        let given: Vec<Value> = case.given.iter().flat_map(|text| objects(text)).collect();
        for object in &given {
            apply(&client, object).await;
        }
        if let Err(found) = comes_to(&store, &case.expected).await {
            wrong.push(format!("=== {}\n{found}\n", case.name));
        }
        for object in given.iter().rev() {
            undo(&client, object).await;
        }
        comes_to(&store, "").await.unwrap_or_else(|left| panic!("{}: what was removed stays: {left}", case.name));
        seen += 1;
    }
    assert!(seen >= 80, "{seen} cases");
    assert!(wrong.is_empty(), "{} of {seen} cases come to something else:\n{}", wrong.len(), wrong.join("\n"));
}
