//! Connections that stay on one node, arrive in the clear, leave the mesh, or have to wait.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use mesh_api::proto::security;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::super::{
    accept::Accepted,
    local::{Local, PodState},
    outbound,
};
use crate::{
    certificates::Wallet,
    enrol::Pod,
    kernel::Listener,
    proving::{Authority, Node, POD_TASKS, address, app, dial, identity, pod},
    view::{
        View,
        fixtures::{self, behind, exact, presence, service},
    },
};

const SOON: Duration = Duration::from_secs(5);

fn workload(pod: &Pod) -> mesh_api::proto::workload::Workload {
    fixtures::pod(&pod.name, &[&pod.addresses[0].to_string()])
}

pub(super) fn view(pods: &[Arc<Pod>], policies: Vec<security::Authorization>) -> Arc<View> {
    fixtures::view(pods.iter().map(|pod| workload(pod)), [], policies)
}

/// What PeerAuthentication STRICT becomes.
fn strict() -> security::Authorization {
    let nobody = security::Match { not_principals: vec![presence()], ..Default::default() };
    fixtures::policy("strict", security::Action::Deny, vec![nobody])
}

pub(super) async fn is_refused(connected: std::io::Result<TcpStream>) {
    let read = match connected {
        Ok(mut stream) => timeout(SOON, stream.read(&mut [0; 1])).await.expect("in time").map(|_| ()),
        Err(error) => Err(error),
    };
    assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

pub(super) async fn passes(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    let mut ping = [0; 4];
    timeout(SOON, server.read_exact(&mut ping)).await.unwrap().unwrap();
    server.write_all(&ping).await.unwrap();
    timeout(SOON, client.read_exact(&mut ping)).await.unwrap().unwrap();
    assert_eq!(&ping, b"ping");
}

#[tokio::test]
async fn on_one_node_the_destinations_policy_is_judged_by_the_kernels_identity() {
    let (web, db) = (pod(1, "web", address()), pod(2, "db", address()));
    let (application, dialled) = app(db.addresses[0]).await;
    let pods = [web.clone(), db.clone()];
    let principals = vec![exact(&identity("web").principal())];
    let only_web = security::Match { principals, ..Default::default() };
    let allow = fixtures::policy("only-web", security::Action::Allow, vec![only_web]);
    // No certificate is needed: nothing is encrypted.
    let node = Node::start(Some(view(&pods, vec![allow])), &pods, Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    let mut client = dial(web.addresses[0], outbound).await.unwrap();
    let (mut server, _) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    passes(&mut client, &mut server).await;
    let record = node.worker.connections().await.unwrap().remove(0).record;
    assert_eq!((record.path, record.security.label(), record.cipher), ("node_local", "node_local", ""));
    assert_eq!(record.policy.unwrap().to_string(), "default/only-web");
    assert_eq!((record.to_destination, record.to_source), (4, 4));
    let page = node.metrics();
    let opened: Vec<_> = page.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total")).collect();
    assert_eq!(opened.len(), 2, "{opened:?}");
    assert!(opened.iter().all(|line| line.contains("connection_security_policy=\"node_local\"")));

    // Withdrawing the destination ends what reaches it, though the source's listener carries it.
    let other = node.listen(&db, Listener::Plaintext).await;
    node.worker.withdraw(db.uid.clone()).await.unwrap();
    is_refused(Ok(client)).await;
    assert_eq!(TcpStream::connect(other).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);

    let deny = fixtures::policy("nobody", security::Action::Allow, vec![]);
    let mut deny_all = deny.clone();
    deny_all.rules.clear();
    node.publish(view(&pods, vec![deny_all]));
    is_refused(dial(web.addresses[0], outbound).await).await;
}

#[tokio::test]
async fn plaintext_is_refused_where_a_policy_asks_for_a_name() {
    let db = pod(2, "db", address());
    let pods = std::slice::from_ref(&db);
    // As sk_lookup steers: the listener is reached under the application's own address and port.
    let listener = std::net::TcpListener::bind((db.addresses[0], 0)).unwrap();
    let reached = listener.local_addr().unwrap();
    let node = Node::start(Some(view(pods, vec![strict()])), pods, Wallet::default(), reached);
    node.worker.serve(db.clone(), Listener::Plaintext, listener.into()).await.unwrap();
    is_refused(TcpStream::connect(reached).await).await;
    let denied = async {
        while !node.metrics().contains("mesh_denied_connections_total{reason=\"denied_by_policy\"} 1") {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, denied).await.unwrap();
    assert!(node.metrics().contains("mesh_plaintext_connections_total{direction=\"inbound\",reason=\"permissive\"} 0"));
}

#[tokio::test]
async fn outside_the_mesh_passes_as_it_is_and_is_listed() {
    let web = pod(1, "web", address());
    let (application, dialled) = app(address()).await;
    let pods = std::slice::from_ref(&web);
    let node = Node::start(Some(view(pods, vec![])), pods, Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    let mut client = dial(web.addresses[0], outbound).await.unwrap();
    let (mut server, from) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    passes(&mut client, &mut server).await;
    assert_eq!(from.ip(), web.addresses[0], "the source address is the pod's");
    let record = node.worker.connections().await.unwrap().remove(0).record;
    assert_eq!((record.path, record.plaintext_reason), ("passthrough", "external"));
    assert!(node.metrics().contains("mesh_plaintext_connections_total{direction=\"outbound\",reason=\"external\"} 1"));
}

#[tokio::test]
async fn without_a_view_everything_is_refused() {
    let web = pod(1, "web", address());
    let (_application, dialled) = app(address()).await;
    let node = Node::start(None, std::slice::from_ref(&web), Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    is_refused(dial(web.addresses[0], outbound).await).await;
}

#[tokio::test]
async fn a_pending_pods_connection_waits_for_the_view() {
    let web = pod(1, "web", address());
    let (application, dialled) = app(address()).await;
    let pods = std::slice::from_ref(&web);
    let node = Node::start(Some(view(&[], vec![])), pods, Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    let mut client = dial(web.addresses[0], outbound).await.unwrap();
    client.write_all(b"early").await.unwrap();
    // It is held, not refused: it shows among the connections that live.
    while node.worker.connections().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    node.publish(view(pods, vec![]));
    let (mut server, _) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    let mut early = [0; 5];
    timeout(SOON, server.read_exact(&mut early)).await.unwrap().unwrap();
    assert_eq!(&early, b"early");
}

#[tokio::test]
async fn a_pending_pods_connection_is_refused_after_five_seconds() {
    let web = pod(1, "web", address());
    let (_application, dialled) = app(address()).await;
    let node = Node::start(Some(view(&[], vec![])), std::slice::from_ref(&web), Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    let started = std::time::Instant::now();
    let client = dial(web.addresses[0], outbound).await;
    let mut byte = [0; 1];
    let read = match client {
        Ok(mut client) => client.read(&mut byte).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(8), "{waited:?}");
}

#[tokio::test]
async fn an_unknown_address_of_the_cluster_is_asked_for_once_and_then_reached() {
    let (web, db) = (pod(1, "web", address()), pod(2, "db", address()));
    let (application, dialled) = app(db.addresses[0]).await;
    let mut store = crate::view::Store::default();
    let ranges = vec!["127.0.0.0/8".to_owned()];
    store.apply_mesh(&mesh_api::proto::mesh::MeshConfig { pod_ranges: ranges, ..Default::default() }).unwrap();
    store.apply_addresses(&[fixtures::named_workload(workload(&web))], &[]);
    let mut node = Node::start(Some(store.publish()), std::slice::from_ref(&web), Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    let _client = dial(web.addresses[0], outbound).await.unwrap();
    let demand = timeout(SOON, node.demands.recv()).await.unwrap().unwrap();
    assert_eq!(demand.address, db.addresses[0]);
    let mut known = workload(&db);
    known.tunnel_protocol = 0;
    store.apply_addresses(&[fixtures::named_workload(known)], &[]);
    node.publish(store.publish());
    demand.done.send(()).unwrap();
    timeout(SOON, application.accept()).await.unwrap().unwrap();
}

#[tokio::test]
async fn another_endpoint_is_tried_when_one_cannot_be_reached() {
    let (web, dead, well) = (pod(1, "web", address()), pod(2, "dead", address()), pod(3, "well", address()));
    let virtual_address = address();
    let (application, port) = app(well.addresses[0]).await;
    let endpoint = |pod: &Pod| behind(workload(pod), "echo", 80, port.port().into());
    // Most are drawn for the endpoint behind whose address no agent listens.
    let mut unreachable = endpoint(&dead);
    unreachable.capacity = Some(1_000_000);
    let echo = service("echo", &[&virtual_address.to_string()], &[80]);
    let view = fixtures::view([workload(&web), unreachable, endpoint(&well)], [echo], []);
    let authority = Authority::new();
    let dialled = SocketAddr::new(virtual_address, 80);
    let a = Node::start(Some(view.clone()), std::slice::from_ref(&web), authority.wallet(&[identity("web")]), dialled);
    let b = Node::start(Some(view), std::slice::from_ref(&well), authority.wallet(&[identity("well")]), dialled);
    b.listen(&well, Listener::Hbone).await;
    let outbound = a.listen(&web, Listener::Outbound).await;
    let mut client = dial(web.addresses[0], outbound).await.unwrap();
    let (mut server, _) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    passes(&mut client, &mut server).await;
    let record = a.worker.connections().await.unwrap().remove(0).record;
    assert_eq!(record.destination.address, Some(port));
    assert_eq!(record.service.unwrap().short_name, "echo");
}

#[tokio::test]
async fn another_endpoint_hears_all_that_was_said_to_one_that_refused() {
    let (web, deaf, well) = (pod(1, "web", address()), pod(2, "deaf", address()), pod(3, "well", address()));
    let virtual_address = address();
    let (application, port) = app(well.addresses[0]).await;
    let endpoint = |pod: &Pod| behind(workload(pod), "echo", 80, port.port().into());
    // Most are drawn for the endpoint whose agent answers 503, because no application listens.
    let mut refuses = endpoint(&deaf);
    refuses.capacity = Some(1_000_000);
    let echo = service("echo", &[&virtual_address.to_string()], &[80]);
    let view = fixtures::view([workload(&web), refuses, endpoint(&well)], [echo], []);
    let authority = Authority::new();
    let dialled = SocketAddr::new(virtual_address, 80);
    let a = Node::start(Some(view.clone()), std::slice::from_ref(&web), authority.wallet(&[identity("web")]), dialled);
    let far = authority.wallet(&[identity("deaf"), identity("well")]);
    let b = Node::start(Some(view), &[deaf.clone(), well.clone()], far, dialled);
    b.listen(&deaf, Listener::Hbone).await;
    b.listen(&well, Listener::Hbone).await;
    let outbound = a.listen(&web, Listener::Outbound).await;
    let mut client = dial(web.addresses[0], outbound).await.unwrap();
    client.write_all(b"said before anybody answered").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, _) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    let mut heard = Vec::new();
    timeout(SOON, server.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, b"said before anybody answered");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    timeout(SOON, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn a_pod_that_reaches_itself_is_judged_by_nobody() {
    let web = pod(1, "web", address());
    let (application, dialled) = app(web.addresses[0]).await;
    let pods = std::slice::from_ref(&web);
    let mut deny_all = fixtures::policy("nobody", security::Action::Allow, vec![]);
    deny_all.rules.clear();
    let node = Node::start(Some(view(pods, vec![deny_all])), pods, Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    let mut client = dial(web.addresses[0], outbound).await.unwrap();
    let (mut server, _) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    passes(&mut client, &mut server).await;
    assert_eq!(node.worker.connections().await.unwrap()[0].record.path, "self");
}

/// Accepted, but not begun when its pod is withdrawn: too late for the cut, and not to be waited for.
#[tokio::test]
async fn a_connection_that_begins_while_its_pod_is_closing_ends_at_once() {
    let web = pod(1, "web", address());
    let (application, dialled) = app(web.addresses[0]).await;
    let pods = std::slice::from_ref(&web);
    let node = Node::start(Some(view(pods, vec![])), pods, Wallet::default(), dialled);
    let drain = crate::drain::Drain::default();
    let state =
        std::rc::Rc::new(PodState::new(web.clone(), drain.clone(), node.context.telemetry.listeners.dialled.clone()));
    let listener = tokio::net::TcpListener::bind((web.addresses[0], 0)).await.unwrap();
    let (client, accepted) = tokio::join!(dial(web.addresses[0], listener.local_addr().unwrap()), listener.accept());
    let (socket, peer) = accepted.unwrap();
    drain.advance(crate::drain::Phase::Closing);
    let story = outbound::serve(Local::new(1, node.context.clone()), state, Accepted { socket, peer });
    timeout(SOON, story).await.expect("it ends");
    drop(client);
    assert!(timeout(std::time::Duration::ZERO, application.accept()).await.is_err(), "the application was reached");
}

#[tokio::test]
async fn a_worker_that_drains_still_answers_and_judges_again() {
    let (web, db) = (pod(1, "web", address()), pod(2, "db", address()));
    let (application, dialled) = app(db.addresses[0]).await;
    let pods = [web.clone(), db.clone()];
    let node = Node::start(Some(view(&pods, vec![])), &pods, Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    let mut client = dial(web.addresses[0], outbound).await.unwrap();
    let (mut server, _) = timeout(SOON, application.accept()).await.unwrap().unwrap();
    passes(&mut client, &mut server).await;
    let draining = node.worker.drain(SOON * 10);
    let asking = async {
        assert_eq!(node.worker.connections().await.unwrap().len(), 1);
        let mut deny_all = fixtures::policy("nobody", security::Action::Allow, vec![]);
        deny_all.rules.clear();
        node.publish(view(&pods, vec![deny_all]));
        is_refused(Ok(client)).await;
    };
    let (drained, ()) = timeout(SOON, async { tokio::join!(draining, asking) }).await.expect("in time");
    drained.unwrap();
}

#[tokio::test]
async fn a_pod_that_opens_connections_without_end_has_its_next_ones_reset_and_others_have_theirs() {
    crate::enrol::raise_limit().unwrap();
    let (web, other) = (pod(1, "web", address()), pod(2, "other", address()));
    let (application, dialled) = app(address()).await;
    let pods = [web.clone(), other.clone()];
    let node = Node::start(Some(view(&pods, vec![])), &pods, Wallet::default(), dialled);
    let outbound = node.listen(&web, Listener::Outbound).await;
    let others = node.listen(&other, Listener::Outbound).await;
    let mut open = Vec::new();
    // One of the pod's tasks accepts.
    for _ in 1..POD_TASKS {
        let client = dial(web.addresses[0], outbound).await.unwrap();
        open.push((client, timeout(SOON, application.accept()).await.unwrap().unwrap().0));
    }
    is_refused(dial(web.addresses[0], outbound).await).await;
    let counted = node.context.telemetry.listeners.outbound.counts();
    let counted: Vec<_> = counted.filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [(crate::telemetry::Reason::Crowded, 1)]);
    let (client, server) = &mut open[0];
    passes(client, server).await;

    let mut client = dial(other.addresses[0], others).await.unwrap();
    let mut server = timeout(SOON, application.accept()).await.unwrap().unwrap().0;
    passes(&mut client, &mut server).await;
}
