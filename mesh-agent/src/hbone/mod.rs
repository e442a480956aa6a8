//! HBONE: TCP connections as CONNECT streams of HTTP/2 inside mutual TLS. `client` and `pool` open them, `server` takes them
//! in, and [`Stream`] is all that the path sees of either, so that the framing behind it can be replaced. Knows nothing of
//! policies, services or pods; every limit is in this file.

mod chores;
mod client;
mod early;
mod headers;
mod inflow;
mod keepalive;
mod lent;
mod pool;
mod server;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

use mesh_listen::Budget;

pub use client::{Peer, Tunnel, TunnelError};
pub use early::{Begun, Early};
pub(crate) use headers::connect_request;
pub use headers::{Baggage, TraceParent, forwarded_for};
pub(crate) use lent::SIZE as CHUNK;
pub use lent::read_chunk;
pub use pool::{Dialled, Key, OpenError, Pool};
pub use server::{Asked, Incoming, Server, ServerError};
#[cfg(any(test, fuzzing))]
pub(crate) use server::{authority, serve_unsealed};
pub use stream::{Backlog, Stream};

/// Where agents listen for tunnels, in each pod's namespace.
pub const PORT: u16 = 15008;

/// What one stream may have on its way: bandwidth of a stream times its round trip. 4 MiB gave 3 % more than 1 MiB in one
/// stream and costs four times the memory behind a stalled reader; 256 KiB gave 22 % less.
const STREAM_WINDOW: u32 = 1 << 20;

/// Streams that a client puts on one connection.
const CLIENT_STREAMS: usize = 100;

/// Streams that a server takes on one connection.
const SERVER_STREAMS: u32 = 200;

/// As much as all streams together: h2 gives both windows back with one call, so with a smaller one a few applications that
/// do not read would stop the others' streams. This bounds what a connection's stalled readers can hold.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * SERVER_STREAMS;

/// Largest DATA frame taken: one frame carries one read of an application's socket.
const FRAME: u32 = 256 << 10;

/// What h2 holds per stream that is not yet sealed: the frame being written and the next.
pub(crate) const SEND_BUFFER: usize = 2 * FRAME as usize;

/// What small DATA frames that nobody has taken may cost on one tunnel, beyond their payload: 256 bytes for each of less than
/// that. Those of a reader that stalls are put together ([`inflow`]) whenever it is the streams' turn, which it is after
/// [`FRAMES`]`.per_turn` frames at the latest: no peer comes near this.
const SMALL_FRAMES: usize = 8 << 20;

/// Frames that carry nothing (PING, SETTINGS, WINDOW_UPDATE, RST_STREAM, PRIORITY, unknown): a tunnel whose 10,000 connections
/// a second are all reset stays below. CONTINUATIONs, empty DATA frames and streams reset before we have seen them h2 limits.
const FRAMES: Budget = Budget { burst: 20_000, per_second: 10_000, bytes_sent_per_frame: 1 << 10, per_turn: 4096 };

/// What rustls holds of plaintext or records on their way, per direction: one frame with its record overhead.
const TLS_BUFFER: usize = 320 << 10;

/// Header lists: ours are a few hundred bytes.
const CLIENT_HEADER_LIST: u32 = 16 << 10;
const SERVER_HEADER_LIST: u32 = 64 << 10;

/// Handshakes that a server has under way for one pod and worker: what a core does well within a second. Who connects and
/// says nothing holds a place for [`HANDSHAKE_TIMEOUT`].
pub(crate) const HANDSHAKES: usize = 256;

/// Tunnels that a server keeps for one pod and worker: those of thousands of client pods.
pub(crate) const TUNNELS: usize = 4096;

/// From accept to the end of the TLS handshake, and from there to the first SETTINGS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A CONNECT is answered after the far side has connected to its application, or refused to.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// Who waits for an answer that long asks with a PING whether the peer is there at all.
const DOUBT: Duration = Duration::from_secs(1);

/// A peer that is waited for and answers no PING for this long takes no new stream: as long as a node gives its own agent
/// before it refuses in its stead (`mesh_common::verdict`), so that the next dial is refused at once.
const SILENCE: Duration = Duration::from_secs(3);

/// At least this between two PINGs, however many ask.
const PING_GAP: Duration = Duration::from_millis(500);

/// One PING this long after the last answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// A tunnel whose PING is unanswered for this long is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(45);

/// A tunnel without streams is released after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How often one stream is sent again to the same endpoint because the server has not looked at it.
const RESENDS: usize = 3;

/// How long a peer may take to notice GOAWAY and to end what is open, once everything is closing.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
