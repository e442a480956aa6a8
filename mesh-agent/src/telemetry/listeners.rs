//! What the agent's listeners refused, by listener and reason.

use std::sync::Arc;

pub use mesh_listen::{Reason, Refusals};

/// One for each kind of listener.
#[derive(Debug)]
#[expect(missing_docs, reason = "by the port that each has")]
pub struct Listeners {
    pub outbound: Arc<Refusals>,
    pub plaintext: Arc<Refusals>,
    pub hbone: Arc<Refusals>,
    /// Servers that this node's pods have dialled.
    pub dialled: Arc<Refusals>,
    pub operators: Arc<Refusals>,
    pub metrics: Arc<Refusals>,
    pub ready: Arc<Refusals>,
    pub admin: Arc<Refusals>,
}

impl Default for Listeners {
    fn default() -> Self {
        let of = |listener| Arc::new(Refusals::of(listener));
        Self {
            outbound: of("15001"),
            plaintext: of("15006"),
            hbone: of("15008"),
            dialled: of("dialled"),
            operators: of("15000"),
            metrics: of("15020"),
            ready: of("15021"),
            admin: of("admin"),
        }
    }
}

impl Listeners {
    /// All of them.
    pub fn all(&self) -> [&Refusals; 8] {
        let Self { outbound, plaintext, hbone, dialled, operators, metrics, ready, admin } = self;
        [outbound, plaintext, hbone, dialled, operators, metrics, ready, admin].map(|refusals| &**refusals)
    }
}
