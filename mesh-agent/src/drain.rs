//! Every task of the agent is spawned here, so that nothing outlives its shutdown: a group is told to drain, then to close,
//! and is waited for. A task that panics ends alone; it is counted and logged.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
};

use tokio::{sync::watch, task::AbortHandle};

/// Of all groups of the process.
static TASKS: AtomicUsize = AtomicUsize::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Tasks of all groups that run.
pub fn tasks() -> usize {
    TASKS.load(Relaxed)
}

/// Tasks of all groups that ended by a panic.
pub fn panics() -> u64 {
    PANICS.load(Relaxed)
}

/// A task panicked. What it held has been dropped.
#[derive(Debug, thiserror::Error)]
#[error("a task panicked")]
pub struct Panicked;

/// Runs a task to its end, or to its panic, which goes no further.
///
/// # Errors
/// It panicked.
pub async fn contain(task: impl Future<Output = ()>) -> Result<(), Panicked> {
    let mut task = pin!(task);
    let ended = std::future::poll_fn(|context| {
        // A future that has panicked is not asked again, and what it shared with others is guarded by cells and locks, which
        // are let go of as the panic passes.
        match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    });
    ended.await.map_err(|panic| {
        PANICS.fetch_add(1, Relaxed);
        tracing::error!(
            panic = words(&*panic),
            "a task panicked and has ended; the others go on. This is a bug: report it"
        );
        Panicked
    })
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words")
}

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
        TASKS.fetch_sub(1, Relaxed);
    }
}

/// Boxed by the caller: an `async` block would have room for the task as its argument, and again where it is awaited.
async fn counted(task: Pin<Box<impl Future<Output = ()> + ?Sized>>, alive: Alive) {
    // It has been told of.
    contain(task).await.ok();
    drop(alive);
}

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(Group { phase: watch::Sender::new(Phase::Running), alive: watch::Sender::new(0) }))
    }
}

impl Drain {
    /// Spawns a task that stays on this thread.
    pub fn spawn_local(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let counted = counted(Box::pin(task), self.enter());
        #[expect(clippy::disallowed_methods, reason = "the one place")]
        tokio::task::spawn_local(counted).abort_handle()
    }

    /// Spawns a task that any thread of the runtime may run.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let counted = counted(Box::pin(task), self.enter());
        #[expect(clippy::disallowed_methods, reason = "the one place")]
        tokio::spawn(counted).abort_handle()
    }

    fn enter(&self) -> Alive {
        TASKS.fetch_add(1, Relaxed);
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
    use super::{Drain, Phase, panics};

    #[tokio::test]
    async fn a_task_that_panics_ends_alone_and_is_counted() {
        let (drain, before) = (Drain::default(), panics());
        let (told, tells) = tokio::sync::oneshot::channel();
        drain.spawn(async { panic!("on purpose") });
        drain.spawn(async {
            tokio::task::yield_now().await;
            told.send(()).unwrap();
        });
        tells.await.expect("the other one goes on");
        drain.joined().await;
        assert!(panics() > before);
    }

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
