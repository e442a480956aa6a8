//! The pool against a peer that is not ours: an h2 server that does what the test says.
#![expect(clippy::disallowed_methods, reason = "the peer of a test accepts by itself")]

mod early;
mod silence;

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{Response, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::LocalSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    DOUBT, Dialled, Early, Key, OpenError, Pool, SERVER_STREAMS, SILENCE, STREAM_WINDOW, Stream, connect_request,
};
use crate::{
    drain::{Drain, Phase},
    proving::{Authority, address, identity},
    tls::{self, Credentials},
};

const SOON: Duration = Duration::from_secs(5);

/// Long enough for what is ready to be seen.
const SHORTLY: Duration = Duration::from_millis(50);

/// What the peer does with a request, by its number since the start.
enum Act {
    Accept,
    Answer(StatusCode),
    Reset(Reason),
    /// Ends the connection without a word.
    Vanish,
    /// Hangs, with the connection open.
    Hang,
    /// Is there and does not answer.
    Ponder,
    /// Reads so many of the request's bytes, then does that.
    After(usize, Box<Act>),
    /// Accepts when it is told to.
    Hold(Rc<Notify>),
}

type Script = Rc<dyn Fn(usize) -> Act>;

type FarEnd = (h2::SendStream<Bytes>, h2::RecvStream);

struct Peer {
    address: SocketAddr,
    connections: Rc<Cell<usize>>,
    /// Accepted streams, from the peer's side.
    streams: RefCell<Vec<FarEnd>>,
    accepted: Rc<Notify>,
    pondering: RefCell<Vec<SendResponse<Bytes>>>,
    /// Its streams' window.
    window: Cell<u32>,
    /// Of each request with [`Act::After`] what it said before the answer.
    heard: RefCell<Vec<Vec<u8>>>,
    /// Requests with [`Act::Hold`].
    held: Cell<usize>,
    vanishes: Notify,
}

struct Ground {
    peer: Rc<Peer>,
    pool: Pool,
    key: Key,
    credentials: Credentials,
    dials: Rc<Cell<usize>>,
    drain: Drain,
}

async fn act(act: Act, mut body: h2::RecvStream, mut respond: SendResponse<Bytes>, peer: Rc<Peer>) {
    let answer = |status| Response::builder().status(status).body(()).unwrap();
    match act {
        Act::Accept => {
            let send = respond.send_response(answer(StatusCode::OK), false).unwrap();
            peer.streams.borrow_mut().push((send, body));
            peer.accepted.notify_one();
        }
        Act::Answer(status) => drop(respond.send_response(answer(status), true).unwrap()),
        Act::Reset(reason) => respond.send_reset(reason),
        Act::Ponder => peer.pondering.borrow_mut().push(respond),
        Act::Hang => (),
        Act::Vanish => peer.vanishes.notify_one(),
        Act::After(bytes, then) => {
            let mut heard = Vec::new();
            while heard.len() < bytes {
                heard.extend_from_slice(&body.data().await.unwrap().unwrap());
            }
            peer.heard.borrow_mut().push(heard);
            Box::pin(self::act(*then, body, respond, peer)).await;
        }
        Act::Hold(until) => {
            peer.held.set(peer.held.get() + 1);
            until.notified().await;
            Box::pin(self::act(Act::Accept, body, respond, peer)).await;
        }
    }
}

impl Peer {
    async fn start(authority: &Authority, script: Script, max_streams: u32, first_says_goaway: bool) -> Rc<Self> {
        let listener = TcpListener::bind((address(), 0)).await.unwrap();
        let credentials = Credentials { certificate: authority.issue(identity("db")), trust: authority.trust.clone() };
        let acceptor = TlsAcceptor::from(tls::server(&credentials, "cluster.local").unwrap());
        let peer = Rc::new(Self {
            address: listener.local_addr().unwrap(),
            connections: Rc::default(),
            streams: RefCell::default(),
            accepted: Rc::default(),
            pondering: RefCell::default(),
            window: Cell::new(STREAM_WINDOW),
            heard: RefCell::default(),
            held: Cell::default(),
            vanishes: Notify::new(),
        });
        let (shared, requests) = (peer.clone(), Rc::new(Cell::new(0)));
        tokio::task::spawn_local(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let number = shared.connections.get();
                shared.connections.set(number + 1);
                let (acceptor, script, shared, requests) =
                    (acceptor.clone(), script.clone(), shared.clone(), requests.clone());
                tokio::task::spawn_local(async move {
                    let Ok(session) = acceptor.accept(socket).await else { return };
                    if number == 0 && first_says_goaway {
                        goaway_at_first_request(session).await;
                    } else {
                        shared.connection(session, max_streams, script, &requests).await;
                    }
                });
            }
        });
        peer
    }

    async fn connection(
        self: Rc<Self>,
        session: TlsStream<TcpStream>,
        max_streams: u32,
        script: Script,
        requests: &Cell<usize>,
    ) {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(max_streams).initial_window_size(self.window.get());
        builder.initial_connection_window_size(STREAM_WINDOW * SERVER_STREAMS);
        let mut connection = builder.handshake(session).await.unwrap();
        loop {
            let (request, respond) = tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok(accepted)) => accepted,
                    _ => return,
                },
                () = self.vanishes.notified() => return,
            };
            let number = requests.get();
            requests.set(number + 1);
            match script(number) {
                Act::Vanish => return,
                Act::Hang => std::future::pending().await,
                other => drop(tokio::task::spawn_local(act(other, request.into_body(), respond, self.clone()))),
            }
        }
    }
}

/// By hand, because h2 counts a request as processed once it has read it. Source: RFC 9113, sections 4.1 and 6.8.
async fn goaway_at_first_request(mut session: TlsStream<TcpStream>) {
    session.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    session.flush().await.unwrap();
    session.read_exact(&mut [0; 24]).await.unwrap();
    loop {
        let mut head = [0; 9];
        session.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        session.read_exact(&mut vec![0; length as usize]).await.unwrap();
        if head[3] == 1 {
            break;
        }
    }
    session.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
    session.flush().await.unwrap();
    while session.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
}

impl Ground {
    async fn new(script: impl Fn(usize) -> Act + 'static) -> Self {
        Self::with(script, SERVER_STREAMS, false).await
    }

    async fn with(script: impl Fn(usize) -> Act + 'static, max_streams: u32, first_says_goaway: bool) -> Self {
        let authority = Authority::new();
        let peer = Peer::start(&authority, Rc::new(script), max_streams, first_says_goaway).await;
        let credentials = Credentials { certificate: authority.issue(identity("web")), trust: authority.trust.clone() };
        let key = Key { address: peer.address, identities: [identity("db")].into() };
        let drain = Drain::default();
        let pool = Pool::new(drain.clone(), std::sync::Arc::new(mesh_listen::Refusals::of("dialled")));
        Self { peer, pool, key, credentials, dials: Rc::default(), drain }
    }

    async fn open(&self) -> Result<Stream, OpenError> {
        self.open_with(&mut Early::default()).await
    }

    async fn open_with(&self, early: &mut Early<'_>) -> Result<Stream, OpenError> {
        let mut random = fastrand::Rng::new();
        let trace = super::TraceParent::random(&mut random);
        let source = "10.0.0.1:4000".parse().unwrap();
        let request = connect_request("10.0.0.2:80".parse().unwrap(), source, None, None, trace).unwrap();
        let dial = || {
            self.dials.set(self.dials.get() + 1);
            let (address, credentials) = (self.key.address, self.credentials.clone());
            async move {
                let config = tls::client(&credentials, [identity("db")].into())?;
                let socket = TcpStream::connect(address).await.unwrap();
                Ok(Dialled { socket, config, certificate: credentials.certificate })
            }
        };
        timeout(SOON, self.pool.open(&self.key, &request, early, dial))
            .await
            .expect("in time")
            .map(|(stream, _)| stream)
    }
}

async fn locally(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

async fn read(stream: &mut Stream) -> std::io::Result<Option<Bytes>> {
    timeout(SOON, std::future::poll_fn(|context| stream.poll_read(context))).await.expect("in time")
}

#[tokio::test]
async fn who_needs_a_tunnel_waits_for_the_one_that_is_dialled() {
    locally(async {
        let ground = Ground::new(|_| Act::Accept).await;
        let (a, b, c) = tokio::join!(ground.open(), ground.open(), ground.open());
        let _streams = (a.unwrap(), b.unwrap(), c.unwrap());
        assert_eq!((ground.dials.get(), ground.pool.tunnels()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_hundred_streams_fill_a_tunnel_and_a_peer_may_allow_fewer() {
    locally(async {
        let ground = Ground::new(|_| Act::Accept).await;
        let mut streams = Vec::new();
        for _ in 0..101 {
            streams.push(ground.open().await.unwrap());
        }
        assert_eq!((ground.dials.get(), ground.pool.tunnels()), (2, 2));
        streams.truncate(1);
        streams.push(ground.open().await.unwrap());
        assert_eq!(ground.dials.get(), 2);

        let few = Ground::with(|_| Act::Accept, 2, false).await;
        let mut streams = Vec::new();
        for _ in 0..5 {
            streams.push(few.open().await.unwrap());
        }
        assert_eq!(few.dials.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_the_peer_has_not_looked_at_is_sent_again() {
    locally(async {
        let refuses_two = |request| if request < 2 { Act::Reset(Reason::REFUSED_STREAM) } else { Act::Accept };
        let ground = Ground::new(refuses_two).await;
        ground.open().await.unwrap();
        assert_eq!(ground.dials.get(), 1);

        let ground = Ground::with(|_| Act::Accept, SERVER_STREAMS, true).await;
        ground.open().await.unwrap();
        assert_eq!((ground.dials.get(), ground.peer.connections.get()), (2, 2));
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_refuses_for_ever_is_given_up() {
    locally(async {
        let ground = Ground::new(|_| Act::Reset(Reason::REFUSED_STREAM)).await;
        assert!(matches!(ground.open().await, Err(OpenError::Lost(_))));
    })
    .await;
}

#[tokio::test]
async fn what_the_peer_may_have_looked_at_is_not_sent_again() {
    locally(async {
        for answer in [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
            let ground = Ground::new(move |request| if request == 0 { Act::Answer(answer) } else { Act::Accept }).await;
            assert!(matches!(ground.open().await, Err(OpenError::Status(status)) if status == answer));
        }
        for reason in [Reason::CANCEL, Reason::CONNECT_ERROR, Reason::INTERNAL_ERROR] {
            let ground = Ground::new(move |request| if request == 0 { Act::Reset(reason) } else { Act::Accept }).await;
            assert!(matches!(ground.open().await, Err(OpenError::Lost(_))));
        }
        let ground = Ground::new(|request| if request == 0 { Act::Vanish } else { Act::Accept }).await;
        assert!(matches!(ground.open().await, Err(OpenError::Lost(_))));
        // The tunnel that was lost is not used again.
        ground.open().await.unwrap();
        assert_eq!(ground.dials.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_that_ends_without_the_streams_end_is_an_error_and_an_end_is_an_end() {
    locally(async {
        let ground = Ground::new(|request| if request == 2 { Act::Vanish } else { Act::Accept }).await;
        let (mut ended, mut cut) = (ground.open().await.unwrap(), ground.open().await.unwrap());
        let (mut send, _receive) = ground.peer.streams.borrow_mut().remove(0);
        send.send_data(Bytes::from_static(b"all"), true).unwrap();
        assert_eq!(read(&mut ended).await.unwrap(), Some(Bytes::from_static(b"all")));
        assert_eq!(read(&mut ended).await.unwrap(), None);
        assert!(ground.open().await.is_err());
        assert!(read(&mut cut).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn retired_tunnels_keep_their_streams_and_take_no_new_ones() {
    locally(async {
        let ground = Ground::new(|_| Act::Accept).await;
        let mut old = ground.open().await.unwrap();
        ground.pool.retire_all();
        let _new = ground.open().await.unwrap();
        assert_eq!(ground.dials.get(), 2);
        let (mut send, _receive) = ground.peer.streams.borrow_mut().remove(0);
        send.send_data(Bytes::from_static(b"still"), true).unwrap();
        assert_eq!(read(&mut old).await.unwrap(), Some(Bytes::from_static(b"still")));
    })
    .await;
}

#[tokio::test]
async fn closing_ends_every_tunnel_of_the_pool() {
    locally(async {
        let ground = Ground::new(|_| Act::Accept).await;
        let mut stream = ground.open().await.unwrap();
        ground.drain.advance(Phase::Closing);
        timeout(SOON, ground.drain.joined()).await.unwrap();
        assert!(read(&mut stream).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_has_ended_its_direction_and_then_drops_the_stream_has_reset_it() {
    locally(async {
        let ground = Ground::new(|_| Act::Accept).await;
        let mut stream = ground.open().await.unwrap();
        let (mut send, receive) = ground.peer.streams.borrow_mut().remove(0);
        send.send_data(Bytes::from_static(b"all"), true).unwrap();
        assert_eq!(read(&mut stream).await.unwrap(), Some(Bytes::from_static(b"all")));
        assert_eq!(read(&mut stream).await.unwrap(), None);
        // h2 says NO_ERROR for a server whose direction has ended.
        drop((send, receive));
        timeout(SOON, std::future::poll_fn(|context| stream.poll_reset(context))).await.expect("in time");
    })
    .await;
}

#[test]
fn a_tunnel_that_is_opened_late_lives_as_long_as_its_certificate() {
    let certificate = Authority::new().issue(identity("web"));
    let life = certificate.not_after.duration_since(certificate.issued).unwrap();
    let left = |age: Duration| super::client::until_retirement(&certificate, certificate.issued + age);
    let second = Duration::from_secs(1);
    assert_eq!(left(life - life / 3 - second), second);
    assert_eq!(left(life - life / 3), life / 3);
    assert_eq!(left(life - second), second);
    assert_eq!(left(life), Duration::ZERO);
}
