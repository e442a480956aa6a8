//! Every limit of the listeners that agent and control daemon serve for themselves: 15000, 15020, 15021 and the admin socket
//! of an agent, 15012, 15014 and the debug address of a control daemon. docs/limits.md is the same as a table.

use std::time::Duration;

use crate::{gate::Crowd, meter::Budget};

/// Connections to a page listener: Prometheus, the kubelet and a person need a handful. One address cannot take all of them.
pub const PAGES: Crowd = Crowd { all: 256, of_one_address: 64 };

/// Connections to the control daemon: one of each agent. Agents behind one translated address share its part.
pub const AGENTS: Crowd = Crowd { all: 8192, of_one_address: 2048 };

/// TLS handshakes that the control daemon has under way: what a core does well within a second. More are reset, not queued:
/// an agent tries again, and who holds its places for [`HANDSHAKE_TIMEOUT`] keeps no agent of another address out.
pub const HANDSHAKES: Crowd = Crowd { all: 512, of_one_address: 128 };

/// Connections to the agent's admin socket, which only root may open.
pub const OPERATORS: Crowd = Crowd { all: 256, of_one_address: 256 };

/// From accept to the end of a TLS handshake, and from there (or from accept) to the first HTTP/2 frame.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// From accept, or from the last answer, to the end of an HTTP/1 request's head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP/1 request's head, in bytes and in fields.
pub const HEAD_BYTES: usize = 16 << 10;
/// Fields of it.
pub const HEAD_FIELDS: usize = 64;

/// An HTTP/1 connection ends after this, or after the answer that is then being given, for which it has
/// [`ANSWER_TIMEOUT`]: whoever does not read holds a page that long and no longer.
pub const PAGE_LIFETIME: Duration = Duration::from_secs(120);
/// See [`PAGE_LIFETIME`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams of a gRPC connection: an agent has one for configuration and a few requests for certificates.
pub const STREAMS: u32 = 32;

/// What a gRPC client may have on its way to us, on a stream and in all; callers that nobody has identified yet, too.
pub const WINDOW: u32 = 64 << 10;

/// Decoded header list of a gRPC request; above four times this h2 ends the connection.
pub const HEADER_LIST: u32 = 16 << 10;

/// Streams that a client has reset before we have looked at them; above it h2 ends the connection.
pub const PENDING_RESETS: usize = 20;

/// Streams that we have reset for a fault of the client, in the life of a connection; above it h2 ends the connection.
pub const FAULTS: usize = 64;

/// Frames of a gRPC connection that carry no payload and open no stream. An agent's few PINGs and the WINDOW_UPDATEs for what
/// it is sent, which those bytes pay for.
pub const FRAMES: Budget = Budget { burst: 2_000, per_second: 200, bytes_sent_per_frame: 1 << 10, per_turn: 4096 };

/// A connection on which nothing answers a PING is ended: one each,
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// and this long for the answer.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// One log line per listener and reason in this time; it has the number of all so far.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// After an error of `accept` that has to pass (no descriptors left).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
