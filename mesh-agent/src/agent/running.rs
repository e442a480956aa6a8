//! What a running agent consists of, and in which groups its tasks end.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{
    admin::{Ends, Node},
    cache::Ending,
    drain::{self, Drain, Phase},
    takeover::{Incumbent, Lock, Predecessors},
};

use super::kubernetes::OnKubernetes;

/// An agent that is in charge.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) node: Arc<Node>,
    pub(super) incumbent: Incumbent,
    pub(super) lock: Lock,
    pub(super) predecessors: Predecessors,
    pub(super) on_kubernetes: Option<OnKubernetes>,
}

/// Tasks by when they end.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// With the agent.
    pub(super) drain: Drain,
    /// When another agent takes over: those that write what outlives the process.
    pub(super) owned: Drain,
    /// The agent's own listeners.
    pub(super) ends: Ends,
    /// Told when a part that runs as long as the agent has panicked.
    pub(super) broken: Arc<Notify>,
}

impl Groups {
    /// Runs a task until its group closes: each of these runs for ever. One that panics takes the agent with it, in order: half
    /// an agent would go on by what it knew last, and nobody would know.
    pub(super) fn spawn(&self, group: &Drain, task: impl Future<Output = ()> + Send + 'static) {
        let (closing, broken) = (group.clone(), self.broken.clone());
        group.spawn(async move {
            tokio::select! {
                ended = drain::contain(task) => if ended.is_err() { broken.notify_one() },
                () = closing.reached(Phase::Closing) => {}
            }
        });
    }

    /// How the saver ends: with the agent it writes, when another has taken over it must not.
    pub(super) fn ending(&self) -> impl Future<Output = Ending> + Send + use<> {
        let (with_agent, taken_over) = (self.drain.clone(), self.owned.clone());
        async move {
            tokio::select! {
                biased;
                () = with_agent.reached(Phase::Closing) => Ending::Write,
                () = taken_over.reached(Phase::Closing) => Ending::Leave,
            }
        }
    }

    /// All but the drain, which says when.
    pub(super) fn close(&self) {
        for group in [&self.owned, &self.ends.admin, &self.ends.pages] {
            group.advance(Phase::Closing);
        }
    }
}
