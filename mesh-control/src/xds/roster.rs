//! Who is connected and how far each has come: what answers "is every agent in sync". Knows no resource.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::Serialize;

use crate::publish::session::{Nack, Session};

/// All streams.
#[derive(Debug, Default)]
pub struct Roster {
    seats: Mutex<(u64, BTreeMap<u64, Attendance>)>,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// For how long it has not held the published state, in milliseconds; 0 while it does.
    pub lag_ms: u64,
    #[serde(skip)]
    behind_since: Option<Instant>,
}

impl Roster {
    /// Takes a seat for a new stream.
    pub fn seat(self: &Arc<Self>, node: &str, address: Option<SocketAddr>) -> Seat {
        let attendance = Attendance {
            node: node.to_owned(),
            address,
            version: 0,
            has_answered: true,
            refused: BTreeMap::new(),
            lag_ms: 0,
            behind_since: Some(Instant::now()),
        };
        let mut seats = self.lock();
        seats.0 += 1;
        let number = seats.0;
        seats.1.insert(number, attendance);
        Seat { roster: self.clone(), number }
    }

    /// All streams, by node.
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
