//! Waiting for what must become true, with a limit; the only way in which a story waits. (Making a mesh also waits for a free
//! slot, and taking one down for its processes.)

use std::{
    thread,
    time::{Duration, Instant},
};

/// Long enough for anything that works at all on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(15);

/// Repeats `attempt` until it succeeds and returns what it found.
///
/// # Panics
/// When it still fails after `limit`, with its last reason.
#[track_caller]
pub fn eventually<T>(claim: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt() {
            Ok(found) => return found,
            Err(reason) if begun.elapsed() > limit => panic!("not within {limit:?}: {claim}: {reason}"),
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
