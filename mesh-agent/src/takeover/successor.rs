//! The side of the agent that starts: finds out whether another is in charge, asks it, takes what it hands over.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::UnixStream,
    time::{Instant, sleep},
};

use crate::enrol::{Handed, HandedListener, HandedPod};

use super::{
    ANSWER_TIMEOUT, About, FROZEN_TIMEOUT, Lock, LockError, PROTOCOL, Predecessors, SelfTestError, SocketName,
    channel::{Channel, ChannelError},
    message::{Answer, Listeners, Question, Welcome},
};

/// An agent that is about to end, or that has another successor just now, is asked again for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause between.
const AGAIN: Duration = Duration::from_millis(20);

/// Why the agent that runs stays in charge.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// It has another run directory's lock, or the lock cannot be read.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The conversation broke off.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The agent that runs does not hand over.
    #[error("the agent that runs does not hand over: {0}")]
    Refused(String),
    /// It cannot be asked.
    #[error("{} is locked by an agent that cannot be asked at {}: {source}; stop that one first", run_dir.display(), socket.display())]
    Deaf {
        /// The run directory.
        run_dir: PathBuf,
        /// Where it should listen.
        socket: PathBuf,
        /// Why it does not answer.
        source: io::Error,
    },
    /// This agent would be worse off than the one that runs.
    #[error("the self-test failed: {0}")]
    SelfTest(#[from] SelfTestError),
}

/// How an agent begins.
#[derive(Debug)]
pub enum Beginning {
    /// Nobody else is in charge of the run directory.
    Alone(Lock),
    /// Another is, and is ready to be followed.
    Beside(Box<Candidate>),
}

/// An agent that wants to take over, and what the one in charge has told it.
#[derive(Debug)]
pub struct Candidate {
    /// None: the agent before has let go, and the conversation goes on as with one that drains.
    channel: Option<Channel>,
    run_dir: PathBuf,
    welcome: Welcome,
    sockets: Vec<(SocketName, OwnedFd)>,
    view: Option<Vec<u8>>,
}

/// What was handed over.
#[derive(Debug)]
pub struct Taken {
    /// Of the pods.
    pub handed: Handed,
    /// The agent before has ended meanwhile: nobody has to be asked any more.
    pub lock: Option<Lock>,
}

/// Finds out who is in charge.
///
/// # Errors
/// See [`TakeOverError`].
pub async fn begin(run_dir: &Path, about: &About) -> Result<Beginning, TakeOverError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match Lock::take(run_dir) {
            Ok(lock) => return Ok(Beginning::Alone(lock)),
            Err(LockError::Held(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let not_now = match ask(run_dir, about).await {
            Ok(candidate) => return Ok(Beginning::Beside(Box::new(candidate))),
            Err(Refusal::Final(error)) => return Err(error),
            Err(Refusal::NotNow(error)) => error,
        };
        if Instant::now() >= until {
            return Err(not_now);
        }
        sleep(AGAIN).await;
    }
}

enum Refusal {
    Final(TakeOverError),
    NotNow(TakeOverError),
}

async fn ask(run_dir: &Path, about: &About) -> Result<Candidate, Refusal> {
    let socket = super::socket(run_dir);
    let stream = UnixStream::connect(&socket).await;
    // It may not listen yet, or have ended just now.
    let deaf = |source| Refusal::NotNow(TakeOverError::Deaf { run_dir: run_dir.to_owned(), socket, source });
    let broken = |error| match error {
        ChannelError::Ended => Refusal::NotNow(ChannelError::Ended.into()),
        error => Refusal::Final(error.into()),
    };
    let mut channel = Channel::new(stream.map_err(deaf)?).map_err(broken)?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let hello = Question::Hello { protocol: PROTOCOL, version, about: about.clone() };
    channel.send(&hello, &[]).await.map_err(broken)?;
    let (answer, mut descriptors) = channel.receive_within(ANSWER_TIMEOUT).await.map_err(broken)?;
    let welcome = match answer {
        Answer::Welcome(welcome) => welcome,
        Answer::Refused { reason, is_final: true } => return Err(Refusal::Final(TakeOverError::Refused(reason))),
        Answer::Refused { reason, is_final: false } => return Err(Refusal::NotNow(TakeOverError::Refused(reason))),
        other => return Err(broken(ChannelError::Unknown(format!("{other:?}")))),
    };
    let view = descriptors.pop_if(|_| welcome.has_view).map(read).transpose();
    let view = view.map_err(|error| broken(ChannelError::Socket(error)))?;
    let sockets = welcome.sockets.iter().copied().zip(descriptors).collect();
    Ok(Candidate { channel: Some(channel), run_dir: run_dir.to_owned(), welcome, sockets, view })
}

fn read(descriptor: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(descriptor).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Candidate {
    /// The version of the agent that runs.
    pub fn version(&self) -> &str {
        &self.welcome.version
    }

    /// Whether control answers the agent that runs.
    pub fn is_connected(&self) -> bool {
        self.welcome.is_connected
    }

    /// Identities of which the agent that runs has a valid certificate.
    pub fn certified(&self) -> &[String] {
        &self.welcome.certified
    }

    /// The View that is in force, in the form of the cache.
    pub fn view(&self) -> Option<&[u8]> {
        self.view.as_deref()
    }

    /// Cookie of the network namespace that the agent's own listeners are in.
    pub fn namespace(&self) -> u64 {
        self.welcome.namespace
    }

    /// The listening sockets of the agent itself, once.
    pub fn take_sockets(&mut self) -> Vec<(SocketName, OwnedFd)> {
        std::mem::take(&mut self.sockets)
    }

    /// Says that this agent is ready, and takes the pods. If the agent before has ended, those of its sockets that came.
    ///
    /// # Errors
    /// It does not answer, and has not ended.
    pub async fn take(&mut self, shares_pages: bool) -> Result<Taken, TakeOverError> {
        let mut handed = Handed::default();
        let received = self.receive_pods(shares_pages, &mut handed).await;
        let lock = self.unless_ended(received).await?;
        Ok(Taken { handed, lock })
    }

    async fn receive_pods(&mut self, shares_pages: bool, handed: &mut Handed) -> Result<(), ChannelError> {
        let channel = self.channel()?;
        channel.send(&Question::Ready { shares_pages }, &[]).await?;
        loop {
            match channel.receive_within(FROZEN_TIMEOUT).await? {
                (Answer::Listeners(part), descriptors) => {
                    let is_last = part.is_last;
                    add(handed, part, descriptors);
                    if is_last {
                        return Ok(());
                    }
                }
                (Answer::Refused { reason, .. }, _) => return Err(ChannelError::Unknown(reason)),
                (other, _) => return Err(ChannelError::Unknown(format!("{other:?}"))),
            }
        }
    }

    /// Says that this agent's programs are on the hooks; returns when it is in charge. The agent before drains from then on.
    ///
    /// # Errors
    /// The agent before does not let go, and has not ended.
    pub async fn done(&mut self, predecessors: &Predecessors) -> Result<Lock, TakeOverError> {
        let mut others = Vec::new();
        let let_go = self.ask_to_let_go(&mut others).await;
        if let Some(lock) = self.unless_ended(let_go).await? {
            return Ok(lock);
        }
        let lock = Lock::wait(&self.run_dir, ANSWER_TIMEOUT).await?;
        predecessors.drain(self.channel.take(), others).await;
        Ok(lock)
    }

    fn channel(&mut self) -> Result<&mut Channel, ChannelError> {
        self.channel.as_mut().ok_or(ChannelError::Ended)
    }

    async fn ask_to_let_go(&mut self, others: &mut Vec<OwnedFd>) -> Result<(), ChannelError> {
        let channel = self.channel()?;
        channel.send(&Question::Done, &[]).await?;
        match channel.receive_within(FROZEN_TIMEOUT).await? {
            (Answer::Yours, descriptors) => {
                *others = descriptors;
                Ok(())
            }
            (other, _) => Err(ChannelError::Unknown(format!("{other:?}"))),
        }
    }

    /// When the agent before has ended, this one is in charge as soon as the lock is free.
    async fn unless_ended(&self, said: Result<(), ChannelError>) -> Result<Option<Lock>, TakeOverError> {
        match said {
            Ok(()) => Ok(None),
            Err(ChannelError::Ended) => {
                let lock = Lock::wait(&self.run_dir, ANSWER_TIMEOUT).await?;
                tracing::warn!("the agent before has ended without a word: this one goes on alone");
                Ok(Some(lock))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the agent that runs why it stays in charge.
    pub async fn fail(&mut self, reason: String) {
        // If it cannot be told, it hears the end of the conversation.
        if let Some(channel) = &mut self.channel {
            let _ = channel.send(&Question::Failed { reason }, &[]).await;
        }
    }
}

fn add(handed: &mut Handed, part: Listeners, descriptors: Vec<OwnedFd>) {
    let mut pods: HashMap<Arc<str>, HandedPod> = std::mem::take(&mut handed.pods);
    for row in part.pods {
        let pod = pods.entry(row.uid.into()).or_default();
        (pod.older, pod.others) = (Some(row.older), row.others);
    }
    for (row, listener) in part.listeners.into_iter().zip(descriptors) {
        let pod = pods.entry(row.uid.into()).or_default();
        pod.listeners.push(HandedListener { address: row.address, worker: row.worker, listener });
    }
    handed.pods = pods;
}
