//! The agent's side of the control protocol: one TLS connection, one delta xDS stream on it, the certificate service
//! beside it. Hands resources to `view::Store`, publishes Views, answers on-demand questions, and keeps trying for as
//! long as control is away: the last View stays in force. Never touches a workload's connection.

mod backoff;
mod client;
mod dial;
mod exchange;
mod held;
mod report;
#[cfg(test)]
mod restore_tests;
mod status;
mod subscription;
#[cfg(test)]
mod tests;

pub use backoff::Backoff;
pub use client::{Client, Published};
pub use dial::{Bearer, ControlAddress, DialError, Line, causes};
#[cfg(any(test, fuzzing))]
pub(crate) use exchange::State;
pub use report::TrustReporter;
pub use status::{ControlStatus, SharedControlStatus, TypeStatus};
pub(crate) use subscription::is_alias;
