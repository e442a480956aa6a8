//! What a story says to the test application in a pod: one JSON object per line on its standard input, one per line
//! back. Only data; the application is in `bin/mesh-app`, the story's side in `app`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One line to the application.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Repeated in the answer; requests run beside each other.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// One line from the application.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Of the request.
    pub id: u64,
    /// The result, or why the application could not try (never: that the network refused).
    pub result: Result<Reply, String>,
}

/// What the application can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Opens a server.
    Listen(Listen),
    /// Closes a server's listening socket.
    Unlisten {
        /// From [`Reply::Listening`].
        server: u32,
    },
    /// Lists the connections that a server has accepted so far.
    Accepted {
        /// From [`Reply::Listening`].
        server: u32,
    },
    /// Connects, sends, reads one line and closes.
    Dial(Dial),
    /// Connects and keeps the connection.
    Open(Dial),
    /// Writes to a kept connection.
    Write {
        /// From [`Reply::Opened`].
        connection: u32,
        /// Written `times` times.
        text: String,
        /// How often.
        times: u32,
    },
    /// Reads from a kept connection until that many bytes, its end, or the time limit.
    Read {
        /// From [`Reply::Opened`].
        connection: u32,
        /// Bytes wanted.
        bytes: usize,
    },
    /// Asks the socket of a kept connection what it is called now.
    Names {
        /// From [`Reply::Opened`].
        connection: u32,
    },
    /// Sends FIN on a kept connection.
    Finish {
        /// From [`Reply::Opened`].
        connection: u32,
    },
    /// Closes a kept connection: with FIN, or with RST.
    Close {
        /// From [`Reply::Opened`].
        connection: u32,
        /// RST instead of FIN.
        reset: bool,
    },
    /// Reads and drops until the connection ends, at most that long.
    AwaitEnd {
        /// From [`Reply::Opened`].
        connection: u32,
        /// Limit in milliseconds.
        limit_ms: u64,
    },
    /// Many connections to [`Behaviour::Name`] servers.
    Storm(Storm),
    /// Sends pseudo-random bytes to a [`Behaviour::Sink`], half-closes, and compares the sink's answer.
    Transfer {
        /// The sink.
        to: SocketAddr,
        /// How many.
        bytes: u64,
    },
    /// Connects a datagram socket, sends one datagram and waits briefly for the answer.
    Datagram {
        /// Where.
        to: SocketAddr,
        /// What.
        text: String,
    },
    /// Sends TCP SYN segments with a source address of one's choice from a raw socket (IPv4).
    SpoofSyn {
        /// Claimed source.
        source: SocketAddr,
        /// Destination.
        destination: SocketAddr,
    },
}

/// A server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listen {
    /// Where; an unspecified IPv6 address takes IPv4 as well unless `only_v6`.
    pub address: SocketAddr,
    /// IPV6_V6ONLY.
    pub only_v6: bool,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// What it does with a connection.
    pub behaviour: Behaviour,
}

/// What a server does with a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Behaviour {
    /// Sends back what it reads; at the client's FIN, its own.
    Echo,
    /// Answers the first line with `LOCAL PEER\n` as its own socket sees them, then waits for the client to close.
    Name,
    /// Speaks first: sends the text, then echoes.
    Greet(String),
    /// Reads until FIN, then answers `BYTES CHECKSUM\n`.
    Sink,
    /// Sends that many pseudo-random bytes, then FIN.
    Source(u64),
    /// Sends a byte every 5 ms until the client goes.
    Drip,
    /// Echoes one line; at the next one, sends RST.
    Reset,
    /// Sends FIN at once and, at the first line, RST.
    FinishThenReset,
    /// Reads nothing, sends nothing, keeps the connection.
    Hold,
}

/// One connection to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dial {
    /// Where; a v4-mapped address makes an IPv6 socket.
    pub to: SocketAddr,
    /// Bound before connecting.
    pub from: Option<SocketAddr>,
    /// Connected on the same socket first; that connection must fail.
    pub first_to: Option<SocketAddr>,
    /// Connects without blocking and waits for the socket to become writable.
    pub non_blocking: bool,
    /// Written after connecting ([`Command::Dial`] only).
    pub send: String,
    /// Limit of each step in milliseconds.
    pub limit_ms: u64,
}

/// Many connections.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Storm {
    /// Taken in turn; each must be a [`Behaviour::Name`] server.
    pub to: Vec<SocketAddr>,
    /// How many connections in all.
    pub connections: u32,
    /// How many threads share them.
    pub threads: u32,
    /// How many are begun in a second; 0: as many as can be.
    pub per_second: u32,
    /// Whether the server's account of itself must equal the address dialled (not so for services).
    pub same_address: bool,
}

/// What came of a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to report.
    Done,
    /// A server is open.
    Listening {
        /// Its number.
        server: u32,
        /// Where it is bound.
        address: SocketAddr,
    },
    /// Connections of a server, in order.
    Accepted(Vec<Accepted>),
    /// A dialled connection, from beginning to end.
    Dialled(Report),
    /// A connection that is kept if it could be made.
    Opened {
        /// Its number; 0 when the connection failed.
        connection: u32,
        /// How it was made.
        report: Report,
    },
    /// Bytes as text.
    Read {
        /// What was read, lossily.
        text: String,
        /// How many bytes.
        bytes: usize,
        /// How it ended, if it did.
        end: Option<End>,
    },
    /// What a socket is called.
    Named {
        /// getsockname
        local: SocketAddr,
        /// getpeername
        peer: SocketAddr,
    },
    /// A connection ended, or not within the limit.
    Ended {
        /// `None`: still there at the limit.
        end: Option<End>,
        /// Bytes read meanwhile.
        bytes: u64,
        /// Milliseconds until then.
        after_ms: u64,
    },
    /// What came of many connections.
    Storm(StormReport),
    /// What came of a transfer.
    Transfer {
        /// The sink read what was sent.
        is_intact: bool,
        /// Milliseconds it took.
        took_ms: u64,
    },
    /// A datagram's answer.
    Datagram {
        /// getpeername of the connected socket.
        peer: SocketAddr,
        /// The answer, if one came.
        answer: Option<String>,
    },
}

/// A connection as the server's own socket sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// What `accept` answered.
    pub peer: SocketAddr,
    /// What `getpeername` answers.
    pub peer_name: Option<SocketAddr>,
    /// What `getsockname` answers.
    pub local: SocketAddr,
}

/// A connection as the client's own socket sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// `getsockname`, once connected.
    pub local: Option<SocketAddr>,
    /// `getpeername`, once connected.
    pub peer: Option<SocketAddr>,
    /// What was read after sending.
    pub received: String,
    /// The step that failed and how.
    pub failure: Option<Failure>,
    /// Microseconds until connected or failed.
    pub connect_us: u64,
    /// Microseconds until the end.
    pub total_us: u64,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which.
    pub step: Step,
    /// The kernel's number; 0 for an orderly end where bytes were expected.
    pub errno: i32,
    /// For a person.
    pub text: String,
}

/// A step of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// bind
    Bind,
    /// connect
    Connect,
    /// write
    Write,
    /// read
    Read,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The other side's FIN.
    Finished,
    /// ECONNRESET and the like.
    Failed(i32),
}

/// What came of many connections.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StormReport {
    /// Answered by the right server, which saw this client's address.
    pub answered: u32,
    /// Answered by another server than the one dialled.
    pub wrong_destination: u32,
    /// The server saw another client address.
    pub wrong_source: u32,
    /// Failed: the first few, for a person.
    pub failures: Vec<String>,
    /// How many failed.
    pub failed: u32,
    /// How often each server (its own address) answered.
    pub by_server: Vec<(SocketAddr, u32)>,
    /// Milliseconds from the start at which each twelfth of the connections was done.
    pub twelfths_ms: Vec<u64>,
}

/// What readers lose by others that hardly read, as `mesh-load readers` prints it: bytes per second, round by round.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReadersReport {
    /// Alone.
    pub without: Vec<f64>,
    /// Beside those that hardly read.
    pub with: Vec<f64>,
}

/// What came of connections that were opened at once, as `mesh-load crowd` prints it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CrowdReport {
    /// Their line came back.
    pub answered: u32,
    /// Refused, reset or ended.
    pub refused: u32,
    /// Neither within a minute.
    pub hung: u32,
    /// Milliseconds that the slowest of them took.
    pub slowest_ms: u64,
}

/// The pseudo-random bytes of transfers, and their checksum (FNV-1a, 64 bits).
pub struct Bytes {
    generator: fastrand::Rng,
    sum: u64,
}

impl Default for Bytes {
    fn default() -> Self {
        Self { generator: fastrand::Rng::with_seed(7), sum: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Bytes {
    /// Fills `buffer` with the next bytes and adds them to the sum.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        self.generator.fill(buffer);
        self.add(buffer);
    }

    /// Adds bytes to the sum.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The sum so far.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}
