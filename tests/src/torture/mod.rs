//! Torture: constant load on a mesh of two nodes while its parts are killed, hung, starved and cut off, in an order that a seed
//! settles. What each fault may cost is promised in [`faults`]; whatever else fails is a finding.

mod faults;
mod load;
mod misled;
mod soak;
mod stage;
mod strikes;
mod table;

use std::{
    thread,
    time::{Duration, Instant},
};

pub use soak::{Soak, soak};
pub use table::Table;

use crate::torture::{
    faults::{FAULTS, Fault, Part},
    load::{Call, KINDS, Kind, Load, Outcome},
    stage::Stage,
    table::Row,
};

/// After a fault everything works again within this time.
const RECOVERY: Duration = Duration::from_secs(15);
/// That many calls of a kind in a row were as promised: it has recovered.
const STREAK: usize = 3;
/// What is looked at before and after a fault, when nothing may fail.
const CALM: Duration = Duration::from_secs(1);
/// A fault of the short form lasts at most this long.
const SHORT: Duration = Duration::from_secs(8);

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Settles order and overlap.
    pub seed: u64,
    /// `None`: every fault once, each short, none beside another.
    pub duration: Option<Duration>,
}

/// Runs it and returns what happened, row by row.
///
/// # Panics
/// When the mesh cannot be made, or a part of it does not come back at all.
pub fn run(plan: Plan, mut tell: impl FnMut(&Row)) -> Table {
    let stage = Stage::set();
    let load = Load::start(&stage);
    let mut deck = Deck::new(plan.seed, |_| true);
    let mut table = Table::default();
    calm(&load).unwrap_or_else(|reason| panic!("it does not work without any fault: {reason}"));
    let begun = Instant::now();
    match plan.duration {
        Some(duration) => {
            while begun.elapsed() < duration {
                table.add(strike(&stage, &load, &deck.draw(), Duration::MAX), &mut tell);
            }
        }
        None => {
            deck.fill();
            for fault in deck.left {
                table.add(strike(&stage, &load, &[fault], SHORT), &mut tell);
            }
        }
    }
    table
}

/// The faults in an order of their own; when all have been drawn, again.
struct Deck {
    random: fastrand::Rng,
    all: Vec<&'static Fault>,
    left: Vec<&'static Fault>,
}

impl Deck {
    fn new(seed: u64, is_wanted: impl Fn(&Fault) -> bool) -> Self {
        let all = FAULTS.iter().filter(|fault| is_wanted(fault)).collect();
        Self { random: fastrand::Rng::with_seed(seed), all, left: Vec::new() }
    }

    fn fill(&mut self) {
        self.left.clone_from(&self.all);
        self.random.shuffle(&mut self.left);
    }

    /// One fault, or two at once that touch different parts.
    fn draw(&mut self) -> Vec<&'static Fault> {
        if self.left.is_empty() {
            self.fill();
        }
        let first = self.left.pop().expect("just filled");
        let mut drawn = vec![first];
        if self.random.u8(..) < 96
            && let Some(at) = self.left.iter().position(|other| first.goes_with(other))
        {
            drawn.push(self.left.remove(at));
        }
        drawn
    }
}

/// Nothing may fail for a while.
fn calm(load: &Load) -> Result<(), String> {
    let begun = Instant::now();
    thread::sleep(CALM);
    let calls = load.since(begun);
    let failed = calls.iter().find(|call| call.begun >= begun && call.outcome != Outcome::Kept);
    failed.map_or(Ok(()), |call| Err(format!("{:?}: {:?}", call.kind, call.outcome)))
}

/// Strikes with all of `faults` at once, waits until everything works again, and judges every call meanwhile.
fn strike(stage: &Stage, load: &Load, faults: &[&'static Fault], longest: Duration) -> Row {
    let begun = Instant::now();
    let clear_before = stage.mesh.link().passed().clear_bytes;
    let mut findings: Vec<String> = thread::scope(|scope| {
        let strikes: Vec<_> = faults
            .iter()
            .map(|fault| {
                scope.spawn(move || {
                    (fault.strike)(stage, fault.hold.min(longest)).map_err(|reason| format!("{}: {reason}", fault.name))
                })
            })
            .collect();
        strikes
            .into_iter()
            .filter_map(|strike| strike.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).err())
            .collect()
    });
    let healed = Instant::now();
    let recovered = recovery(load, healed);
    let calls = load.since(begun);
    if let Err(kind) = recovered {
        findings.push(format!("{kind:?} does not work {RECOVERY:?} after the end"));
    }
    let settled = healed + settles(faults);
    let excused = |call: &Call| if call.begun < settled { faults } else { &[] };
    findings.extend(calls.iter().filter_map(|call| finding(call, excused(call))));
    let late = calls.iter().filter(|call| call.begun >= settled && call.outcome != Outcome::Kept).count();
    let errors_after = late
        + calm(load).map_or_else(
            |reason| {
                findings.push(format!("after recovery: {reason}"));
                1
            },
            |()| 0,
        );
    let clear_bytes = stage.mesh.link().passed().clear_bytes - clear_before;
    if clear_bytes > 0 {
        findings.push(format!("{clear_bytes} bytes crossed the link in the clear"));
    }
    Row {
        fault: faults.iter().map(|fault| fault.name).collect::<Vec<_>>().join(" + "),
        requests: calls.len(),
        errors_during: calls.iter().filter(|call| call.outcome != Outcome::Kept).count(),
        errors_after,
        clear_bytes,
        recovery: recovered.unwrap_or(RECOVERY),
        findings,
    }
}

/// How long after its end a fault still excuses what begins: TCP finds a link that is back by its next retransmission.
fn settles(faults: &[&Fault]) -> Duration {
    match faults.iter().any(|fault| fault.part == Part::Link) {
        true => Duration::from_secs(8),
        false => Duration::from_secs(2),
    }
}

/// How long after `healed` the slowest kind worked again.
fn recovery(load: &Load, healed: Instant) -> Result<Duration, Kind> {
    let mut slowest = Duration::ZERO;
    for kind in KINDS {
        let recovered = loop {
            let calls: Vec<Call> = load.since(healed).into_iter().filter(|call| call.kind == kind).collect();
            let mut streaks = calls.windows(STREAK);
            if let Some(streak) = streaks.find(|streak| streak.iter().all(|call| call.outcome == Outcome::Kept)) {
                break streak[0].ended.saturating_duration_since(healed);
            }
            if healed.elapsed() > RECOVERY {
                return Err(kind);
            }
            thread::sleep(CALM / 20);
        };
        slowest = slowest.max(recovered);
    }
    Ok(slowest)
}

/// What none of these faults excuses.
fn finding(call: &Call, faults: &[&Fault]) -> Option<String> {
    let reason = match &call.outcome {
        Outcome::Kept => return None,
        Outcome::Broken(reason) => return Some(format!("{:?}: {reason}", call.kind)),
        Outcome::Failed(reason) => reason,
    };
    let took = call.ended - call.begun;
    if !faults.iter().any(|fault| fault.costs.contains(&call.kind)) {
        return Some(format!("{:?} failed, which nothing here excuses: {reason}", call.kind));
    }
    // A broken link makes those wait too whom it does not cut off.
    let may_wait = faults.iter().any(|fault| fault.waits);
    (took >= load::LIMIT && !may_wait).then(|| format!("{:?} was told only after {took:?}: {reason}", call.kind))
}
