//! A connection that a story keeps open and uses step by step.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    client::Client,
    protocol::{Command, End, Reply, Report},
};

/// An open connection; closed when dropped.
pub struct Conversation {
    client: Arc<Client>,
    number: u32,
    report: Report,
}

impl Conversation {
    pub(crate) fn new(client: Arc<Client>, number: u32, report: Report) -> Self {
        Self { client, number, report }
    }

    /// The client's own address.
    ///
    /// # Panics
    /// When the client's socket did not say.
    pub fn local(&self) -> SocketAddr {
        self.report.local.expect("a connected socket has an address")
    }

    /// What the client's socket says it is connected to.
    ///
    /// # Panics
    /// When the client's socket did not say.
    pub fn peer(&self) -> SocketAddr {
        self.report.peer.expect("a connected socket has a peer")
    }

    /// What the client's socket says now that it is connected to.
    #[track_caller]
    pub fn peer_now(&self) -> SocketAddr {
        match self.client.ask(Command::Names { connection: self.number }) {
            Reply::Named { peer, .. } => peer,
            other => panic!("not an answer to names: {other:?}"),
        }
    }

    /// Writes.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        self.client.ask(Command::Write { connection: self.number, text: text.to_owned(), times: 1 });
        self
    }

    /// Reads exactly this.
    ///
    /// # Panics
    /// When something else came, or an end.
    #[track_caller]
    pub fn hears(&self, text: &str) -> &Self {
        match self.client.ask(Command::Read { connection: self.number, bytes: text.len() }) {
            Reply::Read { text: heard, end, .. } => assert_eq!((heard.as_str(), end), (text, None)),
            other => panic!("not an answer to read: {other:?}"),
        }
        self
    }

    /// Sends FIN.
    #[track_caller]
    pub fn finishes(&self) -> &Self {
        self.client.ask(Command::Finish { connection: self.number });
        self
    }

    /// Sends RST.
    #[track_caller]
    pub fn resets(&self) {
        self.client.ask(Command::Close { connection: self.number, reset: true });
    }

    /// How it ends within `limit`, and after how long; reads and drops what comes.
    #[track_caller]
    pub fn end_within(&self, limit: Duration) -> Option<(End, Duration)> {
        let limit_ms = u64::try_from(limit.as_millis()).expect("a limit of a story");
        match self.client.ask(Command::AwaitEnd { connection: self.number, limit_ms }) {
            Reply::Ended { end, after_ms, .. } => end.map(|end| (end, Duration::from_millis(after_ms))),
            other => panic!("not an answer to await end: {other:?}"),
        }
    }

    /// # Panics
    /// When it does not end with an error within `limit`.
    #[track_caller]
    pub fn is_cut_within(&self, limit: Duration) {
        let end = self.end_within(limit);
        assert!(matches!(end, Some((End::Failed(libc::ECONNRESET), _))), "the connection was not cut but {end:?}");
    }

    /// Sends a line that must come back: the connection works both ways.
    #[track_caller]
    pub fn still_works(&self) -> &Self {
        let line = format!("{:016x}\n", fastrand::u64(..));
        self.says(&line).hears(&line)
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.client.close(self.number);
        }
    }
}
