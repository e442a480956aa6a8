//! The server's end of one tunnel: TLS, HTTP/2, and CONNECT requests handed out one by one. Judges their shape only; whether
//! a request may go on is the path's to say.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;
use h2::server::{Connection, SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use mesh_api::Identity;
use mesh_listen::{Meter, Metered, Refusals};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Backlog, CLOSE_TIMEOUT, CONNECTION_WINDOW, FRAME, FRAMES, HANDSHAKE_TIMEOUT, SEND_BUFFER, SERVER_HEADER_LIST,
    SERVER_STREAMS, SMALL_FRAMES, STREAM_WINDOW, Stream, TLS_BUFFER,
    chores::{Chore, Chores},
    client::{Peer, peer_of, until_retirement},
    inflow::Inflow,
    keepalive::{self, Pulse},
    wire::{Orderly, Wire},
};
use crate::{
    certificates::WorkloadCertificate,
    drain::{Drain, Phase},
    tls::TlsError,
};

/// Why a tunnel was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Our certificate or the roots are missing.
    #[error(transparent)]
    Credentials(#[from] TlsError),
    /// No certificate, a wrong one, another protocol, or a peer that went away.
    #[error("TLS handshake: {}", crate::tls::explained(.0))]
    Tls(#[source] io::Error),
    /// No HTTP/2 after the handshake.
    #[error("HTTP/2: {0}")]
    Http(#[source] h2::Error),
    /// The handshakes took too long.
    #[error("handshake: no answer")]
    Timeout,
}

/// An accepted tunnel.
pub struct Server {
    connection: Connection<Metered<TlsStream<Wire>>, Bytes>,
    orderly: Orderly,
    retires_at: Instant,
    /// Who has opened it.
    pub peer: Rc<Peer>,
}

impl Server {
    /// Handshakes on an accepted socket. `certificate` is the one in `config`: GOAWAY is sent at two thirds of its life (taken
    /// after that, at its end). What its peer sends beyond the limits is counted as `refusals`.
    ///
    /// # Errors
    /// TLS or HTTP/2 failed or took more than ten seconds; no request was read.
    pub async fn accept(
        socket: TcpStream,
        config: Arc<ServerConfig>,
        certificate: &WorkloadCertificate,
        refusals: Arc<Refusals>,
    ) -> Result<Self, ServerError> {
        let address = socket.peer_addr().ok();
        let handshakes = async {
            let (wire, orderly) = Wire::new(socket);
            let session = TlsAcceptor::from(config)
                .accept_with(wire, |session| session.set_buffer_limit(Some(TLS_BUFFER)))
                .await
                .map_err(ServerError::Tls)?;
            let peer = Rc::new(peer_of(session.get_ref().1).map_err(ServerError::Tls)?);
            let meter = Meter::of_client(FRAMES, std::time::Instant::now());
            let session = Metered::of_client(session, meter, refusals, address);
            let connection = builder().handshake(session).await.map_err(ServerError::Http)?;
            let retires_at = Instant::now() + until_retirement(certificate, SystemTime::now());
            Ok(Self { connection, orderly, retires_at, peer })
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshakes).await.unwrap_or(Err(ServerError::Timeout))
    }

    /// Hands out requests until the tunnel has ended. `draining` says GOAWAY and lets streams end, `closing` waits half a
    /// second for it and resets.
    pub async fn run(mut self, drain: &Drain, incoming: impl FnMut(Incoming)) {
        if hand_out(&mut self.connection, &self.peer.identity, self.retires_at, drain, incoming).await {
            self.orderly.set();
        }
    }
}

/// [`Server::run`] on any transport; whether the tunnel ended in order.
async fn hand_out<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S, Bytes>,
    peer: &Identity,
    retires_at: Instant,
    drain: &Drain,
    mut incoming: impl FnMut(Incoming),
) -> bool {
    let pulse = Pulse::default();
    let ping_pong = connection.ping_pong();
    let mut chores = Chores::new();
    chores.push(Box::pin(async {
        keepalive::until_dead(ping_pong, &pulse).await;
        tracing::info!(%peer, "tunnel dead: no answer to PING");
        Chore::End
    }));
    chores.push(Box::pin(async {
        drain.reached(Phase::Closing).await;
        tokio::time::sleep(CLOSE_TIMEOUT).await;
        Chore::End
    }));
    chores.push(Box::pin(async {
        tokio::select! {
            () = drain.reached(Phase::Draining) => (),
            () = tokio::time::sleep_until(retires_at) => (),
        }
        Chore::GoAway
    }));
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => incoming(Incoming::new(request, respond)),
                Some(Err(error)) => {
                    tracing::debug!(%peer, %error, "tunnel lost");
                    return false;
                }
                None => return true,
            },
            Some(chore) = chores.next() => match chore {
                Chore::GoAway => connection.graceful_shutdown(),
                Chore::End => return false,
                Chore::Done => (),
            },
        }
    }
}

/// What a verified peer can send, without the TLS around it; whether the tunnel ended in order.
#[cfg(any(test, fuzzing))]
pub(crate) async fn serve_unsealed(
    transport: impl AsyncRead + AsyncWrite + Unpin,
    peer: &Identity,
    drain: &Drain,
    incoming: impl FnMut(Incoming),
) -> Result<bool, h2::Error> {
    let mut connection = builder().handshake(transport).await?;
    let retires_at = Instant::now() + std::time::Duration::from_secs(3600);
    Ok(hand_out(&mut connection, peer, retires_at, drain, incoming).await)
}

fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(SERVER_HEADER_LIST)
        .max_concurrent_streams(SERVER_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES);
    builder
}

/// [`Incoming::authority`] of any request.
pub(crate) fn authority<B>(request: &Request<B>) -> Result<SocketAddr, StatusCode> {
    if request.method() != Method::CONNECT {
        return Err(StatusCode::BAD_REQUEST);
    }
    let authority = request.uri().authority().ok_or(StatusCode::BAD_REQUEST)?;
    authority.as_str().parse().map_err(|_| StatusCode::BAD_REQUEST)
}

/// What a request says.
pub struct Asked(Request<()>);

impl Asked {
    /// Where the peer wants to go.
    ///
    /// # Errors
    /// The status to answer: the method is not CONNECT, or the authority is no address and port. Names are not resolved.
    pub fn authority(&self) -> Result<SocketAddr, StatusCode> {
        authority(&self.0)
    }

    /// The request's headers: claims of the peer, for display only.
    pub fn headers(&self) -> &HeaderMap {
        self.0.headers()
    }
}

/// What arrives on a request's stream.
pub struct Arriving<'a>(&'a mut Inflow);

impl Arriving<'_> {
    /// Keeps it together, for as long as this is polled; returns when the peer has reset the stream.
    pub async fn until_reset(self) {
        self.0.until_reset().await;
    }
}

/// One request. Dropped without an answer, its stream is reset.
pub struct Incoming {
    asked: Asked,
    body: Inflow,
    respond: SendResponse<Bytes>,
}

impl Incoming {
    fn new(request: Request<h2::RecvStream>, respond: SendResponse<Bytes>) -> Self {
        let (head, body) = request.into_parts();
        Self { asked: Asked(Request::from_parts(head, ())), body: Inflow::new(body), respond }
    }

    /// What is asked, and what arrives meanwhile: to be looked at together.
    pub fn parts(&mut self) -> (&Asked, Arriving<'_>) {
        (&self.asked, Arriving(&mut self.body))
    }

    /// What arrives before the answer, and after it.
    pub fn backlog(&mut self) -> Backlog {
        Backlog::of(self.body.flow_control())
    }

    /// Answers with a refusal.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // It fails when the stream is gone already.
        self.respond.send_response(response, true).ok();
    }

    /// Answers 200: bytes pass from now on.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn accept(mut self, baggage: Option<HeaderValue>) -> Result<Stream, io::Error> {
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            response.headers_mut().insert("baggage", baggage);
        }
        let send = self.respond.send_response(response, false).map_err(io::Error::other)?;
        Ok(Stream::new(send, self.body, None))
    }
}
