//! What subscribers are told: the compiled resources with a version each, and what changed from one state to the next.
//! Holds the latest state only; every subscriber's `Session` knows how far that one has come.

use std::sync::Arc;

use tokio::sync::watch;

use crate::compile::Resources;

pub mod session;
pub mod snapshot;
#[cfg(test)]
mod tests;

pub use snapshot::Snapshot;

/// Where the latest state is put and watched.
#[derive(Debug)]
pub struct Publisher {
    sender: watch::Sender<Arc<Snapshot>>,
}

impl Publisher {
    /// A publisher that has published nothing: generation 0.
    pub fn new() -> Publisher {
        Publisher { sender: watch::Sender::new(Arc::new(Snapshot::default())) }
    }

    /// Publishes a state. O(resources) to encode, and what is equal keeps its version. Answers the generation, which
    /// stays as it is when nothing differs.
    pub fn publish(&self, resources: &Resources) -> u64 {
        let next = self.sender.borrow().next(resources);
        if let Some(next) = next {
            self.sender.send_replace(Arc::new(next));
        }
        self.sender.borrow().generation
    }

    /// The latest state, and how to wait for the next.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.sender.subscribe()
    }
}
