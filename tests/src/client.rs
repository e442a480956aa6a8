//! The story's side of a test application: sends a command, waits for its answer.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{ChildStdin, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use crate::{
    app::plain,
    conversation::Conversation,
    dial::Dialled,
    process::{Place, Process, append, binary},
    protocol::{Answer, Command, Dial, Reply, Request},
};

type Waiting = Arc<Mutex<HashMap<u64, mpsc::SyncSender<Result<Reply, String>>>>>;

/// No command of a story takes longer: the longest makes 60,000 connections.
const LONGEST: Duration = Duration::from_secs(180);

/// A running `mesh-app`.
pub struct Client {
    process: Process,
    input: Mutex<ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
}

impl Client {
    /// Starts the application in `place`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(place: &Place, log: &Path) -> Arc<Self> {
        let mut command = place.command(binary("mesh-app"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(append(log));
        let mut process = Process::spawn(command, log);
        let input = process.child().stdin.take().expect("a pipe");
        let output = process.child().stdout.take().expect("a pipe");
        let waiting = Waiting::default();
        let shared = Arc::clone(&waiting);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let answer: Answer = serde_json::from_str(&line).expect("the application speaks the protocol");
                let waiting = shared.lock().expect("no panic under this lock").remove(&answer.id);
                if let Some(waiting) = waiting {
                    // Who no longer waits has failed already.
                    let _ = waiting.send(answer.result);
                }
            }
            shared.lock().expect("no panic under this lock").clear();
        });
        Arc::new(Self { process, input: Mutex::new(input), waiting, next: AtomicU64::new(0) })
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Begins a command; the answer comes on the channel.
    fn begin(&self, command: Command) -> mpsc::Receiver<Result<Reply, String>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::sync_channel(1);
        self.waiting.lock().expect("no panic under this lock").insert(id, sender);
        let mut line = serde_json::to_vec(&Request { id, command }).expect("a request is JSON");
        line.push(b'\n');
        self.input.lock().expect("no panic under this lock").write_all(&line).expect("the application runs");
        receiver
    }

    /// Connects in any way.
    #[track_caller]
    pub fn dial(&self, dial: Dial) -> Dialled {
        let (to, sent) = (dial.to, dial.send.clone());
        match self.ask(Command::Dial(dial)) {
            Reply::Dialled(report) => Dialled { to, sent, report },
            other => panic!("not an answer to dial: {other:?}"),
        }
    }

    /// Opens a connection that the story goes on to use.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn opens(self: &Arc<Self>, to: SocketAddr) -> Conversation {
        match self.ask(Command::Open(plain(to))) {
            Reply::Opened { connection: 0, report } => panic!("{to} cannot be reached: {report:?}"),
            Reply::Opened { connection, report } => Conversation::new(Arc::clone(self), connection, report),
            other => panic!("not an answer to open: {other:?}"),
        }
    }

    /// Closes a kept connection without waiting; one that has gone already is as good.
    pub(crate) fn close(&self, connection: u32) {
        drop(self.begin(Command::Close { connection, reset: false }));
    }

    /// Runs a command that the application may not be able to carry out.
    ///
    /// # Errors
    /// As the application says.
    ///
    /// # Panics
    /// When it has ended.
    pub fn tries(&self, command: Command) -> Result<Reply, String> {
        self.begin(command).recv_timeout(LONGEST).expect("the application runs")
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When the application could not try, or has ended.
    #[track_caller]
    pub fn ask(&self, command: Command) -> Reply {
        let shown = format!("{command:?}");
        match self.begin(command).recv_timeout(LONGEST) {
            Ok(Ok(reply)) => reply,
            Ok(Err(reason)) => panic!("{shown}: {reason}"),
            Err(error) => panic!("{shown}: the application ended or hangs ({error}):\n{}", self.process.log()),
        }
    }
}
