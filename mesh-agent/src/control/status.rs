//! What operators are shown of the control connection. Written by the client, read by `meshctl status`, `check` and the
//! metrics.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwap;

/// The state of the control connection.
#[derive(Debug, Clone, Default)]
pub struct ControlStatus {
    /// A stream is open and control has answered on it.
    pub is_connected: bool,
    /// Since when no stream has been answered; none while one is.
    pub away_since: Option<SystemTime>,
    /// When the View in force was written to disk, if it is from there and control has not confirmed it since.
    pub view_cached: Option<SystemTime>,
    /// Why the last attempt or stream ended; kept while connected, so that a flapping connection is seen.
    pub last_error: String,
    /// Streams that ended.
    pub terminations: u64,
    /// One per resource type that is asked for.
    pub types: Vec<TypeStatus>,
    /// When the last View was published.
    pub view_published: Option<Instant>,
    /// Roots of the trust domain as control publishes them (PEM); empty from a control plane that does not.
    pub trust_bundle: Arc<Vec<String>>,
}

/// The state of one resource type.
#[derive(Debug, Clone, Default)]
pub struct TypeStatus {
    /// Its type URL.
    pub type_url: &'static str,
    /// Resources that are held.
    pub resources: usize,
    /// Of their names and versions: two agents with the same hash hold the same.
    pub hash: String,
    /// Of the last answer.
    pub nonce: String,
    /// Answered at least once since the process started.
    pub is_complete: bool,
    /// Why something in the last answer was refused; empty when all was taken.
    pub nack: String,
    /// Answers that were refused, wholly or in part.
    pub nacks: u64,
    /// Answers received.
    pub responses: u64,
}

/// Shared by the client and its readers; read without a lock.
pub type SharedControlStatus = Arc<ArcSwap<ControlStatus>>;
