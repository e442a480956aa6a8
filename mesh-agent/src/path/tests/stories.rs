//! Connections from accept to the last byte, between two nodes on loopback.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_api::proto::{security, workload as wire};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    enrol::Pod,
    kernel::Listener,
    path::Verdict,
    proving::{Authority, Node, POD_MEMORY, address, app, dial, identity, pod},
    view::{
        View,
        fixtures::{self, exact},
    },
};

const SOON: Duration = Duration::from_secs(5);

/// Pod `web` on node A, pod `db` on node B, an application of `db` that the test plays.
struct TwoNodes {
    a: Node,
    b: Node,
    web: Arc<Pod>,
    db: Arc<Pod>,
    outbound: SocketAddr,
    application: TcpListener,
    dialled: SocketAddr,
}

fn workload(pod: &Pod, node: &str) -> wire::Workload {
    let addresses: Vec<_> = pod.addresses.iter().map(IpAddr::to_string).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    wire::Workload { node: node.into(), ..fixtures::pod(&pod.name, &addresses) }
}

fn view(web: &Pod, db: &Pod, policies: Vec<security::Authorization>) -> Arc<View> {
    fixtures::view([workload(web, "node-a"), workload(db, "node-b")], [], policies)
}

fn only(name: &str, principal: &str) -> security::Authorization {
    let principals = vec![exact(&identity(principal).principal())];
    fixtures::policy(name, security::Action::Allow, vec![security::Match { principals, ..Default::default() }])
}

impl TwoNodes {
    async fn start(policies: Vec<security::Authorization>) -> Self {
        let (web, db) = (pod(1, "web", address()), pod(2, "db", address()));
        let (application, dialled) = app(db.addresses[0]).await;
        let authority = Authority::new();
        let view = view(&web, &db, policies);
        let a =
            Node::start(Some(view.clone()), std::slice::from_ref(&web), authority.wallet(&[identity("web")]), dialled);
        let b = Node::start(Some(view), std::slice::from_ref(&db), authority.wallet(&[identity("db")]), dialled);
        let outbound = a.listen(&web, Listener::Outbound).await;
        b.listen(&db, Listener::Hbone).await;
        Self { a, b, web, db, outbound, application, dialled }
    }

    async fn dial(&self) -> TcpStream {
        dial(self.web.addresses[0], self.outbound).await.unwrap()
    }

    /// The reset can be faster than the client's look at its `connect`.
    async fn is_refused(&self) {
        match dial(self.web.addresses[0], self.outbound).await {
            Ok(mut client) => is_reset(&mut client).await,
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }

    async fn connected(&self) -> (TcpStream, TcpStream) {
        let client = self.dial().await;
        let (server, _) = timeout(SOON, self.application.accept()).await.unwrap().unwrap();
        (client, server)
    }
}

async fn is_reset(stream: &mut TcpStream) {
    let read = timeout(SOON, stream.read(&mut [0; 16])).await.expect("in time");
    assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

/// A connection is recorded when its task ends, which the client may see before.
async fn counts(node: &Node, name: &str, labels: &[&str], value: u64) {
    let is_there = |page: &str| {
        page.lines().any(|line| {
            line.starts_with(name)
                && labels.iter().all(|label| line.contains(label))
                && line.ends_with(&format!(" {value}"))
        })
    };
    let looking = async {
        while !is_there(&node.metrics()) {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(SOON, looking).await.is_ok(), "no {name} {labels:?} {value} in\n{}", node.metrics());
}

#[tokio::test]
async fn bytes_and_both_ends_pass_through_the_tunnel() {
    let mesh = TwoNodes::start(vec![]).await;
    let (mut client, mut server) = mesh.connected().await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = client.split();
    let upload = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let answer = async {
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        server.write_all(b"after your end").await.unwrap();
        server.shutdown().await.unwrap();
        received
    };
    let mut back = Vec::new();
    let ((), received, _) =
        timeout(SOON, async { tokio::join!(upload, answer, read.read_to_end(&mut back)) }).await.unwrap();
    assert!(received == sent);
    assert_eq!(back, b"after your end");
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let mesh = TwoNodes::start(vec![]).await;
    let (mut client, mut server) = mesh.connected().await;
    server.write_all(b"hello").await.unwrap();
    let mut hello = [0; 5];
    timeout(SOON, client.read_exact(&mut hello)).await.unwrap().unwrap();
    assert_eq!(&hello, b"hello");
}

#[tokio::test]
async fn a_reset_passes_both_ways() {
    let mesh = TwoNodes::start(vec![]).await;
    let (client, mut server) = mesh.connected().await;
    client.set_zero_linger().unwrap();
    drop(client);
    is_reset(&mut server).await;

    let (mut client, server) = mesh.connected().await;
    server.set_zero_linger().unwrap();
    drop(server);
    is_reset(&mut client).await;
}

/// Waits until the socket has an error, and reads nothing for that.
async fn is_reset_behind_its_end(stream: &TcpStream) {
    timeout(SOON, stream.ready(Interest::ERROR)).await.expect("in time").unwrap();
}

#[tokio::test]
async fn a_reset_after_an_end_passes_both_ways_while_the_other_side_is_silent() {
    let mesh = TwoNodes::start(vec![]).await;
    let (mut client, mut server) = mesh.connected().await;
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0; 16]).await.unwrap(), 0);
    client.set_zero_linger().unwrap();
    drop(client);
    is_reset_behind_its_end(&server).await;

    let (mut client, mut server) = mesh.connected().await;
    server.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    server.set_zero_linger().unwrap();
    drop(server);
    is_reset_behind_its_end(&client).await;
}

#[tokio::test]
async fn a_reset_passes_both_ways_while_the_other_side_does_not_read() {
    let mesh = TwoNodes::start(vec![]).await;
    let (mut client, server) = mesh.connected().await;
    fill(&mut client).await;
    client.set_zero_linger().unwrap();
    drop(client);
    is_reset_behind_its_end(&server).await;

    let (client, mut server) = mesh.connected().await;
    fill(&mut server).await;
    server.set_zero_linger().unwrap();
    drop(server);
    is_reset_behind_its_end(&client).await;
}

#[tokio::test]
async fn connections_share_one_tunnel_and_are_counted_at_both_ends() {
    let mesh = TwoNodes::start(vec![]).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let (mut client, mut server) = mesh.connected().await;
        // Once bytes pass, both agents know all there is to know.
        server.write_all(b"!").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        open.push((client, server));
    }
    let snapshots = mesh.a.worker.connections().await.unwrap();
    assert_eq!(snapshots.len(), 20);
    let record = &snapshots[0].record;
    assert_eq!((record.path, record.security.label()), ("hbone", "mutual_tls"));
    assert_eq!(record.destination.identity, Some(identity("db")));
    assert_eq!(record.original_destination, Some(mesh.dialled));
    assert_eq!(record.cipher, "TLS13_AES_128_GCM_SHA256");
    let at_b = &mesh.b.worker.connections().await.unwrap()[0].record;
    assert_eq!(at_b.source.identity, Some(identity("web")));
    assert_eq!(at_b.source.address.map(|address| address.ip()), Some(mesh.web.addresses[0]));
    assert_eq!(mesh.b.context.telemetry.encode().unwrap().matches("istio_tcp_connections_opened_total{").count(), 1);
    let labels = [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/web\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    counts(&mesh.b, "istio_tcp_connections_opened_total", &labels, 20).await;
}

#[tokio::test]
async fn a_caller_without_permission_never_reaches_the_server() {
    let mesh = TwoNodes::start(vec![only("only-api", "api")]).await;
    mesh.is_refused().await;
    counts(&mesh.b, "istio_tcp_connections_failed_total", &["response_flags=\"DENY\""], 1).await;
    counts(&mesh.b, "mesh_denied_connections_total", &["no_allow_matched"], 1).await;
    let refused = mesh.b.worker.refused().await.unwrap();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].verdict, Some(Verdict::NoAllowMatched));
    assert_eq!(refused[0].source.identity, Some(identity("web")));
    let accepted = timeout(Duration::from_millis(1), mesh.application.accept()).await;
    assert!(accepted.is_err(), "the server saw a connection");
}

#[tokio::test]
async fn a_live_connection_is_cut_when_a_new_view_denies_it() {
    let mesh = TwoNodes::start(vec![only("only-web", "web")]).await;
    let (mut client, mut server) = mesh.connected().await;
    let record = mesh.b.worker.connections().await.unwrap()[0].record.clone();
    assert_eq!(record.policy.map(|policy| policy.to_string()), Some("default/only-web".into()));
    mesh.b.publish(view(&mesh.web, &mesh.db, vec![only("only-api", "api")]));
    is_reset(&mut client).await;
    is_reset(&mut server).await;
}

#[tokio::test]
async fn nobody_listening_is_refused_after_connect_and_so_is_a_dead_agent() {
    let mut mesh = TwoNodes::start(vec![]).await;
    mesh.application = app(address()).await.0;
    mesh.is_refused().await;
    mesh.b.worker.drain(Duration::ZERO).await.unwrap();
    mesh.is_refused().await;
    counts(&mesh.a, "istio_tcp_connections_failed_total", &["response_flags=\"CONNECT\""], 2).await;
}

#[tokio::test]
async fn withdrawing_a_pod_resets_its_connections_and_closes_its_listeners() {
    let mesh = TwoNodes::start(vec![]).await;
    let (mut client, mut server) = mesh.connected().await;
    timeout(SOON, mesh.b.worker.withdraw(mesh.db.uid.clone())).await.unwrap().unwrap();
    is_reset(&mut client).await;
    is_reset(&mut server).await;
    assert!(!mesh.b.metrics().contains("istio_tcp_connections_opened_total{"));
    let hbone = SocketAddr::new(mesh.db.addresses[0], 15008);
    assert_eq!(TcpStream::connect(hbone).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(mesh.b.worker.connections().await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_drain_lets_connections_end_and_cuts_them_at_its_deadline() {
    let mesh = TwoNodes::start(vec![]).await;
    let (mut client, mut server) = mesh.connected().await;
    let draining = mesh.a.worker.drain(SOON);
    let ending = async {
        client.write_all(b"last words").await.unwrap();
        client.shutdown().await.unwrap();
        let mut words = String::new();
        server.read_to_string(&mut words).await.unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        words
    };
    let (drained, words) = timeout(SOON, async { tokio::join!(draining, ending) }).await.unwrap();
    drained.unwrap();
    assert_eq!(words, "last words");

    let mesh = TwoNodes::start(vec![]).await;
    let (mut client, _server) = mesh.connected().await;
    timeout(SOON, mesh.a.worker.drain(Duration::ZERO)).await.unwrap().unwrap();
    is_reset(&mut client).await;
}

/// Writes until nothing is taken any more: every buffer on the way, and the stream's window, is full.
async fn fill(client: &mut TcpStream) {
    let bytes = [0; 1 << 16];
    while timeout(Duration::from_millis(200), client.write_all(&bytes)).await.is_ok() {}
}

#[tokio::test]
async fn a_pod_whose_readers_hold_too_much_loses_those_that_do_not_move() {
    let mesh = TwoNodes::start(vec![]).await;
    let (mut client, mut server) = mesh.connected().await;
    let mut stalled = Vec::new();
    for _ in 0..POD_MEMORY / (1 << 20) + 4 {
        let (mut silent, unread) = mesh.connected().await;
        fill(&mut silent).await;
        stalled.push((silent, unread));
        talk(&mut client, &mut server).await;
    }
    let is_cut = |node: &Node| node.metrics().contains(r#"response_flags="OVERLOAD""#);
    let looking = async {
        while !is_cut(&mesh.a) && !is_cut(&mesh.b) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, looking).await.expect("somebody is cut");
    talk(&mut client, &mut server).await;
    let left = mesh.b.worker.connections().await.unwrap().len();
    assert!((2..stalled.len() + 1).contains(&left), "{left} are left of {}", stalled.len() + 1);
}

#[tokio::test]
async fn applications_that_do_not_read_do_not_stop_others_on_the_same_tunnel() {
    let mesh = TwoNodes::start(vec![]).await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let (mut client, server) = mesh.connected().await;
        fill(&mut client).await;
        stalled.push((client, server));
    }
    let (mut client, mut server) = mesh.connected().await;
    talk(&mut client, &mut server).await;
}

async fn talk(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"through").await.unwrap();
    let mut through = [0; 7];
    timeout(SOON, server.read_exact(&mut through)).await.unwrap().unwrap();
    assert_eq!(&through, b"through");
}
