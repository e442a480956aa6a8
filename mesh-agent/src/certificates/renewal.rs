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
        let half = not_after.duration_since(wall).unwrap_or_default() / 2;
        self.due = now + half.mul_f64(0.9 + fastrand::f64() / 10.0);
        self.backoff.reset();
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
