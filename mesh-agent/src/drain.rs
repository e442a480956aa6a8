//! Every task of the agent is spawned here, so that nothing outlives its shutdown: a group is told to drain, then to close,
//! and is waited for.

use std::sync::Arc;

use tokio::{sync::watch, task::AbortHandle};

/// How far a shutdown has come; only ever grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// All is well.
    Running,
    /// Nothing new; what runs may end in its own time.
    Draining,
    /// What still runs is cut.
    Closing,
}

/// A group of tasks and its phase. Clones are the same group.
#[derive(Debug, Clone)]
pub struct Drain(Arc<Group>);

#[derive(Debug)]
struct Group {
    phase: watch::Sender<Phase>,
    alive: watch::Sender<usize>,
}

/// Counts one task, also when it is dropped or panics.
struct Alive(Arc<Group>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.send_modify(|alive| *alive -= 1);
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(Group { phase: watch::Sender::new(Phase::Running), alive: watch::Sender::new(0) }))
    }
}

impl Drain {
    /// Spawns a task that stays on this thread.
    pub fn spawn_local(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let alive = self.enter();
        let counted = async move {
            task.await;
            drop(alive);
        };
        #[expect(clippy::disallowed_methods, reason = "the one place")]
        tokio::task::spawn_local(counted).abort_handle()
    }

    /// Spawns a task that any thread of the runtime may run.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let alive = self.enter();
        let counted = async move {
            task.await;
            drop(alive);
        };
        #[expect(clippy::disallowed_methods, reason = "the one place")]
        tokio::spawn(counted).abort_handle()
    }

    fn enter(&self) -> Alive {
        self.0.alive.send_modify(|alive| *alive += 1);
        Alive(self.0.clone())
    }

    /// Goes on to a phase; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.phase.send_if_modified(|current| {
            let is_later = phase > *current;
            *current = (*current).max(phase);
            is_later
        });
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Waits until it has come this far.
    pub async fn reached(&self, phase: Phase) {
        // The sender is in self: it cannot be gone.
        self.0.phase.subscribe().wait_for(|current| *current >= phase).await.ok();
    }

    /// Waits until no task is left.
    pub async fn joined(&self) {
        self.0.alive.subscribe().wait_for(|alive| *alive == 0).await.ok();
    }

    /// Tasks that run.
    pub fn alive(&self) -> usize {
        *self.0.alive.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::{Drain, Phase};

    #[tokio::test]
    async fn a_drained_group_is_joined_when_its_last_task_has_ended_however_it_ended() {
        let drain = Drain::default();
        let waiting = drain.clone();
        drain.spawn(async move { waiting.reached(Phase::Closing).await });
        let aborted = drain.spawn(std::future::pending());
        drain.advance(Phase::Closing);
        drain.advance(Phase::Draining);
        assert_eq!(drain.phase(), Phase::Closing);
        aborted.abort();
        drain.joined().await;
        assert_eq!(drain.alive(), 0);
    }
}
