//! The client against a control daemon that says what the test wants, over a real TLS connection.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_NAME, MESH_CONFIG_TYPE,
    proto::{
        discovery::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
            aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
        },
        mesh::MeshConfig,
        wellknown::Any,
        workload as wire,
    },
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Identity, Server, ServerTlsConfig},
};

use super::{Client, ControlAddress, Line, Published, SharedControlStatus};
use crate::{
    drain::Drain,
    view::{Demand, SharedView, fixtures},
};

/// Longer than anything here takes; the grace for the mesh's settings is one second.
const SOON: Duration = Duration::from_secs(10);

/// One stream as the server has it.
struct Session {
    authorization: String,
    requests: Streaming<DeltaDiscoveryRequest>,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Session {
    async fn hear(&mut self) -> DeltaDiscoveryRequest {
        timeout(SOON, self.requests.message())
            .await
            .expect("a request")
            .expect("a sound stream")
            .expect("an open stream")
    }

    /// The three opening requests, by type.
    async fn hear_opening(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut opening = vec![self.hear().await, self.hear().await, self.hear().await];
        opening.sort_by(|one, other| one.type_url.cmp(&other.type_url));
        opening
    }

    async fn say(&mut self, type_url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        let answer = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: nonce.into(),
            resources,
            removed_resources: removed.iter().map(|name| (*name).into()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.answers.send(Ok(answer)).await.expect("an open stream");
    }

    async fn say_mesh(&mut self) {
        let config = MeshConfig {
            trust_domain: "cluster.local".into(),
            node_port_first: 30000,
            node_port_last: 32767,
            trust_bundle: vec!["a root".into()],
            ..MeshConfig::default()
        };
        let resource = resource(MESH_CONFIG_TYPE, MESH_CONFIG_NAME, "1", config.encode_to_vec());
        self.say(MESH_CONFIG_TYPE, "mesh", vec![resource], &[]).await;
    }
}

fn resource(type_url: &str, name: &str, version: &str, value: Vec<u8>) -> Resource {
    let any = Any { type_url: type_url.into(), value };
    Resource { name: name.into(), version: version.into(), resource: Some(any) }
}

fn workload(name: &str, address: &str, version: &str) -> Resource {
    let (uid, message) = fixtures::named_workload(fixtures::pod(name, &[address]));
    resource(ADDRESS_TYPE, &uid, version, message.encode_to_vec())
}

fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/default/{name}")
}

struct Discovery(mpsc::Sender<Session>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let authorization = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let authorization = authorization.unwrap_or_default().to_owned();
        let (answers, stream) = mpsc::channel(16);
        let session = Session { authorization, requests: request.into_inner(), answers };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A root in a file, and a server's certificate from it.
fn authority() -> (String, Identity) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["mesh-control".to_owned()]).unwrap();
    let server = server.signed_by(&server_key, &issuer).unwrap();
    (root, Identity::from_pem(server.pem(), server_key.serialize_pem()))
}

/// A client that runs, and the control daemon that it talks to.
struct Ground {
    directory: PathBuf,
    sessions: mpsc::Receiver<Session>,
    view: SharedView,
    changes: watch::Receiver<u64>,
    line: watch::Receiver<Option<Line>>,
    status: SharedControlStatus,
    demand: Demand,
    drain: Drain,
}

impl Ground {
    /// `root`: what the client is given as control's root, if not the right one.
    async fn start(name: &str, root: Option<&str>) -> (Self, String) {
        let directory = std::env::temp_dir().join(format!("node-control-{}-{name}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let (right_root, identity) = authority();
        std::fs::write(directory.join("root.pem"), root.unwrap_or(&right_root)).unwrap();
        crate::private::replace(&directory.join("token"), b"secret\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("https://{}", listener.local_addr().unwrap());
        let (sender, sessions) = mpsc::channel(4);
        let drain = Drain::default();
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(AggregatedDiscoveryServiceServer::new(Discovery(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        drain.spawn(async move { server.await.unwrap() });
        let address = ControlAddress {
            uri,
            name: "mesh-control".into(),
            root: directory.join("root.pem"),
            token: directory.join("token"),
        };
        let view: SharedView = Arc::new(ArcSwapOption::empty());
        let (published, changes) = watch::channel(0);
        let (demand, demands) = Demand::channel(16);
        let (sender, line) = watch::channel(None);
        let published = Published { view: view.clone(), changes: published };
        let client = Client::new(address, "node-a", published, demands, sender);
        let status = client.status();
        drain.spawn(client.run());
        (Self { directory, sessions, view, changes, line, status, demand, drain }, right_root)
    }

    async fn session(&mut self) -> Session {
        timeout(SOON, self.sessions.recv()).await.expect("a stream").expect("a running server")
    }

    async fn next_view(&mut self) {
        timeout(SOON, self.changes.changed()).await.expect("a View").expect("a running client");
    }

    fn knows(&self, name: &str) -> bool {
        self.view.load().as_ref().is_some_and(|view| view.workload(&uid(name)).is_some())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[tokio::test]
async fn the_first_view_waits_for_all_three_types() {
    let (mut ground, _) = Ground::start("first", None).await;
    let mut session = ground.session().await;
    assert_eq!(session.authorization, "Bearer secret");
    let opening = session.hear_opening().await;
    let types: Vec<&str> = opening.iter().map(|request| request.type_url.as_str()).collect();
    assert_eq!(types, [AUTHORIZATION_TYPE, ADDRESS_TYPE, MESH_CONFIG_TYPE]);
    assert!(opening.iter().all(|request| request.resource_names_subscribe == ["*"]));
    assert_eq!(
        opening.iter().filter(|request| request.node.is_some()).count(),
        1,
        "the first of a stream names the node"
    );
    session.say(AUTHORIZATION_TYPE, "a", Vec::new(), &[]).await;
    assert_eq!(session.hear().await.response_nonce, "a");
    session.say(ADDRESS_TYPE, "b", vec![workload("web", "10.0.0.1", "1")], &[]).await;
    assert_eq!(session.hear().await.response_nonce, "b");
    assert!(ground.view.load().is_none(), "the mesh's settings are missing");
    session.say_mesh().await;
    ground.next_view().await;
    assert!(ground.knows("web"));
    assert_eq!(*ground.status.load().trust_bundle, ["a root"]);
    assert!(ground.line.borrow().is_some(), "the certificate service has a connection");
}

#[tokio::test]
async fn a_control_plane_without_the_meshs_settings_is_waited_for_a_moment_only() {
    let (mut ground, _) = Ground::start("foreign", None).await;
    let mut session = ground.session().await;
    session.hear_opening().await;
    session.say(ADDRESS_TYPE, "a", vec![workload("web", "10.0.0.1", "1")], &[]).await;
    session.say(AUTHORIZATION_TYPE, "b", Vec::new(), &[]).await;
    ground.next_view().await;
    assert!(ground.knows("web"));
}

#[tokio::test]
async fn what_is_refused_is_named_and_the_rest_counts() {
    let (mut ground, _) = Ground::start("refused", None).await;
    let mut session = ground.session().await;
    session.hear_opening().await;
    session.say_mesh().await;
    session.say(AUTHORIZATION_TYPE, "a", Vec::new(), &[]).await;
    let damaged = resource(ADDRESS_TYPE, &uid("bad"), "1", vec![0xff]);
    session.say(ADDRESS_TYPE, "b", vec![workload("web", "10.0.0.1", "1"), damaged], &[]).await;
    let (mesh, policies, addresses) = (session.hear().await, session.hear().await, session.hear().await);
    assert_eq!((mesh.error_detail, policies.error_detail), (None, None));
    let nack = addresses.error_detail.expect("a nack");
    assert!(nack.message.starts_with(&uid("bad")), "{}", nack.message);
    ground.next_view().await;
    assert!(ground.knows("web") && !ground.knows("bad"));
    assert!(ground.status.load().types.iter().any(|status| status.nack == nack.message));
}

#[tokio::test]
async fn after_a_reconnect_only_changes_are_asked_for_and_the_view_stays() {
    let (mut ground, _) = Ground::start("reconnect", None).await;
    let mut session = ground.session().await;
    session.hear_opening().await;
    session.say_mesh().await;
    session.say(AUTHORIZATION_TYPE, "a", Vec::new(), &[]).await;
    let both = vec![workload("web", "10.0.0.1", "7"), workload("db", "10.0.0.2", "8")];
    session.say(ADDRESS_TYPE, "b", both, &[]).await;
    ground.next_view().await;
    let acks = (session.hear().await, session.hear().await, session.hear().await);
    assert!(acks.0.error_detail.is_none() && acks.1.error_detail.is_none() && acks.2.error_detail.is_none());
    drop(session);

    let mut session = ground.session().await;
    assert!(ground.knows("web") && ground.knows("db"));
    let opening = session.hear_opening().await;
    let held: Vec<(String, String)> = opening[1].initial_resource_versions.clone().into_iter().collect();
    let mut held: Vec<(&str, &str)> = held.iter().map(|(name, version)| (name.as_str(), version.as_str())).collect();
    held.sort_unstable();
    assert_eq!(held, [(uid("db").as_str(), "8"), (uid("web").as_str(), "7")]);
    session.say(ADDRESS_TYPE, "c", Vec::new(), &[&uid("db")]).await;
    ground.next_view().await;
    assert!(ground.knows("web") && !ground.knows("db"));
    assert_eq!(ground.status.load().terminations, 1);
}

#[tokio::test]
async fn an_address_is_asked_for_by_name_and_answered_once_it_is_in_the_view() {
    let (mut ground, _) = Ground::start("demand", None).await;
    let mut session = ground.session().await;
    session.hear_opening().await;
    session.say_mesh().await;
    session.say(AUTHORIZATION_TYPE, "a", Vec::new(), &[]).await;
    session.say(ADDRESS_TYPE, "b", Vec::new(), &[]).await;
    ground.next_view().await;
    for _ in 0..3 {
        session.hear().await;
    }
    let demand = ground.demand.clone();
    let asking = async move {
        demand.ask("10.0.0.9".parse().unwrap(), SOON).await;
    };
    let (sender, answered) = tokio::sync::oneshot::channel();
    ground.drain.spawn(async move {
        asking.await;
        let _ = sender.send(());
    });
    let request = session.hear().await;
    assert_eq!(request.type_url, ADDRESS_TYPE);
    assert_eq!(request.resource_names_subscribe, ["/10.0.0.9"]);
    let found = Resource { name: "/10.0.0.9".into(), ..workload("late", "10.0.0.9", "1") };
    session.say(ADDRESS_TYPE, "c", vec![found], &[]).await;
    timeout(SOON, answered).await.expect("an answer").expect("the asker waits");
    let view = ground.view.load_full().expect("a View");
    assert!(view.workload_at("10.0.0.9".parse().unwrap()).is_some());
}

#[tokio::test]
async fn another_root_is_refused_until_the_file_has_the_right_one() {
    let (foreign, _) = authority();
    let (mut ground, right) = Ground::start("root", Some(&foreign)).await;
    let refused = async {
        while ground.status.load().last_error.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.expect("a failed dial");
    assert!(!ground.status.load().is_connected);
    std::fs::write(ground.directory.join("root.pem"), right).unwrap();
    let mut session = ground.session().await;
    assert_eq!(session.hear_opening().await.len(), 3);
}

/// Guards the fixtures: a workload's name on the stream is the key that the View uses.
#[test]
fn workloads_are_named_by_their_uid() {
    let resource = workload("web", "10.0.0.1", "1");
    assert_eq!(resource.name, uid("web"));
    let any = resource.resource.unwrap();
    assert!(wire::Address::decode(any.value.as_slice()).is_ok());
}
