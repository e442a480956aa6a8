//! Columns of the agents that are connected to a control daemon.

use super::{always, wide};
use crate::{
    control::Agent,
    table::{Cell, Column},
};

/// One agent's stream.
pub const AGENTS: &[Column<Agent>] = &[
    always("NODE", "node", "name of the agent's node", |r| Cell::text(&r.node)),
    always("IN SYNC", "in_sync", "it holds the state that is published, and refused nothing of it", |r| {
        Cell::Flag(r.is_in_sync())
    }),
    always("VERSION", "version", "of the last state that the agent was told wholly", |r| Cell::Number(r.version)),
    always("PUBLISHED", "published", "version of the state that this control daemon publishes", |r| {
        Cell::Number(r.published)
    }),
    always("LAG", "lag_ms", "for how long it has not been in sync (JSON: milliseconds)", |r| {
        Cell::Milliseconds(r.lag_ms)
    }),
    always("ANSWERED", "has_answered", "it has answered all that it was told", |r| Cell::Flag(r.has_answered)),
    always("REFUSED BECAUSE", "refused", "kinds of resource that it refused, and why; - when none", |r| {
        Cell::List(r.refused.iter().map(|(kind, reason)| format!("{kind}: {reason}")).collect())
    }),
    wide("ADDRESS", "address", "where it is connected from", |r| Cell::text(r.address.as_deref().unwrap_or_default())),
    wide("CONTROL", "control", "the control daemon that was asked", |r| Cell::text(&r.control)),
];
