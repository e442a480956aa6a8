//! What an agent lets in on port 15008: who may handshake, which request gets which status.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri};
use mesh_api::{Identity, proto::security};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::super::{
    accept::Accepted,
    inbound,
    local::{Local, PodState},
};
use crate::{
    certificates::WorkloadCertificate,
    drain::Drain,
    enrol::Pod,
    hbone,
    kernel::Listener,
    proving::{Authority, Node, address, app, identity, pod},
    tls::{self, Credentials},
    view::fixtures::{self, exact},
};

const SOON: Duration = Duration::from_secs(5);

/// Pod `db` and its node; only `web` may reach it.
struct Ground {
    authority: Authority,
    node: Node,
    db: Arc<Pod>,
    hbone: SocketAddr,
    _application: TcpListener,
    port: SocketAddr,
    drain: Drain,
}

impl Ground {
    async fn new() -> Self {
        let db = pod(2, "db", address());
        let (application, port) = app(db.addresses[0]).await;
        let web = vec![exact(&identity("web").principal())];
        let rules = vec![security::Match { principals: web, ..Default::default() }];
        let only_web = fixtures::policy("only-web", security::Action::Allow, rules);
        let pods = [fixtures::pod("db", &[&db.addresses[0].to_string()])];
        let view = fixtures::view(pods, [], [only_web]);
        let authority = Authority::new();
        let wallet = authority.wallet(&[identity("db")]);
        let node = Node::start(Some(view), std::slice::from_ref(&db), wallet, port);
        let hbone = node.listen(&db, Listener::Hbone).await;
        Self { authority, node, db, hbone, _application: application, port, drain: Drain::default() }
    }

    /// A peer that shows this certificate; `expected` is who it takes the server for.
    async fn peer(
        &self,
        certificate: Arc<WorkloadCertificate>,
        expected: Identity,
    ) -> Result<SendRequest<Bytes>, String> {
        let credentials = Credentials { certificate, trust: self.authority.trust.clone() };
        let config = tls::client(&credentials, [expected].into()).unwrap();
        self.peer_with(config).await
    }

    /// In TLS 1.3 a client learns only after its handshake that its certificate was refused.
    async fn peer_with(&self, config: Arc<rustls::ClientConfig>) -> Result<SendRequest<Bytes>, String> {
        let socket = TcpStream::connect(self.hbone).await.unwrap();
        let name = tls::no_name(self.hbone.ip());
        let session = TlsConnector::from(config).connect(name, socket).await.map_err(|error| error.to_string())?;
        let (sender, mut connection) = h2::client::handshake(session).await.map_err(|error| error.to_string())?;
        // Its answer to PING is the server's first word: the session stands, or it is told why not.
        let mut ping = connection.ping_pong().unwrap();
        let mut connection = Box::pin(connection);
        tokio::select! {
            lost = &mut connection => return Err(lost.map_or_else(|error| error.to_string(), |()| "closed".into())),
            pong = ping.ping(h2::Ping::opaque()) => pong.map_err(|error| error.to_string())?,
        };
        self.drain.spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn status(&self, sender: &SendRequest<Bytes>, request: Request<()>) -> StatusCode {
        let mut sender = sender.clone().ready().await.unwrap();
        let (response, _stream) = sender.send_request(request, false).unwrap();
        timeout(SOON, response).await.unwrap().unwrap().status()
    }
}

fn connect(authority: &str) -> Request<()> {
    let uri = Uri::builder().authority(authority).build().unwrap();
    Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap()
}

#[tokio::test]
async fn each_request_gets_its_status() {
    let ground = Ground::new().await;
    let ip = ground.db.addresses[0];
    let web = ground.peer(ground.authority.issue(identity("web")), identity("db")).await.unwrap();
    let get = Request::builder().uri(format!("http://{}/", ground.port)).body(()).unwrap();
    assert_eq!(ground.status(&web, get).await, StatusCode::BAD_REQUEST);
    for (authority, status) in [
        ("localhost:80".to_owned(), StatusCode::BAD_REQUEST),
        (ip.to_string(), StatusCode::BAD_REQUEST),
        (format!("10.9.9.9:{}", ground.port.port()), StatusCode::BAD_REQUEST),
        (format!("{ip}:15001"), StatusCode::SERVICE_UNAVAILABLE),
        (format!("{ip}:15006"), StatusCode::SERVICE_UNAVAILABLE),
        (format!("{ip}:15008"), StatusCode::SERVICE_UNAVAILABLE),
        (format!("{ip}:15053"), StatusCode::SERVICE_UNAVAILABLE),
        (format!("{ip}:1"), StatusCode::SERVICE_UNAVAILABLE),
        (ground.port.to_string(), StatusCode::OK),
    ] {
        assert_eq!(ground.status(&web, connect(&authority)).await, status, "{authority}");
    }
    let api = ground.peer(ground.authority.issue(identity("api")), identity("db")).await.unwrap();
    assert_eq!(ground.status(&api, connect(&ground.port.to_string())).await, StatusCode::UNAUTHORIZED);
    // The shape of a request is judged before its right.
    assert_eq!(ground.status(&api, connect("localhost:80")).await, StatusCode::BAD_REQUEST);
    assert_eq!(ground.status(&api, connect(&format!("{ip}:15008"))).await, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn only_one_valid_spiffe_name_of_our_trust_domain_handshakes() {
    let ground = Ground::new().await;
    let web = identity("web");
    let uri = web.to_string();
    let foreign = Identity::new("elsewhere.example", "default", "web").unwrap();
    let authority = &ground.authority;
    let cases: Vec<(&str, Arc<WorkloadCertificate>, bool)> = vec![
        ("good", authority.issue(web.clone()), true),
        ("another root", Authority::new().issue(web.clone()), false),
        ("foreign trust domain", authority.issue(foreign), false),
        ("no name", authority.issue_names(web.clone(), &[], SystemTime::now() + SOON * 600), false),
        (
            "two names",
            authority.issue_names(
                web.clone(),
                &[uri.clone(), identity("api").to_string()],
                SystemTime::now() + SOON * 600,
            ),
            false,
        ),
        (
            "no SPIFFE name",
            authority.issue_names(web.clone(), &["https://cluster.local/web".into()], SystemTime::now() + SOON * 600),
            false,
        ),
        ("expired", authority.issue_names(web.clone(), &[uri], SystemTime::now() - Duration::from_secs(2)), false),
    ];
    for (name, certificate, is_good) in cases {
        let peer = timeout(SOON, ground.peer(certificate, identity("db"))).await.unwrap();
        assert_eq!(peer.is_ok(), is_good, "{name}: {:?}", peer.err());
    }
}

/// Whether it is reset before it has said anything.
async fn is_turned_away(mut socket: TcpStream) -> bool {
    let read = timeout(SOON, socket.read(&mut [0; 1])).await.expect("in time");
    read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn one_more_handshake_than_a_pod_may_have_is_reset_and_those_before_it_stay() {
    let ground = Ground::new().await;
    let mut silent = Vec::new();
    for _ in 0..hbone::HANDSHAKES {
        silent.push(TcpStream::connect(ground.hbone).await.unwrap());
    }
    assert!(is_turned_away(TcpStream::connect(ground.hbone).await.unwrap()).await);
    // It is recorded when its task ends, which the client may see before.
    let counted = async {
        while !ground.node.metrics().contains(r#"response_flags="OVERLOAD""#) {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(SOON, counted).await.is_ok(), "{}", ground.node.metrics());
    for socket in &silent {
        let read = socket.try_read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(read, Err(std::io::ErrorKind::WouldBlock), "it was ended");
    }

    drop(silent);
    let freed = async { while ground.peer(ground.authority.issue(identity("web")), identity("db")).await.is_err() {} };
    timeout(SOON, freed).await.expect("the places are free again");
}

/// The places are taken by nobody: thousands of real tunnels would take a minute.
#[tokio::test]
async fn one_more_tunnel_than_a_pod_may_have_is_reset_and_one_that_finds_a_place_stands() {
    let mut ground = Ground::new().await;
    let context = ground.node.context.clone();
    let drain = Drain::default();
    let state = Rc::new(PodState::new(ground.db.clone(), drain, context.telemetry.listeners.dialled.clone()));
    let mut taken = vec![state.tunnels.clone(); hbone::TUNNELS];
    let listener = TcpListener::bind((ground.db.addresses[0], 0)).await.unwrap();
    crate::net::prepare(&listener, crate::net::Leg::Outside).unwrap();
    ground.hbone = listener.local_addr().unwrap();
    let serve = async || {
        let (socket, peer) = listener.accept().await.unwrap();
        inbound::serve(Local::new(1, context.clone()), state.clone(), Accepted { socket, peer }).await;
    };

    let (client, ()) = tokio::join!(TcpStream::connect(ground.hbone), serve());
    super::node::is_refused(client).await;
    let page = ground.node.metrics();
    assert!(page.contains(r#"response_flags="OVERLOAD""#), "{page}");

    taken.pop();
    tokio::select! {
        peer = ground.peer(ground.authority.issue(identity("web")), identity("db")) => drop(peer.unwrap()),
        () = serve() => panic!("the tunnel has ended"),
    }
}

#[tokio::test]
async fn a_client_without_certificate_or_protocol_is_refused() {
    let ground = Ground::new().await;
    let credentials =
        Credentials { certificate: ground.authority.issue(identity("web")), trust: ground.authority.trust.clone() };
    let good = tls::client(&credentials, [identity("db")].into()).unwrap();
    let mut anonymous = (*good).clone();
    anonymous.client_auth_cert_resolver = Arc::new(NoCertificate);
    assert!(timeout(SOON, ground.peer_with(anonymous.into())).await.unwrap().is_err());
    let mut other = (*good).clone();
    other.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(timeout(SOON, ground.peer_with(other.into())).await.unwrap().is_err());
    let mut silent = (*good).clone();
    silent.alpn_protocols.clear();
    assert!(timeout(SOON, ground.peer_with(silent.into())).await.unwrap().is_err());
    assert!(timeout(SOON, ground.peer_with(good)).await.unwrap().is_ok());
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_refuses_a_server_that_is_not_whom_it_dialled() {
    let ground = Ground::new().await;
    let web = ground.authority.issue(identity("web"));
    let error = ground.peer(web.clone(), identity("cache")).await.err().unwrap();
    assert!(error.contains("not of the workload that was dialled"), "{error}");
    assert!(ground.peer(web, identity("db")).await.is_ok());
}

#[tokio::test]
async fn sessions_are_tls_13_with_the_hybrid_key_exchange_and_no_tickets() {
    let ground = Ground::new().await;
    let credentials =
        Credentials { certificate: ground.authority.issue(identity("web")), trust: ground.authority.trust.clone() };
    let config = tls::client(&credentials, [identity("db")].into()).unwrap();
    let socket = TcpStream::connect(ground.hbone).await.unwrap();
    let session = TlsConnector::from(config).connect(tls::no_name(ground.hbone.ip()), socket).await.unwrap();
    let state = session.get_ref().1;
    assert_eq!(state.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(state.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(state.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(state.handshake_kind(), Some(rustls::HandshakeKind::Full));
    assert_eq!(state.tls13_tickets_received(), 0);
    assert_eq!(hbone::PORT, ground.hbone.port());
}

#[tokio::test]
async fn a_request_that_is_reset_while_it_waits_is_worked_for_no_longer() {
    let ground = Ground::new().await;
    let web = ground.peer(ground.authority.issue(identity("web")), identity("db")).await.unwrap();
    // A View that does not know the pod yet is waited for.
    ground.node.publish(fixtures::view([], [], []));
    let under_way = async |number: usize| {
        let reached = async {
            while ground.node.worker.connections().await.unwrap().len() != number {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(2), reached).await.is_ok()
    };
    let request = connect(&ground.port.to_string());
    let (response, mut stream) = web.clone().ready().await.unwrap().send_request(request, false).unwrap();
    assert!(under_way(1).await, "it waits");

    stream.send_reset(h2::Reason::CANCEL);
    drop(response);

    assert!(under_way(0).await, "it still waits");
}
