//! A connection's way through the agent, one file per stage:
//! `accept -> origin -> resolve -> authorize -> connect -> copy`. The three stories (`outbound`, `inbound`, `plaintext`) are
//! their only callers; `outcome` is what became of it, `failure` why it did not get there, `live` how it is judged again.

mod accept;
mod authorize;
mod balance;
mod connect;
mod context;
mod copy;
mod explain;
mod failure;
mod inbound;
mod live;
mod local;
pub mod origin;
mod outbound;
mod outcome;
mod plaintext;
mod resolve;
#[cfg(test)]
mod tests;
mod worker;

pub use authorize::{Decision, Permit, Source, Verdict, authorize, judge};
pub use connect::{ConnectError, Upstream};
pub use context::{Context, POD_MEMORY, POD_TASKS, Steering};
pub use copy::{CopyError, End};
pub use explain::{Explanation, Step, explain};
pub use failure::{Blame, Cut, Failure, Flag, Stage};
#[cfg(any(test, fuzzing))]
pub(crate) use inbound::{Tunnel, request_origin};
pub use live::ConnectionSnapshot;
pub use origin::{OWN_PORTS, Origin, OriginError};
pub use resolve::{Caller, NextHop, PlaintextReason, Question, ResolveError, Route};
pub use worker::{SharedListener, Worker, WorkerError, WorkerHandle};
