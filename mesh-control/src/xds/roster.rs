//! Who is connected and how far each has come: what answers "is every agent in sync". Knows no resource.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mesh_api::{
    CONTROL_ROOTS_FIELD, OLD_CERTIFICATES_FIELD, TAKEN_OVER_FIELD, TRUST_BUNDLE_FIELD, proto::discovery::Node,
};
use serde::Serialize;

use crate::publish::session::{Nack, Session};

/// All streams.
#[derive(Debug, Default)]
pub struct Roster {
    seats: Mutex<(u64, BTreeMap<u64, Attendance>)>,
}

/// One stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Attendance {
    /// Node of the agent's token.
    pub node: String,
    /// Where it is connected from.
    pub address: Option<SocketAddr>,
    /// Version of the last state that it was told wholly.
    pub version: u64,
    /// True when it has answered everything it was told.
    pub has_answered: bool,
    /// By type, why it refused the last response of that type.
    pub refused: BTreeMap<String, String>,
    /// What it trusts; none from an agent that does not say.
    pub trust: Option<TrustReport>,
    /// True when another agent of the node has taken over, and this one waits for its connections to end.
    pub is_taken_over: bool,
    /// For how long it has not held the published state, in milliseconds; 0 while it does.
    pub lag_ms: u64,
    #[serde(skip)]
    behind_since: Option<Instant>,
}

/// What an agent says of its roots, in the metadata of its node (mesh.proto, `MeshConfig.trust_bundle`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrustReport {
    /// Hash of the bundle that peers are verified against.
    pub bundle: String,
    /// Certificates in use that lead to another root than the first of the bundle.
    pub old_certificates: u64,
    /// Hashes of the roots that this daemon is verified against.
    pub control_roots: Vec<String>,
}

impl TrustReport {
    /// Reads it; `None`: the node says nothing of it.
    pub fn of(node: &Node) -> Option<TrustReport> {
        Some(TrustReport {
            bundle: text(node, TRUST_BUNDLE_FIELD)?.to_owned(),
            old_certificates: text(node, OLD_CERTIFICATES_FIELD)?.parse().ok()?,
            control_roots: text(node, CONTROL_ROOTS_FIELD)?.split_whitespace().map(str::to_owned).collect(),
        })
    }
}

fn text<'a>(node: &'a Node, field: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(field)?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) => Some(text.as_str()),
        _ => None,
    }
}

impl Roster {
    /// Takes a seat for a new stream.
    pub fn seat(self: &Arc<Self>, node: &str, address: Option<SocketAddr>) -> Seat {
        let attendance = Attendance {
            node: node.to_owned(),
            address,
            has_answered: true,
            behind_since: Some(Instant::now()),
            ..Attendance::default()
        };
        let mut seats = self.lock();
        seats.0 += 1;
        let number = seats.0;
        seats.1.insert(number, attendance);
        Seat { roster: self.clone(), number }
    }

    /// All streams, by node; of one node the latest last.
    pub fn all(&self) -> Vec<Attendance> {
        let mut all: Vec<_> = self.lock().1.values().cloned().collect();
        for attendance in &mut all {
            let lag = attendance.behind_since.map_or(0, |since| since.elapsed().as_millis().max(1));
            attendance.lag_ms = u64::try_from(lag).unwrap_or(u64::MAX);
        }
        all.sort_by(|one, other| one.node.cmp(&other.node));
        all
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Attendance>)> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's place in the roster, free again when dropped.
#[derive(Debug)]
pub struct Seat {
    roster: Arc<Roster>,
    number: u64,
}

impl Seat {
    /// Notes what the agent says of itself.
    pub fn hears(&self, node: &Node) {
        if let Some(attendance) = self.roster.lock().1.get_mut(&self.number) {
            attendance.trust = TrustReport::of(node).or(attendance.trust.take());
            attendance.is_taken_over |= text(node, TAKEN_OVER_FIELD).is_some();
        }
    }

    /// Notes how far the stream has come towards the published `generation`, and what it answered to the last response
    /// of a type.
    pub fn note(&self, session: &Session, generation: u64, answer: Option<(&str, Option<&Nack>)>) {
        let mut seats = self.roster.lock();
        let Some(attendance) = seats.1.get_mut(&self.number) else { return };
        attendance.version = session.told();
        attendance.has_answered = session.has_answered();
        match answer {
            Some((kind, Some(nack))) => drop(attendance.refused.insert(kind.to_owned(), nack.message.clone())),
            Some((kind, None)) => drop(attendance.refused.remove(kind)),
            None => {}
        }
        let is_behind = attendance.version < generation || !attendance.has_answered || !attendance.refused.is_empty();
        attendance.behind_since = is_behind.then(|| attendance.behind_since.unwrap_or_else(Instant::now));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.roster.lock().1.remove(&self.number);
    }
}
