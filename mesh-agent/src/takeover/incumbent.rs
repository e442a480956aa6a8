//! The side of the agent in charge: answers a successor, hands over, or takes back.

use std::{
    fs::File,
    io::{self, Seek, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::fs::MemfdFlags;
use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
    time::timeout,
};

use crate::{
    cache::{self, Owner, SharedResources},
    certificates::SharedWallet,
    control::SharedControlStatus,
    enrol::{Enrolment, Handed, HandedPod, SharedPods},
    kernel::{Kernel, KernelError},
    path::{WorkerError, WorkerHandle},
    view::SharedView,
};

use super::{
    ANSWER_TIMEOUT, About, FROZEN_TIMEOUT, PROTOCOL, Predecessors, SocketName,
    channel::{Channel, ChannelError, DESCRIPTORS},
    message::{Answer, ListenerRow, Listeners, PodRow, Question, Welcome},
};

/// A self-test and the way to it take no longer.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What the agent in charge has to hand over.
#[derive(Debug)]
pub struct Holdings {
    /// What a successor must have in common.
    pub about: About,
    /// Its own listening sockets.
    pub sockets: Vec<(SocketName, OwnedFd)>,
    /// Cookie of the network namespace that these are in.
    pub namespace: u64,
    /// The hooks.
    pub kernel: Arc<Kernel>,
    /// The pods.
    pub enrolment: Enrolment,
    /// The View, and what it was made of.
    pub view: SharedView,
    /// In force, as control sent it.
    pub resources: SharedResources,
    /// Whose these are.
    pub owner: Owner,
    /// Certificates.
    pub wallet: SharedWallet,
    /// Whether control answers.
    pub control: SharedControlStatus,
    /// True while nobody may write to the kernel's tables.
    pub frozen: watch::Sender<bool>,
}

/// Why a successor did not take over.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("it failed: {0}")]
    Failed(String),
    #[error("it was refused: {0}")]
    Refused(String),
    #[error("the pods cannot be handed over: {0}")]
    Pods(String),
    #[error("handing the View over: {0}")]
    View(#[source] io::Error),
    #[error("it took longer than {FROZEN_TIMEOUT:?}")]
    Slow,
}

impl From<WorkerError> for NotTaken {
    fn from(error: WorkerError) -> Self {
        Self::Pods(error.to_string())
    }
}

/// The agent in charge, as a successor meets it.
///
/// ```text
///            hello           ready            done
///  Serving --------> Asked --------> Frozen --------> Draining --> ended
///     ^                |                |
///     +----------------+----------------+   it fails, ends or is too slow: our programs are put back on the hooks
/// ```
///
/// Only from `Frozen` on has a successor written anything. In `Draining` everything that outlives this process is its.
#[derive(Debug)]
pub struct Incumbent {
    listener: UnixListener,
    holdings: Holdings,
}

/// The agent that is in charge now, as this one sees it: the one that drains.
#[derive(Debug)]
pub struct InCharge {
    channel: Channel,
    /// It listens for metrics, readiness and operators on the same sockets.
    pub shares_pages: bool,
}

impl Incumbent {
    /// Waits for successors at `listener`.
    pub fn new(listener: UnixListener, holdings: Holdings) -> Self {
        Self { listener, holdings }
    }

    /// Serves until one has taken over.
    pub async fn handed_over(&self) -> InCharge {
        loop {
            let Some(mut channel) = self.next().await else { continue };
            let talk = self.converse(&mut channel);
            let outcome = tokio::select! {
                outcome = talk => outcome,
                never = self.turn_others_away() => match never {},
            };
            match outcome {
                Ok(shares_pages) => return InCharge { channel, shares_pages },
                Err(error) => {
                    tracing::warn!(%error, "another agent did not take over: this one stays in charge");
                }
            }
        }
    }

    async fn next(&self) -> Option<Channel> {
        match self.listener.accept().await {
            Ok((stream, _)) => Channel::new(stream)
                .inspect_err(|error| tracing::warn!(%error, "a stranger at the take-over socket"))
                .ok(),
            Err(error) => {
                tracing::warn!(%error, "take-over socket");
                // Descriptors are used up: not again at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
                None
            }
        }
    }

    async fn turn_others_away(&self) -> std::convert::Infallible {
        loop {
            if let Some(mut channel) = self.next().await {
                let reason = "another agent is taking over just now".to_owned();
                let _ = channel.send(&Answer::Refused { reason, is_final: false }, &[]).await;
            }
        }
    }

    async fn converse(&self, channel: &mut Channel) -> Result<bool, NotTaken> {
        let (hello, _) = channel.receive_within(ANSWER_TIMEOUT).await?;
        let Question::Hello { protocol, version, about } = hello else { return Err(unexpected(&hello)) };
        if let Some(reason) = self.objection(protocol, &about) {
            channel.send(&Answer::Refused { reason: reason.clone(), is_final: true }, &[]).await?;
            return Err(NotTaken::Refused(reason));
        }
        tracing::info!(version, "another agent asks to take over");
        self.welcome(channel).await?;
        let (ready, _) = channel.receive_within(SELF_TEST_TIMEOUT).await?;
        let shares_pages = match ready {
            Question::Ready { shares_pages } => shares_pages,
            Question::Failed { reason } => return Err(NotTaken::Failed(reason)),
            other => return Err(unexpected(&other)),
        };
        self.holdings.frozen.send_replace(true);
        let (taken, is_taken) = oneshot::channel();
        let outcome = timeout(FROZEN_TIMEOUT, self.hand_over(channel, is_taken)).await.unwrap_or(Err(NotTaken::Slow));
        match outcome {
            Ok(()) => {
                // The registry ends and touches nothing on its way.
                taken.send(()).ok();
                Ok(shares_pages)
            }
            Err(error) => {
                self.take_back();
                drop(taken);
                self.holdings.frozen.send_replace(false);
                Err(error)
            }
        }
    }

    fn objection(&self, protocol: u32, about: &About) -> Option<String> {
        if protocol != PROTOCOL {
            return Some(format!("it speaks take-over {PROTOCOL} and not {protocol}: stop it first"));
        }
        let difference = self.holdings.about.difference(about)?;
        Some(format!("it was started with another {difference}: use the same one, or stop it first"))
    }

    async fn welcome(&self, channel: &mut Channel) -> Result<(), NotTaken> {
        let Holdings { sockets, namespace, view, resources, owner, wallet, control, .. } = &self.holdings;
        let image = match view.load().is_some() {
            true => Some(in_memory(&cache::image_of(resources, owner)).map_err(NotTaken::View)?),
            false => None,
        };
        let now = SystemTime::now();
        let held = wallet.load();
        let valid = held.certificates.iter().filter(|(_, held)| held.not_before <= now && now < held.not_after);
        let welcome = Welcome {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            namespace: *namespace,
            sockets: sockets.iter().map(|(name, _)| *name).collect(),
            has_view: image.is_some(),
            is_connected: control.load().is_connected,
            certified: valid.map(|(identity, _)| identity.to_string()).collect(),
        };
        let descriptors: Vec<BorrowedFd<'_>> =
            sockets.iter().map(|(_, socket)| socket.as_fd()).chain(image.as_ref().map(AsFd::as_fd)).collect();
        Ok(channel.send(&Answer::Welcome(welcome), &descriptors).await?)
    }

    /// Until the successor's programs are on the hooks.
    async fn hand_over(&self, channel: &mut Channel, is_taken: oneshot::Receiver<()>) -> Result<(), NotTaken> {
        let handed = self.holdings.enrolment.hand_over(is_taken).await;
        let handed = handed.map_err(|error| NotTaken::Pods(error.to_string()))??;
        for (part, descriptors) in parts(&handed) {
            channel.send(&Answer::Listeners(part), &descriptors).await?;
        }
        match channel.receive().await?.0 {
            Question::Done => Ok(()),
            Question::Failed { reason } => Err(NotTaken::Failed(reason)),
            other => Err(unexpected(&other)),
        }
    }

    fn take_back(&self) {
        match self.holdings.kernel.reclaim() {
            Ok(()) => tracing::info!("our programs are on all hooks"),
            Err(error) => log_reclaim(&error),
        }
    }
}

fn log_reclaim(error: &KernelError) {
    tracing::error!(error = crate::control::causes(error), "not all hooks could be taken back: restart the agent");
}

fn unexpected(said: &Question) -> NotTaken {
    ChannelError::Unknown(format!("{said:?}")).into()
}

fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("mesh-view", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// In messages of at most as many descriptors as one can carry; at least one message.
fn parts(handed: &Handed) -> Vec<(Listeners, Vec<BorrowedFd<'_>>)> {
    let mut parts = vec![(Listeners::default(), Vec::new())];
    for (uid, HandedPod { listeners, older, others }) in &handed.pods {
        let row = PodRow { uid: uid.to_string(), older: older.clone().unwrap_or_default(), others: others.clone() };
        if let Some((part, _)) = parts.last_mut() {
            part.pods.push(row);
        }
        for listener in listeners {
            if parts.last().is_none_or(|(part, _)| part.listeners.len() >= DESCRIPTORS) {
                parts.push(Default::default());
            }
            if let Some((part, descriptors)) = parts.last_mut() {
                let row = ListenerRow { uid: uid.to_string(), address: listener.address, worker: listener.worker };
                part.listeners.push(row);
                descriptors.push(listener.listener.as_fd());
            }
        }
    }
    if let Some((part, _)) = parts.last_mut() {
        part.is_last = true;
    }
    parts
}

impl InCharge {
    /// Tells it that everything is its, agents that still drain included: nothing of it is touched from here any more.
    ///
    /// # Errors
    /// It has ended.
    pub async fn yours(&mut self, before: &Predecessors) -> Result<(), ChannelError> {
        before.hand_on(&mut self.channel).await
    }

    /// Cuts the connections of pods that it withdraws, until it ends.
    pub async fn follow(mut self, workers: Arc<[WorkerHandle]>, pods: SharedPods) {
        loop {
            let uid = match self.channel.receive().await {
                Ok((Question::Withdraw { uid }, _)) => uid,
                Ok((other, _)) => return tracing::warn!(error = %unexpected(&other), "agent in charge"),
                Err(error) => return tracing::debug!(%error, "agent in charge"),
            };
            let mut table = crate::enrol::PodTable::clone(&pods.load());
            table.forget(&uid);
            pods.store(Arc::new(table));
            let uid: Arc<str> = uid.into();
            for worker in &*workers {
                // One that has ended holds nothing of it.
                let _ = worker.withdraw(uid.clone()).await;
            }
            if self.channel.send(&Answer::Withdrawn, &[]).await.is_err() {
                return;
            }
        }
    }
}
