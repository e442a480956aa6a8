//! The constant load: one thread per way of calling, each call with what came of it. It goes on through every fault and
//! judges only what no fault excuses: an answer where policy denies, and a transfer that looks whole and is not.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    App,
    app::plain,
    client::Client,
    protocol::{Command, Dial, End, Reply},
    torture::stage::{DOWNLOAD, ECHO, SINK, SOURCE, Stage, UPLOAD},
};

/// Between two calls of one kind.
const PACE: Duration = Duration::from_millis(40);
/// A call that was not answered by then has failed.
pub const LIMIT: Duration = Duration::from_secs(5);
/// A kept connection outlives a link that is broken for 30 s.
const KEPT_LIMIT: Duration = Duration::from_secs(60);

/// A way of calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A new connection on one node, which policy lets go direct.
    NewDirect,
    /// A new connection between nodes.
    NewCarried,
    /// The same the other way.
    NewBack,
    /// A new connection to a service with an endpoint on either node.
    NewService,
    /// A line over a connection that stays, on one node.
    KeptDirect,
    /// A line over a connection that stays, between nodes.
    KeptCarried,
    /// A whole answer between nodes.
    Download,
    /// A whole request between nodes.
    Upload,
    /// A pod whose policy lets nobody in, across the link.
    DeniedCarried,
    /// The same on one node.
    DeniedDirect,
    /// From outside the mesh into a STRICT workload.
    Outsider,
    /// Between pods that are not in the mesh.
    Plain,
}

pub const KINDS: [Kind; 12] = [
    Kind::NewDirect,
    Kind::NewCarried,
    Kind::NewBack,
    Kind::NewService,
    Kind::KeptDirect,
    Kind::KeptCarried,
    Kind::Download,
    Kind::Upload,
    Kind::DeniedCarried,
    Kind::DeniedDirect,
    Kind::Outsider,
    Kind::Plain,
];

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// What was promised: the answer, or the refusal where policy denies.
    Kept,
    /// Refused, cut or not answered, with the reason.
    Failed(String),
    /// What no fault excuses.
    Broken(String),
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    pub kind: Kind,
    pub begun: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

/// The callers, at work until dropped.
pub struct Load {
    calls: Arc<Mutex<Vec<Call>>>,
    has_ended: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts all callers.
    pub fn start(stage: &Stage) -> Self {
        let mut load = Self { calls: Arc::default(), has_ended: Arc::default(), callers: Vec::new() };
        for kind in KINDS {
            let mut caller = Caller::new(kind, stage);
            let (calls, has_ended) = (Arc::clone(&load.calls), Arc::clone(&load.has_ended));
            load.callers.push(thread::spawn(move || {
                while !has_ended.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let outcome = caller.call();
                    let call = Call { kind, begun, ended: Instant::now(), outcome };
                    calls.lock().expect("no panic under this lock").push(call);
                    thread::sleep(PACE);
                }
            }));
        }
        load
    }

    /// The calls that were under way at `since` or began later.
    pub fn since(&self, since: Instant) -> Vec<Call> {
        let calls = self.calls.lock().expect("no panic under this lock");
        calls.iter().filter(|call| call.ended >= since).cloned().collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
        for caller in self.callers.drain(..) {
            let has_panicked = caller.join().is_err();
            assert!(!has_panicked || thread::panicking(), "a caller panicked");
        }
    }
}

/// Who calls whom, and how.
struct Caller {
    kind: Kind,
    client: Arc<Client>,
    to: SocketAddr,
    /// Of the kinds that keep one.
    connection: Option<u32>,
}

impl Caller {
    fn new(kind: Kind, stage: &Stage) -> Self {
        let from = |app: &App| Arc::clone(app.client());
        let [closed_near, closed_far] = &stage.closed;
        let (client, to) = match kind {
            Kind::NewDirect | Kind::KeptDirect => (from(&stage.web), stage.near.at(ECHO)),
            Kind::NewCarried | Kind::KeptCarried => (from(&stage.web), stage.far.at(ECHO)),
            Kind::NewBack => (from(&stage.far), stage.near.at(ECHO)),
            Kind::NewService => (from(&stage.web), stage.service),
            Kind::Download => (from(&stage.web), stage.far.at(SOURCE)),
            Kind::Upload => (from(&stage.web), stage.far.at(SINK)),
            Kind::DeniedCarried => (from(&stage.web), closed_far.at(ECHO)),
            Kind::DeniedDirect => (from(&stage.web), closed_near.at(ECHO)),
            Kind::Outsider => (from(&stage.plain[0]), stage.near.at(ECHO)),
            Kind::Plain => (from(&stage.plain[0]), stage.plain[1].at(ECHO)),
        };
        Self { kind, client, to, connection: None }
    }

    fn call(&mut self) -> Outcome {
        match self.kind {
            Kind::KeptDirect | Kind::KeptCarried => self.speak(),
            Kind::Download => self.download(),
            Kind::Upload => self.upload(),
            Kind::DeniedCarried | Kind::DeniedDirect | Kind::Outsider => match self.dial() {
                Outcome::Kept => Outcome::Broken(format!("{} answered", self.to)),
                _ => Outcome::Kept,
            },
            _ => self.dial(),
        }
    }

    fn dial(&self) -> Outcome {
        let dialled = self.client.dial(Dial { send: "ping\n".to_owned(), limit_ms: millis(LIMIT), ..plain(self.to) });
        match &dialled.report().failure {
            None if dialled.was_answered() => Outcome::Kept,
            None => Outcome::Broken(format!("{} answered {:?}", self.to, dialled.report().received)),
            Some(failure) => Outcome::Failed(format!("{:?}: {}", failure.step, failure.text)),
        }
    }

    /// A line there and back over the connection that stays; a new one when it has gone.
    fn speak(&mut self) -> Outcome {
        let connection = match self.connection.map_or_else(|| self.open(KEPT_LIMIT), Ok) {
            Ok(connection) => connection,
            Err(reason) => return Outcome::Failed(reason),
        };
        let line = format!("{:016x}\n", fastrand::u64(..));
        let write = Command::Write { connection, text: line.clone(), times: 1 };
        let read = Command::Read { connection, bytes: line.len() };
        let heard = self.client.tries(write).and_then(|_| self.client.tries(read));
        let outcome = match heard {
            Ok(Reply::Read { text, end: None, .. }) if text == line => Outcome::Kept,
            Ok(Reply::Read { text, end: None, .. }) => Outcome::Broken(format!("{text:?} came back for {line:?}")),
            Ok(Reply::Read { end: Some(End::Finished), .. }) => {
                Outcome::Broken("a cut connection ended as if in order".to_owned())
            }
            other => Outcome::Failed(format!("{other:?}")),
        };
        self.connection = Some(connection).filter(|_| outcome == Outcome::Kept);
        if self.connection.is_none() {
            self.close(connection);
        }
        outcome
    }

    fn open(&self, limit: Duration) -> Result<u32, String> {
        let dial = Dial { limit_ms: millis(limit), ..plain(self.to) };
        match self.client.tries(Command::Open(dial))? {
            Reply::Opened { connection: 0, report } => Err(format!("{:?}", report.failure)),
            Reply::Opened { connection, .. } => Ok(connection),
            other => panic!("not an answer to open: {other:?}"),
        }
    }

    fn close(&self, connection: u32) {
        // One that has gone already is as good.
        let _ = self.client.tries(Command::Close { connection, reset: false });
    }

    fn download(&self) -> Outcome {
        let connection = match self.open(LIMIT) {
            Ok(connection) => connection,
            Err(reason) => return Outcome::Failed(reason),
        };
        let ended = self.client.tries(Command::AwaitEnd { connection, limit_ms: millis(KEPT_LIMIT) });
        self.close(connection);
        match ended {
            Ok(Reply::Ended { end: Some(End::Finished), bytes: DOWNLOAD, .. }) => Outcome::Kept,
            Ok(Reply::Ended { end: Some(End::Finished), bytes, .. }) => {
                Outcome::Broken(format!("a download of {bytes} of {DOWNLOAD} bytes ended as if it were whole"))
            }
            other => Outcome::Failed(format!("{other:?}")),
        }
    }

    fn upload(&self) -> Outcome {
        match self.client.tries(Command::Transfer { to: self.to, bytes: UPLOAD }) {
            Ok(Reply::Transfer { is_intact: true, .. }) => Outcome::Kept,
            Ok(other) => Outcome::Broken(format!("an upload ended in order and is not what was sent: {other:?}")),
            Err(reason) => Outcome::Failed(reason),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a limit of a call")
}
