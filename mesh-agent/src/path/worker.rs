//! One thread of the data path: a single-threaded runtime whose connections never leave it, spoken to by messages. The
//! handle is what enrolment, admin and shutdown hold.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    accept::{Accepted, accept},
    context::Context,
    failure::Cut,
    inbound,
    live::ConnectionSnapshot,
    local::{Local, PodState},
    outbound, plaintext,
};
use crate::{
    drain::{Drain, Phase},
    enrol::Pod,
    kernel::Listener,
    net::{self, Leg},
    telemetry::{ConnectionRecord, Reason, Refusals},
};

/// A worker that says nothing for longer gets no connections, see `mesh_common::verdict`.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Messages that may wait.
const MAILBOX: usize = 64;

/// Why a worker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread or its runtime could not be made.
    #[error("starting a worker: {0}")]
    Start(#[source] std::io::Error),
    /// The socket is no listener that the runtime can take.
    #[error("taking a listener: {0}")]
    Listener(#[source] std::io::Error),
    /// The thread has ended.
    #[error("the worker has ended")]
    Gone,
}

enum Command {
    Serve(Arc<Pod>, Listener, OwnedFd, oneshot::Sender<std::io::Result<()>>),
    Share(oneshot::Sender<std::io::Result<Vec<SharedListener>>>),
    Withdraw(Arc<str>, oneshot::Sender<()>),
    Connections(oneshot::Sender<Vec<ConnectionSnapshot>>),
    Refused(oneshot::Sender<Vec<ConnectionRecord>>),
    Drain(Duration, oneshot::Sender<()>),
}

/// A listener that a worker accepts on, under a descriptor of its own.
#[derive(Debug)]
pub struct SharedListener {
    /// Of the pod.
    pub uid: Arc<str>,
    /// Where it listens; the port says of what kind it is.
    pub address: SocketAddr,
    /// The same socket: its queue outlives the worker.
    pub listener: OwnedFd,
}

/// Starts workers.
#[derive(Debug)]
pub struct Worker;

/// A running worker. Dropped, the worker drops its connections (they are reset) and ends.
#[derive(Debug)]
pub struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Serve(..) => "Serve",
            Self::Share(_) => "Share",
            Self::Withdraw(..) => "Withdraw",
            Self::Connections(_) => "Connections",
            Self::Refused(_) => "Refused",
            Self::Drain(..) => "Drain",
        })
    }
}

impl Worker {
    /// Starts worker number `index`.
    ///
    /// # Errors
    /// No thread, or no runtime.
    pub fn start(index: u32, context: Arc<Context>) -> Result<WorkerHandle, WorkerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Start)?;
        let (commands, mailbox) = mpsc::channel(MAILBOX);
        let run = move || {
            // A task like the others: what the set itself waits for is polled whenever any of its tasks is.
            let (running, ended) = oneshot::channel::<()>();
            let main = async move {
                run(Local::new(index, context), mailbox).await;
                drop(running);
            };
            LocalSet::new().block_on(&runtime, async {
                Drain::default().spawn_local(main);
                ended.await.ok();
            });
        };
        let thread = std::thread::Builder::new().name(format!("path-{index}")).spawn(run);
        Ok(WorkerHandle { commands, thread: Some(thread.map_err(WorkerError::Start)?) })
    }
}

impl WorkerHandle {
    /// Takes a listener of a pod and accepts on it from now on.
    ///
    /// # Errors
    /// The descriptor is no listening socket, or the worker has ended.
    pub async fn serve(&self, pod: Arc<Pod>, kind: Listener, listener: OwnedFd) -> Result<(), WorkerError> {
        self.ask(|answer| Command::Serve(pod, kind, listener, answer)).await?.map_err(WorkerError::Listener)
    }

    /// All listeners that it accepts on, for a successor; it goes on accepting.
    ///
    /// # Errors
    /// Descriptors are used up, or the worker has ended.
    pub async fn share(&self) -> Result<Vec<SharedListener>, WorkerError> {
        self.ask(Command::Share).await?.map_err(WorkerError::Listener)
    }

    /// Ends all that is done for a pod: GOAWAY, RST, listeners. Answers when every socket of it is closed.
    ///
    /// # Errors
    /// The worker has ended.
    pub async fn withdraw(&self, uid: Arc<str>) -> Result<(), WorkerError> {
        self.ask(|answer| Command::Withdraw(uid, answer)).await
    }

    /// Whether its thread still takes what it is asked.
    pub fn is_alive(&self) -> bool {
        !self.commands.is_closed()
    }

    /// The connections of now.
    ///
    /// # Errors
    /// The worker has ended.
    pub async fn connections(&self) -> Result<Vec<ConnectionSnapshot>, WorkerError> {
        self.ask(Command::Connections).await
    }

    /// Those that it refused in the last minutes, oldest first.
    ///
    /// # Errors
    /// The worker has ended.
    pub async fn refused(&self) -> Result<Vec<ConnectionRecord>, WorkerError> {
        self.ask(Command::Refused).await
    }

    /// Closes listeners, says GOAWAY, lets connections end until the deadline, cuts the rest, ends the worker.
    ///
    /// # Errors
    /// The worker has ended already.
    pub async fn drain(&self, deadline: Duration) -> Result<(), WorkerError> {
        self.ask(|answer| Command::Drain(deadline, answer)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, WorkerError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| WorkerError::Gone)?;
        answered.await.map_err(|_| WorkerError::Gone)
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        // The mailbox closes and the thread ends; a panic on it has been printed.
        let (closed, _) = mpsc::channel(1);
        self.commands = closed;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn run(worker: Rc<Local>, mut mailbox: mpsc::Receiver<Command>) {
    let tasks = Drain::default();
    let mut changes = worker.context.view_changes.clone();
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = None;
    loop {
        tokio::select! {
            command = mailbox.recv() => match command {
                None => return,
                Some(Command::Drain(deadline, answer)) if draining.is_none() => {
                    draining = Some((Box::pin(drain(worker.clone(), tasks.clone(), deadline)), answer));
                }
                // A pod that comes now would be served by nobody: who asks hears that the worker has ended.
                Some(Command::Serve(..) | Command::Share(_)) if draining.is_some() => (),
                Some(command) => obey(&worker, &tasks, command),
            },
            answer = ended(&mut draining) => {
                answer.send(()).ok();
                return;
            }
            changed = changes.changed() => match changed {
                Ok(()) => {
                    worker.changed();
                    // With the first View, not up to a second after it: until then the hooks take the worker for dead.
                    if draining.is_none() {
                        worker.beat();
                    }
                }
                // Nobody is left who could change anything: the agent is going down.
                Err(_) => return,
            },
            _ = beat.tick() => {
                worker.live.flush();
                worker.relieve();
                // A worker that drains accepts nothing: to the hooks, which only ask for that, it is gone.
                if draining.is_none() {
                    worker.beat();
                }
            }
        }
    }
}

/// The end of a drain, and who waits for it; without a drain, never.
async fn ended<F: Future<Output = ()> + Unpin>(draining: &mut Option<(F, oneshot::Sender<()>)>) -> oneshot::Sender<()> {
    let Some((drain, _)) = draining else { return std::future::pending().await };
    drain.await;
    match draining.take() {
        Some((_, answer)) => answer,
        None => std::future::pending().await,
    }
}

fn obey(worker: &Rc<Local>, tasks: &Drain, command: Command) {
    match command {
        Command::Serve(pod, kind, listener, answer) => {
            answer.send(serve(worker, pod, kind, listener)).ok();
        }
        Command::Share(answer) => {
            answer.send(share(worker)).ok();
        }
        Command::Withdraw(uid, answer) => {
            let pod = worker.pods.borrow_mut().remove(&uid);
            let worker = worker.clone();
            tasks.spawn_local(async move {
                if let Some(pod) = pod {
                    withdraw(&worker, &pod).await;
                }
                answer.send(()).ok();
            });
        }
        Command::Connections(answer) => {
            answer.send(worker.live.snapshots(worker.index)).ok();
        }
        Command::Refused(answer) => {
            answer.send(worker.refused.borrow().list()).ok();
        }
        Command::Drain(..) => (),
    }
}

fn serve(worker: &Rc<Local>, pod: Arc<Pod>, kind: Listener, listener: OwnedFd) -> std::io::Result<()> {
    let listener = TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    net::prepare(&listener, if kind == Listener::Hbone { Leg::Tunnel } else { Leg::App })?;
    let listener = Rc::new(tokio::net::TcpListener::from_std(listener)?);
    let state = worker.pods.borrow_mut().entry(pod.uid.clone()).or_insert_with(|| pod_state(worker, pod)).clone();
    state.listeners.borrow_mut().push(Rc::downgrade(&listener));
    let drain = state.drain.clone();
    let worker = worker.clone();
    drain.clone().spawn_local(async move {
        let shed = || {
            worker.context.telemetry.count_shed();
            refusals(&worker, kind).refuse(Reason::Descriptors, "whoever waits longest", "no descriptors are left");
        };
        let taken = |accepted: Accepted| {
            if drain.alive() >= worker.context.pod_tasks {
                return refusals(&worker, kind).refuse(
                    Reason::Crowded,
                    accepted.peer,
                    "too many connections of one pod",
                );
            }
            let (worker, pod) = (worker.clone(), state.clone());
            match kind {
                Listener::Outbound => drain.spawn_local(outbound::serve(worker, pod, accepted)),
                Listener::Plaintext => drain.spawn_local(plaintext::serve(worker, pod, accepted)),
                Listener::Hbone => drain.spawn_local(inbound::serve(worker, pod, accepted)),
            };
        };
        accept(&listener, &drain, shed, taken).await;
    });
    Ok(())
}

fn share(worker: &Local) -> std::io::Result<Vec<SharedListener>> {
    let mut shared = Vec::new();
    for pod in worker.pods.borrow().values() {
        for listener in pod.listeners.borrow().iter().filter_map(std::rc::Weak::upgrade) {
            let (uid, address) = (pod.pod.uid.clone(), listener.local_addr()?);
            shared.push(SharedListener { uid, address, listener: listener.as_fd().try_clone_to_owned()? });
        }
    }
    Ok(shared)
}

fn pod_state(worker: &Local, pod: Arc<Pod>) -> Rc<PodState> {
    let dialled = worker.context.telemetry.listeners.dialled.clone();
    Rc::new(PodState::new(pod, Drain::default(), dialled))
}

fn refusals(worker: &Local, kind: Listener) -> &Refusals {
    let listeners = &worker.context.telemetry.listeners;
    match kind {
        Listener::Outbound => &listeners.outbound,
        Listener::Plaintext => &listeners.plaintext,
        Listener::Hbone => &listeners.hbone,
    }
}

/// Cuts what the pod has an end in, and waits until nothing is left.
async fn withdraw(worker: &Local, pod: &PodState) {
    worker.live.cut(Some(pod.pod.id), &Cut::Withdrawn);
    pod.pool.retire_all();
    pod.drain.advance(Phase::Closing);
    pod.drain.joined().await;
    worker.forget_series(pod.pod.id);
    worker.context.telemetry.forget(pod.pod.id);
}

/// Nothing new; what runs may end until the deadline. The pods stay known, so that one may still be withdrawn meanwhile.
async fn drain(worker: Rc<Local>, tasks: Drain, deadline: Duration) {
    let pods: Vec<_> = worker.pods.borrow().values().cloned().collect();
    for pod in &pods {
        pod.drain.advance(Phase::Draining);
        pod.pool.retire_all();
    }
    let ended = async {
        for pod in &pods {
            pod.drain.joined().await;
        }
    };
    if timeout(deadline, ended).await.is_err() {
        worker.live.cut(None, &Cut::Draining);
        for pod in &pods {
            pod.drain.advance(Phase::Closing);
        }
        for pod in &pods {
            pod.drain.joined().await;
        }
    }
    tasks.joined().await;
}
