//! The discovery service as an agent meets it: a TLS connection to a whole daemon, which follows a folder.

use std::{collections::BTreeMap, net::SocketAddr};

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE,
    proto::{
        discovery::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
        mesh::MeshConfig,
        rpc,
        workload::{Address, address},
    },
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::testing::{DEADLINE, Running, TOKEN_A, TOKEN_B, authorized};

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node-b}
status: {podIPs: [{ip: 10.77.2.11}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: node-a}
status: {podIPs: [{ip: 10.77.1.11}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.96.0.10, ports: [{port: 80, targetPort: 8080}]}
";

const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
";

const WEB: &str = "Kubernetes//Pod/shop/web";
const CLIENT: &str = "Kubernetes//Pod/shop/client";
const SERVICE: &str = "shop/web.shop.svc.cluster.local";

/// One stream, as an agent holds it.
pub struct Agent {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Agent {
    pub async fn of(daemon: &Running, token: &str) -> Agent {
        Agent::open(daemon, token).await.expect("accepted")
    }

    pub async fn open(daemon: &Running, token: &str) -> Result<Agent, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(daemon.channel().await);
        let stream = authorized(token, ReceiverStream::new(receiver));
        let responses = client.delta_aggregated_resources(stream).await?.into_inner();
        Ok(Agent { requests, responses })
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.expect("the stream is open");
    }

    pub async fn subscribe(&self, type_url: &str, names: &[&str]) {
        self.send(subscription(type_url, names, &[])).await;
    }

    /// The next response, not yet answered.
    pub async fn receive(&mut self) -> DeltaDiscoveryResponse {
        let message = timeout(DEADLINE, self.responses.message()).await.expect("in time");
        message.expect("no error").expect("not the end")
    }

    /// Why the stream ends; answers what comes before.
    pub async fn end(mut self) -> Status {
        let end = async {
            loop {
                match self.responses.message().await {
                    Ok(Some(response)) => drop(self.requests.send(answer(&response, None)).await),
                    Ok(None) => return Status::ok("closed"),
                    Err(status) => return status,
                }
            }
        };
        timeout(DEADLINE, end).await.expect("the stream ends in time")
    }

    /// The next response, accepted.
    pub async fn accept(&mut self) -> DeltaDiscoveryResponse {
        let response = self.receive().await;
        self.send(answer(&response, None)).await;
        response
    }
}

fn subscription(type_url: &str, names: &[&str], without: &[&str]) -> DeltaDiscoveryRequest {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: texts(names),
        resource_names_unsubscribe: texts(without),
        ..DeltaDiscoveryRequest::default()
    }
}

fn answer(response: &DeltaDiscoveryResponse, error: Option<&str>) -> DeltaDiscoveryRequest {
    let status = |message: &str| rpc::Status { code: 3, message: message.to_owned(), details: Vec::new() };
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: error.map(status),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

async fn page(daemon: &Running, path: &str) -> String {
    let address = if path.starts_with("/debug") { daemon.debug } else { daemon.http };
    fetched(address, path).await
}

async fn fetched(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut text = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut text)).await.expect("in time").expect("read");
    text
}

#[tokio::test]
async fn an_empty_mesh_answers_every_type() {
    let daemon = Running::on(&[]).await;
    let mut agent = Agent::of(&daemon, TOKEN_A).await;
    agent.subscribe(ADDRESS_TYPE, &[]).await;
    assert_eq!(agent.accept().await.type_url, ADDRESS_TYPE);
    agent.subscribe(AUTHORIZATION_TYPE, &["*"]).await;
    assert_eq!(names(&agent.accept().await), ["istio-system/istio_converted_static_strict"]);
    agent.subscribe(MESH_CONFIG_TYPE, &["mesh"]).await;
    let config = agent.accept().await;
    assert_eq!(names(&config), ["mesh"]);
    let config = MeshConfig::decode(&*config.resources[0].resource.as_ref().expect("a body").value).expect("ours");
    assert_eq!((config.trust_domain.as_str(), config.trust_bundle), ("cluster.local", vec![daemon.root.clone()]));
    agent.subscribe("type.googleapis.com/unheard.Of", &[]).await;
    assert!(agent.accept().await.resources.is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn an_edited_file_reaches_the_agent_and_a_refusal_is_counted() {
    let daemon = Running::on(&[("shop.yaml", SHOP)]).await;
    let mut agent = Agent::of(&daemon, TOKEN_A).await;
    agent.subscribe(ADDRESS_TYPE, &["*"]).await;
    assert_eq!(names(&agent.accept().await), [CLIENT, WEB, SERVICE]);
    agent.subscribe(AUTHORIZATION_TYPE, &["*"]).await;
    agent.accept().await;

    daemon.config.write("policy.yaml", POLICY);
    let refused = agent.receive().await;
    assert_eq!(names(&refused), ["shop/nobody"]);
    agent.send(answer(&refused, Some("cannot be used"))).await;

    // What was refused does not come again by itself; the next change does.
    daemon.config.write("shop.yaml", &SHOP.replace("10.77.2.11", "10.77.2.12"));
    let changed = agent.accept().await;
    assert_eq!((changed.type_url.as_str(), names(&changed)), (ADDRESS_TYPE, vec![WEB]));
    assert!(page(&daemon, "/metrics").await.contains("mesh_xds_nacks_total{type=\"Authorization\"} 1"));

    daemon.config.remove("policy.yaml");
    assert_eq!(agent.accept().await.removed_resources, ["shop/nobody"]);
    daemon.stop().await;
}

#[tokio::test]
async fn after_a_reconnect_only_what_changed_is_sent() {
    let daemon = Running::on(&[("shop.yaml", SHOP)]).await;
    let mut agent = Agent::of(&daemon, TOKEN_A).await;
    agent.subscribe(ADDRESS_TYPE, &["*"]).await;
    let first = agent.accept().await;
    let mut held: BTreeMap<_, _> = first.resources.into_iter().map(|item| (item.name, item.version)).collect();
    held.insert("Kubernetes//Pod/shop/gone".to_owned(), "0".repeat(32));
    drop(agent);

    daemon.config.write("shop.yaml", &SHOP.replace("10.77.2.11", "10.77.2.12"));
    let mut other = Agent::of(&daemon, TOKEN_B).await;
    other.subscribe(ADDRESS_TYPE, &["/10.77.2.12"]).await;
    while other.accept().await.resources.iter().all(|resource| resource.name != "/10.77.2.12") {}

    let mut agent = Agent::of(&daemon, TOKEN_A).await;
    let request = subscription(ADDRESS_TYPE, &["*"], &[]);
    agent.send(DeltaDiscoveryRequest { initial_resource_versions: held.into_iter().collect(), ..request }).await;
    let news = agent.accept().await;
    assert_eq!(names(&news), [WEB]);
    assert_eq!(news.removed_resources, ["Kubernetes//Pod/shop/gone"]);
    daemon.stop().await;
}

#[tokio::test]
async fn on_demand_answers_come_under_the_name_that_was_asked() {
    let daemon = Running::on(&[("shop.yaml", SHOP)]).await;
    let mut agent = Agent::of(&daemon, TOKEN_A).await;
    // As ztunnel opens its stream in this mode: the node's own workloads come unasked.
    agent.send(subscription(ADDRESS_TYPE, &["*"], &["*"])).await;
    assert_eq!(names(&agent.accept().await), [CLIENT]);

    agent.subscribe(ADDRESS_TYPE, &["/10.77.2.11"]).await;
    let found = agent.accept().await;
    assert_eq!(names(&found), ["/10.77.2.11"]);
    let body = Address::decode(&*found.resources[0].resource.as_ref().expect("a body").value).expect("ours");
    assert!(matches!(body.r#type, Some(address::Type::Workload(workload)) if workload.uid == WEB));

    agent.subscribe(ADDRESS_TYPE, &[SERVICE]).await;
    assert_eq!(names(&agent.accept().await), [WEB, SERVICE], "a service comes with the workloads behind it");
    agent.subscribe(ADDRESS_TYPE, &["/10.96.0.10"]).await;
    assert_eq!(names(&agent.accept().await), ["/10.96.0.10"]);

    agent.subscribe(ADDRESS_TYPE, &["/10.77.9.9", "shop/none.shop.svc.cluster.local"]).await;
    let missing = agent.accept().await;
    assert!(missing.resources.is_empty());
    assert_eq!(missing.removed_resources, ["/10.77.9.9", "shop/none.shop.svc.cluster.local"]);

    // What was missing is told when it comes.
    daemon.config.write("shop.yaml", &SHOP.replace("10.77.2.11", "10.77.9.9"));
    let found = agent.accept().await;
    assert_eq!(names(&found), ["/10.77.9.9", WEB]);
    assert_eq!(found.removed_resources, ["/10.77.2.11"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_stream_needs_the_token_of_the_node_it_names() {
    let daemon = Running::on(&[]).await;
    for token in ["", "token-of-nobody-0123456789"] {
        let status = Agent::open(&daemon, token).await.err().expect("refused");
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "not authenticated"));
    }
    let mut agent = Agent::of(&daemon, TOKEN_A).await;
    let value = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.to_owned())) };
    let metadata = prost_types::Struct { fields: [("NODE_NAME".to_owned(), value("node-b"))].into() };
    let node = Node { id: "x".to_owned(), cluster: String::new(), metadata: Some(metadata) };
    agent.send(DeltaDiscoveryRequest { node: Some(node), ..subscription(ADDRESS_TYPE, &["*"], &[]) }).await;
    let status = timeout(DEADLINE, agent.responses.message()).await.expect("in time").expect_err("refused");
    assert_eq!(status.code(), Code::PermissionDenied);
    daemon.stop().await;
}

#[tokio::test]
async fn a_broken_file_is_shown_and_changes_nothing_until_it_is_mended() {
    let daemon = Running::on(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)]).await;
    let mut agent = Agent::of(&daemon, TOKEN_A).await;
    agent.subscribe(AUTHORIZATION_TYPE, &["*"]).await;
    let first = agent.accept().await;
    assert!(names(&first).contains(&"shop/nobody"));

    daemon.config.write("policy.yaml", &POLICY.replace("spec: {}", "spec: {ruels: []}"));
    let report = async {
        loop {
            let report = page(&daemon, "/debug/config").await;
            if report.contains("ruels") {
                return report;
            }
        }
    };
    let report = timeout(DEADLINE, report).await.expect("shown in time");
    for part in ["\"file\": \"policy.yaml\"", "\"line\": 4", "\"field\": \"spec.ruels\"", "last_good"] {
        assert!(report.contains(part), "{part} in {report}");
    }
    assert!(page(&daemon, "/metrics").await.contains("mesh_config_errors 1"));

    daemon.config.write("policy.yaml", &POLICY.replace("spec: {}", "spec: {action: DENY, rules: [{}]}"));
    assert_eq!(names(&agent.accept().await), ["shop/nobody"], "the broken form was never published");
    assert!(page(&daemon, "/healthz/ready").await.contains("200 OK"));
    daemon.stop().await;
}

#[tokio::test]
async fn what_names_manifests_and_agents_is_not_shown_where_anybody_reads_the_metrics() {
    let daemon = Running::on(&[]).await;
    for path in ["/debug/config", "/debug/agents", "/debug", "/debug/config/", "/metrics/../debug/config"] {
        let answer = fetched(daemon.http, path).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    assert!(fetched(daemon.debug, "/metrics").await.starts_with("HTTP/1.1 404 "));
    assert!(page(&daemon, "/debug/agents").await.contains("200 OK"));
    daemon.stop().await;
}

#[tokio::test]
async fn how_far_each_agent_has_come_is_shown() {
    let daemon = Running::on(&[("shop.yaml", SHOP)]).await;
    let mut agent = Agent::of(&daemon, TOKEN_B).await;
    agent.subscribe(ADDRESS_TYPE, &["*"]).await;
    let first = agent.receive().await;
    shows(&daemon, &["\"node\": \"node-b\"", "\"version\": 1", "\"has_answered\": false"]).await;
    assert!(!page(&daemon, "/debug/agents").await.contains("\"lag_ms\": 0"), "it has not answered yet");
    agent.send(answer(&first, Some("too much"))).await;
    shows(&daemon, &["\"has_answered\": true", "\"type.googleapis.com/istio.workload.Address\": \"too much\""]).await;
    daemon.config.write("shop.yaml", &SHOP.replace("10.77.2.11", "10.77.2.12"));
    agent.accept().await;
    shows(&daemon, &["\"version\": 2", "\"has_answered\": true", "\"refused\": {}", "\"lag_ms\": 0"]).await;
    drop(agent);
    shows(&daemon, &["\"agents\": []"]).await;
    daemon.stop().await;
}

/// Waits until the page of agents shows all of it.
async fn shows(daemon: &Running, parts: &[&str]) {
    let found = async {
        loop {
            let text = page(daemon, "/debug/agents").await;
            if parts.iter().all(|part| text.contains(part)) {
                return;
            }
        }
    };
    timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("{parts:?} is not shown"));
}
