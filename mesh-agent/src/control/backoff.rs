//! Waiting times between attempts: doubled each time up to a ceiling, with jitter so that a thousand agents that lost
//! the same daemon do not come back in the same instant.

use std::time::Duration;

/// The next waiting time of something that keeps failing.
#[derive(Debug, Clone)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts at `floor`, never waits longer than `ceiling`.
    pub const fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling, failures: 0 }
    }

    /// One more failure: how long to wait now; between half and all of the doubled time.
    pub fn next_wait(&mut self) -> Duration {
        let doubled = self.floor.saturating_mul(1 << self.failures.min(20)).min(self.ceiling);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It worked: the next failure waits `floor` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;
    use std::time::Duration;

    #[test]
    fn doubles_up_to_the_ceiling_and_starts_again_after_success() {
        let (floor, ceiling) = (Duration::from_millis(10), Duration::from_secs(15));
        let mut backoff = Backoff::new(floor, ceiling);
        let mut expected = floor;
        for _ in 0..40 {
            let wait = backoff.next_wait();
            assert!(wait >= expected / 2 && wait <= expected, "{wait:?} of {expected:?}");
            expected = (expected * 2).min(ceiling);
        }
        assert_eq!(expected, ceiling);
        backoff.reset();
        assert!(backoff.next_wait() <= floor);
    }
}
