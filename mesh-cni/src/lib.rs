//! The chained CNI plug-in: the runtime calls it last for every pod whose network it sets up, and it answers when the node's
//! agent steers the pod, or does not want it. Decides one thing itself: without an agent only pods of the namespaces in
//! its configuration start. Never touches a namespace, a socket of a pod or the kernel's maps.
//!
//! Source: CNI specification 1.1.0, sections 2 (execution protocol) and 5 (result types); spec 1.0 and older are parts of it.

mod agent;
mod call;
mod configuration;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod plugin;
mod result;

pub use call::{Call, PodName, Verb};
pub use configuration::{Configuration, Version};
pub use failure::Failure;
pub use plugin::{Refusal, run};
pub use result::addresses;
