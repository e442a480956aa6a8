//! When a certificate is asked for: at once when there is none, at half its life when there is one, after a growing
//! pause when asking failed. Pure: time comes as an argument.

use std::time::{Duration, Instant, SystemTime};

use crate::control::Backoff;

/// Shortest and longest pause after a failure. Source: ztunnel caps at 150 s.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(150));

/// When one identity's certificate is asked for next.
#[derive(Debug)]
pub struct Schedule {
    due: Instant,
    backoff: Backoff,
}

impl Schedule {
    /// There is no certificate: now.
    pub fn new(now: Instant) -> Self {
        Self { due: now, backoff: Backoff::new(RETRY.0, RETRY.1) }
    }

    /// A certificate that ends at `not_after` has been issued: at half of what is left, up to a tenth of that earlier,
    /// so that pods that came together do not renew together. Counted from now, not from its notBefore, which lies back.
    pub fn issued(&mut self, now: Instant, wall: SystemTime, not_after: SystemTime) {
        self.resumed(now, wall, wall, not_after);
        self.backoff.reset();
    }

    /// A certificate that an earlier run was issued: as if that run went on.
    pub fn resumed(&mut self, now: Instant, wall: SystemTime, issued: SystemTime, not_after: SystemTime) {
        let issued = issued.min(wall);
        let half = not_after.duration_since(issued).unwrap_or_default() / 2;
        let due = issued + half.mul_f64(0.9 + fastrand::f64() / 10.0);
        self.due = now + due.duration_since(wall).unwrap_or_default();
    }

    /// Asking failed.
    pub fn failed(&mut self, now: Instant) {
        self.due = now + self.backoff.next_wait();
    }

    /// What made it fail may be gone: now, if it is in a pause.
    pub fn hurry(&mut self, now: Instant) {
        self.backoff.reset();
        self.due = self.due.min(now);
    }

    /// There is a better one to be had: within `spread`, so that not all ask at once.
    pub fn replace(&mut self, now: Instant, spread: Duration) {
        self.due = self.due.min(now + spread.mul_f64(fastrand::f64()));
    }

    /// When to ask.
    pub fn due(&self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_life_counts_from_issue_and_is_spread() {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let day = Duration::from_secs(24 * 3600);
        let mut dues = Vec::new();
        for _ in 0..100 {
            let mut schedule = Schedule::new(now);
            schedule.issued(now, wall, wall + day);
            dues.push(schedule.due() - now);
        }
        let (first, last) = (dues.iter().min().unwrap(), dues.iter().max().unwrap());
        assert!(*last <= day / 2 && *first >= day.mul_f64(0.45), "{first:?} {last:?}");
        assert!(*last - *first > day / 200, "no jitter");
    }

    #[test]
    fn half_life_counts_from_issue_over_a_restart() {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let hour = Duration::from_secs(3600);
        let due = |age: Duration| {
            let mut schedule = Schedule::new(now);
            schedule.resumed(now, wall, wall - age, wall - age + 24 * hour);
            schedule.due() - now
        };
        assert!(due(10 * hour) <= 2 * hour && due(10 * hour) >= Duration::from_secs(2880), "{:?}", due(10 * hour));
        assert_eq!(due(13 * hour), Duration::ZERO, "it is late already");
        let mut ahead = Schedule::new(now);
        ahead.resumed(now, wall, wall + 48 * hour, wall + 24 * hour);
        assert!(ahead.due() - now <= 12 * hour, "a clock that was put back");
    }

    #[test]
    fn failures_pause_at_most_150_seconds_until_hurried() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        assert_eq!(schedule.due(), now);
        for _ in 0..30 {
            schedule.failed(now);
            assert!(schedule.due() > now && schedule.due() - now <= Duration::from_secs(150));
        }
        schedule.hurry(now);
        assert_eq!(schedule.due(), now);
        schedule.failed(now);
        assert!(schedule.due() - now <= Duration::from_millis(500));
    }
}
