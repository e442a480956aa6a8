//! What agent and control daemon have in common at their own listeners: how many may come, how long they may take, what
//! HTTP/2 frames they may spend, and how a refusal is counted and logged. Knows nothing of what is served. The limits of
//! these listeners are in [`limits`]; those of HBONE are the agent's (`hbone`), which uses [`Meter`] with its own.

mod gate;
pub mod limits;
mod meter;
mod metered;
mod pages;
mod refusals;
mod scanner;

pub use gate::{Crowd, Gate, Place};
pub use meter::{Budget, Fault, Meter};
pub use metered::Metered;
pub use pages::pages;
pub use refusals::{Reason, Refusals};
