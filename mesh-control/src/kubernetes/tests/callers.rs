//! Who may ask what, on a real API server: tokens as agents have them, and as others would like to.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Pod, Secret, ServiceAccount},
    },
};
use kube::{Api, Client, api::PostParams};
use mesh_api::{ADDRESS_TYPE, proto::ca::IstioCertificateRequest};
use rcgen::PKCS_ECDSA_P256_SHA256;
use serde_json::{Value, json};
use tonic::Code;

use super::api_server::{ApiServer, apply, delete};
use crate::{
    ca::tests::{ask, asking, csr, csr_of, uri},
    testing::Running,
    xds::tests::Agent,
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const API: &str = "spiffe://cluster.local/ns/shop/sa/api";

fn pod(namespace: &str, name: &str, account: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "a", "image": "a"}]},
    })
}

/// A token as kubelet gets it for a pod.
async fn token(client: &Client, namespace: &str, account: &str, bound_to: Option<&str>, audience: &str) -> String {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let bound = match bound_to {
        Some(name) => Some(BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name.to_owned()),
            uid: pods.get(name).await.expect("there").metadata.uid,
        }),
        None => None,
    };
    let audiences = vec![audience.to_owned()];
    let spec = TokenRequestSpec { audiences, bound_object_ref: bound, ..TokenRequestSpec::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let made = accounts.create_token_request(account, &PostParams::default(), &request).await.expect("a token");
    made.status.expect("a token").token
}

/// The same token with another content, signed by the API server's own key or by none.
fn changed(server: &ApiServer, token: &str, change: impl Fn(&mut Value), is_signed: bool) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let mut content: Value = serde_json::from_slice(&decoded(parts[1])).expect("JSON");
    change(&mut content);
    let text = format!("{}.{}", parts[0], encoded(content.to_string().into_bytes()));
    let signature = if is_signed { encoded(signed(server, &text)) } else { parts[2].to_owned() };
    format!("{text}.{signature}")
}

fn signed(server: &ApiServer, text: &str) -> Vec<u8> {
    let key = server.kubeconfig().with_file_name("sa.key");
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().expect("openssl starts");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    child.wait_with_output().expect("signed").stdout
}

fn encoded(bytes: Vec<u8>) -> String {
    let text = serde_json::to_value(ByteString(bytes)).expect("base64");
    text.as_str().expect("a text").trim_end_matches('=').replace('+', "-").replace('/', "_")
}

fn decoded(text: &str) -> Vec<u8> {
    let mut text = text.replace('-', "+").replace('_', "/");
    text += &"=".repeat((4 - text.len() % 4) % 4);
    serde_json::from_value::<ByteString>(text.into()).expect("base64").0
}

async fn root(client: &Client) -> String {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "mesh-system");
    super::eventually("the roots are shown", std::time::Duration::from_secs(10), async || {
        let map = maps.get_opt("mesh-ca-root").await.map_err(|error| error.to_string())?;
        map.and_then(|map| map.data?.remove("root-cert.pem")).ok_or_else(|| "not there".to_owned())
    })
    .await
}

fn refused(metrics: &str, reason: &str) -> u64 {
    let start = format!("mesh_certificates_refused_total{{reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().expect("a number"))
}

async fn metrics(daemon: &Running) -> String {
    let output =
        tokio::process::Command::new("curl").args(["-sf", &format!("http://{}/metrics", daemon.http)]).output();
    String::from_utf8(output.await.expect("curl").stdout).expect("text")
}

/// Agents on two nodes, and a workload on each.
async fn cast(client: &Client) {
    for node in ["n1", "n2"] {
        apply(client, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})).await;
    }
    let pods = [
        pod("mesh-system", "agent-1", "mesh-agent", "n1"),
        pod("mesh-system", "agent-2", "mesh-agent", "n2"),
        pod("mesh-system", "agent-3", "mesh-agent", "n1"),
        pod("shop", "web", "web", "n1"),
        pod("shop", "api", "api", "n2"),
    ];
    for pod in &pods {
        apply(client, pod).await;
    }
}

#[tokio::test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
async fn an_agent_is_who_the_api_server_says_and_gets_what_runs_on_its_node_now() {
    let server = ApiServer::start().await;
    let client = server.client().await;
    cast(&client).await;
    let mut daemon = Running::on_kubernetes(&server.kubeconfig(), "only").await;
    daemon.root = root(&client).await;
    let agent = |name: &'static str| token(&client, "mesh-system", "mesh-agent", Some(name), "mesh-control");
    let (one, two) = (agent("agent-1").await, agent("agent-2").await);
    ask(&daemon, &one, asking(Some(WEB), csr(WEB), 0)).await.expect("web runs on n1");
    ask(&daemon, &two, asking(Some(API), csr(API), 0)).await.expect("api runs on n2");

    let gone = agent("agent-3").await;
    delete(&client, &pod("mesh-system", "agent-3", "mesh-agent", "n1")).await;
    apply(&client, &pod("mesh-system", "agent-3", "mesh-agent", "n1")).await;
    let elsewhere = |content: &mut Value| content["kubernetes.io"]["node"]["name"] = "n2".into();
    let past = |content: &mut Value| content["exp"] = 1_000_000_000.into();
    let extra = csr_of(vec![uri(WEB), uri(API)], &PKCS_ECDSA_P256_SHA256);
    let web = || asking(Some(WEB), csr(WEB), 0);
    let cases: Vec<(&str, String, IstioCertificateRequest, &str, Code)> = vec![
        ("no token at all", String::new(), web(), "token", Code::Unauthenticated),
        ("no JWT", "secret".into(), web(), "token_refused", Code::Unauthenticated),
        ("a changed token", changed(&server, &one, |_| {}, false) + "x", web(), "token_refused", Code::Unauthenticated),
        (
            "a token of another node by its own word",
            changed(&server, &one, elsewhere, false),
            web(),
            "token_refused",
            Code::Unauthenticated,
        ),
        ("an expired token", changed(&server, &one, past, true), web(), "token_refused", Code::Unauthenticated),
        (
            "a token whose claims say another node than its pod is on",
            changed(&server, &one, elsewhere, true),
            web(),
            "pod",
            Code::Unauthenticated,
        ),
        (
            "another audience",
            token(&client, "mesh-system", "mesh-agent", Some("agent-1"), "vault").await,
            web(),
            "token_refused",
            Code::Unauthenticated,
        ),
        (
            "a workload's own token",
            token(&client, "shop", "web", Some("web"), "mesh-control").await,
            web(),
            "account",
            Code::Unauthenticated,
        ),
        (
            "an account of that name elsewhere",
            token(&client, "shop", "mesh-agent", None, "mesh-control").await,
            web(),
            "account",
            Code::Unauthenticated,
        ),
        (
            "a token of no pod",
            token(&client, "mesh-system", "mesh-agent", None, "mesh-control").await,
            web(),
            "unbound",
            Code::Unauthenticated,
        ),
        (
            "a token, replayed, of a pod that has gone and has a namesake",
            gone,
            web(),
            "token_refused",
            Code::Unauthenticated,
        ),
        ("an identity of another node", two.clone(), web(), "not_on_node", Code::PermissionDenied),
        ("a CSR for another identity", one.clone(), asking(Some(WEB), csr(API), 0), "request", Code::PermissionDenied),
        ("a CSR with one more name", one.clone(), asking(Some(WEB), extra, 0), "request", Code::PermissionDenied),
    ];
    for (what, token, request, reason, code) in cases {
        let before = refused(&metrics(&daemon).await, reason);
        let status = ask(&daemon, &token, request).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status:?}");
        let says = ["not authenticated", "not permitted"].contains(&status.message());
        assert!(says, "{what}: more is told than that it is refused: {status:?}");
        assert_eq!(refused(&metrics(&daemon).await, reason), before + 1, "{what} is not counted as {reason}");
    }
    let large = asking(Some(WEB), "x".repeat(10 << 20), 0);
    let status = ask(&daemon, &one, large).await.expect_err("ten megabytes");
    assert_ne!(status.code(), Code::PermissionDenied, "it was read: {status:?}");

    // A stream ends with the pod of its agent; one that has a namesake is not the same.
    let mut stream = Agent::of(&daemon, &two).await;
    stream.subscribe(ADDRESS_TYPE, &["*"]).await;
    stream.accept().await;
    delete(&client, &pod("mesh-system", "agent-2", "mesh-agent", "n2")).await;
    apply(&client, &pod("mesh-system", "agent-2", "mesh-agent", "n2")).await;
    assert_eq!(stream.end().await.code(), Code::Unauthenticated);

    // Now means now: the moment that the pod has gone, its identity is nobody's.
    delete(&client, &pod("shop", "web", "web", "n1")).await;
    let status = ask(&daemon, &one, web()).await.expect_err("web has gone");
    assert_eq!(status.code(), Code::PermissionDenied);
    apply(&client, &pod("shop", "web-2", "web", "n1")).await;
    ask(&daemon, &one, web()).await.expect("another pod of web runs on n1");
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "needs Kubernetes: cargo xtask test --cluster"]
async fn replicas_share_one_root_and_never_replace_one_that_is_damaged() {
    let server = ApiServer::bare().await;
    let client = server.client().await;
    cast(&client).await;
    let kubeconfig = server.kubeconfig();
    let start = |replica: &'static str| Running::on_kubernetes(&kubeconfig, replica);
    let (mut one, mut two, mut three) = tokio::join!(start("one"), start("two"), start("three"));
    let root = root(&client).await;
    let token = token(&client, "mesh-system", "mesh-agent", Some("agent-1"), "mesh-control").await;
    for daemon in [&mut one, &mut two, &mut three] {
        daemon.root.clone_from(&root);
        let chain = ask(daemon, &token, asking(Some(WEB), csr(WEB), 0)).await.expect("any replica signs");
        assert_eq!(chain.last(), Some(&root), "by the same root");
    }
    for daemon in [one, two, three] {
        daemon.stop().await;
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "mesh-system");
    let half = json!({"data": {"ca-key.pem": null}});
    secrets.patch("mesh-ca", &Default::default(), &kube::api::Patch::Merge(&half)).await.expect("damaged");
    let error = crate::kubernetes::root::load(&client, "mesh-system").await.err().expect("half a root");
    assert!(error.to_string().contains("the Secret mesh-system/mesh-ca has no ca-key.pem"), "{error}");
}
