//! The client's end of one tunnel: TLS, HTTP/2, a task that drives it until its streams are done or it is found dead. Who
//! shares it is the pool's business.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use h2::client::{Connection, SendRequest};
use mesh_api::Identity;
use mesh_listen::{Meter, Metered, Refusals};
use rustls::ClientConfig;
use tokio::{net::TcpStream, sync::Notify, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    CLIENT_HEADER_LIST, CLIENT_STREAMS, CLOSE_TIMEOUT, CONNECTION_WINDOW, DOUBT, FRAME, FRAMES, HANDSHAKE_TIMEOUT,
    SEND_BUFFER, SMALL_FRAMES, STREAM_WINDOW, TLS_BUFFER,
    chores::{Chore, Chores},
    keepalive::{self, Pulse},
    wire::{Heard, Orderly, Wire},
};
use crate::{
    certificates::WorkloadCertificate,
    drain::{Drain, Phase},
    net::DialError,
    tls,
};

/// Who is at the far end of a tunnel, proved by its certificate, and by what the bytes are sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The peer's identity.
    pub identity: Identity,
    /// As IANA names it, e.g. `TLS13_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// Our certificate or the roots are missing.
    #[error(transparent)]
    Credentials(#[from] tls::TlsError),
    /// The peer's agent cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The handshake failed, or the peer is not who was dialled.
    #[error("TLS handshake with {address}: {}", tls::explained(source))]
    Tls {
        /// The peer's agent.
        address: SocketAddr,
        /// What rustls says.
        source: io::Error,
    },
    /// No HTTP/2 after the handshake.
    #[error("HTTP/2 with {address}: {source}")]
    Http {
        /// The peer's agent.
        address: SocketAddr,
        /// What h2 says.
        source: h2::Error,
    },
    /// The handshakes took too long.
    #[error("handshake with {0}: no answer")]
    Timeout(SocketAddr),
    /// The worker is going down.
    #[error("the agent is draining")]
    Draining,
}

/// A tunnel that streams can be opened on.
#[derive(Debug)]
pub struct Tunnel {
    sender: RefCell<Option<SendRequest<Bytes>>>,
    streams: Cell<usize>,
    last_used: Cell<Instant>,
    /// A stream ended, or the tunnel was retired.
    changed: Notify,
    pulse: Pulse,
    heard: Heard,
    /// The peer.
    pub peer: Rc<Peer>,
}

/// What drives the tunnel; to be spawned beside it.
pub(super) struct Driver {
    connection: Connection<Metered<TlsStream<Wire>>, Bytes>,
    orderly: Orderly,
    retires_at: Instant,
}

impl Tunnel {
    /// Handshakes on a connected socket. `certificate` is the one in `config`: the tunnel takes no new stream from two
    /// thirds of its life on (opened after that, from its end on).
    ///
    /// # Errors
    /// TLS or HTTP/2 failed or took more than ten seconds.
    pub(super) async fn establish(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        certificate: &WorkloadCertificate,
        refusals: Arc<Refusals>,
    ) -> Result<(Rc<Self>, Driver), TunnelError> {
        let address = socket.peer_addr().map_err(DialError::Open)?;
        let handshakes = async {
            let (wire, orderly) = Wire::new(socket);
            let heard = wire.heard();
            let session = TlsConnector::from(config)
                .connect_with(tls::no_name(address.ip()), wire, |session| session.set_buffer_limit(Some(TLS_BUFFER)))
                .await
                .map_err(|source| TunnelError::Tls { address, source })?;
            let peer = peer_of(session.get_ref().1).map_err(|source| TunnelError::Tls { address, source })?;
            let meter = Meter::of_server(FRAMES, std::time::Instant::now());
            let session = Metered::of_server(session, meter, refusals, Some(address));
            let (sender, connection) = builder()
                .handshake::<_, Bytes>(session)
                .await
                .map_err(|source| TunnelError::Http { address, source })?;
            let tunnel = Rc::new(Self {
                sender: RefCell::new(Some(sender)),
                streams: Cell::new(0),
                last_used: Cell::new(Instant::now()),
                changed: Notify::new(),
                pulse: Pulse::default(),
                heard,
                peer: Rc::new(peer),
            });
            let retires_at = Instant::now() + until_retirement(certificate, SystemTime::now());
            Ok((tunnel, Driver { connection, orderly, retires_at }))
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshakes).await.unwrap_or(Err(TunnelError::Timeout(address)))
    }

    /// A sender, and one of the streams that the tunnel may have; none when it has as many, or takes no new ones.
    pub(super) fn claim(self: &Rc<Self>) -> Option<SendRequest<Bytes>> {
        let sender = self.sender.borrow();
        let sender = sender.as_ref()?;
        // A peer may allow fewer; before its SETTINGS have come h2 counts with 100.
        let allowed = CLIENT_STREAMS.min(sender.current_max_send_streams());
        if self.streams.get() >= allowed {
            return None;
        }
        self.streams.set(self.streams.get() + 1);
        Some(sender.clone())
    }

    /// Returns when it is to be retired, or has been.
    async fn until_old_or_idle(&self, retires_at: Instant, idle: Duration) {
        while !self.is_retired() {
            let idle_at = self.last_used.get() + idle;
            let is_idle = self.streams.get() == 0;
            tokio::select! {
                () = tokio::time::sleep_until(retires_at) => return,
                () = tokio::time::sleep_until(idle_at), if is_idle => {
                    if self.streams.get() == 0 && self.last_used.get() + idle <= Instant::now() {
                        return;
                    }
                }
                () = self.changed.notified() => (),
            }
        }
    }

    /// Gives a claimed stream back.
    pub(super) fn release(&self) {
        self.streams.set(self.streams.get() - 1);
        self.last_used.set(Instant::now());
        self.changed.notify_one();
    }

    /// No new stream; the driver says GOAWAY and ends when the last stream has.
    pub fn retire(&self) {
        self.sender.take();
        self.changed.notify_one();
    }

    /// Whether the peer gave a sign of life so lately that bytes may go ahead of an answer.
    pub(super) fn was_heard_lately(&self) -> bool {
        self.heard.age() < DOUBT
    }

    /// Returns when the peer gives no sign of life, while somebody waits for it.
    pub(super) async fn is_silent(&self) {
        self.pulse.lost().await;
    }

    /// Retires it because of that; told once, however many wait.
    pub(super) fn retire_silent(&self) {
        if !self.is_retired() {
            tracing::info!(peer = %self.peer.identity, "tunnel silent: no answer to PING, opening another");
            self.retire();
        }
    }

    /// Whether it takes no new stream.
    pub(super) fn is_retired(&self) -> bool {
        self.sender.borrow().is_none()
    }
}

impl Driver {
    /// Drives the tunnel to its end. Retires it by age and when idle for `idle`; resets it when the peer is dead.
    pub(super) async fn run(self, tunnel: Rc<Tunnel>, idle: Duration, drain: &Drain) {
        let Self { mut connection, orderly, retires_at } = self;
        let ping_pong = connection.ping_pong();
        let mut chores = Chores::new();
        chores.push(Box::pin(async {
            keepalive::until_dead(ping_pong, &tunnel.pulse).await;
            tracing::info!(peer = %tunnel.peer.identity, "tunnel dead: no answer to PING");
            Chore::End
        }));
        chores.push(Box::pin(async {
            drain.reached(Phase::Closing).await;
            tunnel.retire();
            tokio::time::sleep(CLOSE_TIMEOUT).await;
            Chore::End
        }));
        chores.push(Box::pin(async {
            tunnel.until_old_or_idle(retires_at, idle).await;
            tunnel.retire();
            Chore::Done
        }));
        loop {
            tokio::select! {
                biased;
                result = &mut connection => {
                    if let Err(error) = &result {
                        tracing::debug!(peer = %tunnel.peer.identity, %error, "tunnel lost");
                    } else {
                        orderly.set();
                    }
                    break;
                }
                Some(chore) = chores.next() => {
                    if chore == Chore::End {
                        break;
                    }
                }
            }
        }
        drop(chores);
        tunnel.retire();
    }
}

fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(CLIENT_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .data_frame_budget(SMALL_FRAMES);
    builder
}

/// Two thirds of the lifetime, counted from the issue. A tunnel that is opened later than
/// that (renewal fails) lives as long as its certificate: the next one would have no other.
pub(super) fn until_retirement(certificate: &WorkloadCertificate, now: SystemTime) -> Duration {
    let life = certificate.not_after.duration_since(certificate.issued).unwrap_or_default();
    let until = |time: SystemTime| time.duration_since(now).ok().filter(|left| !left.is_zero());
    until(certificate.not_after - life / 3).or_else(|| until(certificate.not_after)).unwrap_or_default()
}

/// The far end of a finished handshake.
///
/// # Errors
/// It did not agree on `h2`, or its certificate names nobody (both refused in the handshake by our own verifiers already).
pub(super) fn peer_of(session: &rustls::CommonState) -> io::Result<Peer> {
    if session.alpn_protocol() != Some(tls::ALPN) {
        return Err(io::Error::other("the peer did not agree on the protocol h2"));
    }
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let identity = leaf.map(tls::peer_identity).ok_or_else(|| io::Error::other("the peer has no certificate"))?;
    let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
    Ok(Peer { identity: identity.map_err(io::Error::other)?, cipher })
}
