//! The registry's door: what the admin socket asks of it, one at a time.

use mesh_api::proto::admin::{EnrolRequest, Pod as PodMessage, PodEvent};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::path::WorkerError;

use super::{EnrolError, Handed};

/// Requests that wait; more make the caller wait.
const QUEUE: usize = 64;

/// One request and where its answer goes.
#[derive(Debug)]
pub(super) enum Request {
    Enrol(Box<EnrolRequest>, FailOpen, oneshot::Sender<Result<(), EnrolError>>),
    SetFailOpen(String, bool, oneshot::Sender<Result<(), EnrolError>>),
    Withdraw(String, oneshot::Sender<Result<(), EnrolError>>),
    List(oneshot::Sender<(Vec<PodMessage>, broadcast::Receiver<PodEvent>)>),
    HandOver(oneshot::Sender<Result<Handed, WorkerError>>, oneshot::Receiver<()>),
}

/// What becomes of a pod that asks to leave fail-closed in a mesh that does not allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailOpen {
    /// It is not enrolled: who asks can ask for something else.
    OrRefuse,
    /// It is enrolled and fails closed, until the mesh allows it: without enrolment all of it would be in the clear.
    WhereAllowed,
}

/// Asks the registry; cheap to clone.
#[derive(Debug, Clone)]
pub struct Enrolment(mpsc::Sender<Request>);

impl Enrolment {
    /// Both ends.
    pub(super) fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Enrols a pod; answers when steering is in force.
    ///
    /// # Errors
    /// See [`EnrolError`]: the caller's, but for [`EnrolError::Node`].
    pub async fn enrol(&self, request: EnrolRequest, fail_open: FailOpen) -> Result<(), EnrolError> {
        self.ask(|answer| Request::Enrol(Box::new(request), fail_open, answer)).await?
    }

    /// Whether an enrolled pod asks to leave fail-closed has changed; no error when it has not.
    ///
    /// # Errors
    /// It is not enrolled, or the record cannot be written.
    pub async fn set_fail_open(&self, uid: String, asks: bool) -> Result<(), EnrolError> {
        self.ask(|answer| Request::SetFailOpen(uid, asks, answer)).await?
    }

    /// Withdraws a pod; answers when all its sockets are closed and steering is off. No error when it is not enrolled.
    ///
    /// # Errors
    /// The kernel refuses; the pod is withdrawn as far as possible.
    pub async fn withdraw(&self, uid: String) -> Result<(), EnrolError> {
        self.ask(|answer| Request::Withdraw(uid, answer)).await?
    }

    /// The pods of now, and every change from then on.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn list(&self) -> Result<(Vec<PodMessage>, broadcast::Receiver<PodEvent>), EnrolError> {
        self.ask(Request::List).await
    }

    /// All that a successor needs of the pods. From then on nothing of them changes, until `taken` is told that they are the
    /// successor's (the registry ends) or is dropped (it goes on).
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn hand_over(&self, taken: oneshot::Receiver<()>) -> Result<Result<Handed, WorkerError>, EnrolError> {
        self.ask(|answer| Request::HandOver(answer, taken)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, EnrolError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(request(answer)).await.map_err(|_| EnrolError::Stopping)?;
        answered.await.map_err(|_| EnrolError::Stopping)
    }
}
