//! What a peer may spend on frames that carry nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM, CONTINUATION,
//! unknown ones. h2 obeys each, however many come; DATA and HEADERS it limits itself (flow control, streams, empty and small
//! DATA frames). Time and the bytes that the peer is sent pay for new ones.

use std::time::Instant;

use crate::scanner::{Frame, Scanner};

/// What a connection may spend.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// At most, and at the start; frames.
    pub burst: u32,
    /// What time gives back.
    pub per_second: u32,
    /// What bytes that we send give back: one frame for each of these.
    pub bytes_sent_per_frame: u32,
    /// Frames of any kind that are taken at once, before whoever waits for them has its turn.
    pub per_turn: u32,
}

/// Why the peer is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It speaks no HTTP/2.
    Preface,
    /// It has spent more than it may.
    Frames,
}

/// Counts the frames of one connection.
#[derive(Debug)]
pub struct Meter {
    budget: Budget,
    scanner: Scanner,
    /// In thousandths of a frame, so that nothing is lost to rounding.
    left: u64,
    counted_at: Instant,
    /// Frames of this turn.
    taken: u32,
}

impl Meter {
    /// Of what a client sends us.
    pub fn of_client(budget: Budget, now: Instant) -> Self {
        Self { budget, scanner: Scanner::of_client(), left: u64::from(budget.burst) * 1000, counted_at: now, taken: 0 }
    }

    /// Of what a server sends us.
    pub fn of_server(budget: Budget, now: Instant) -> Self {
        Self { scanner: Scanner::of_server(), ..Self::of_client(budget, now) }
    }

    /// Whether the peer's first frame has come.
    pub fn has_begun(&self) -> bool {
        self.scanner.has_begun()
    }

    /// Whether the peer has ended inside a frame, if it has ended now.
    pub fn is_truncated(&self) -> bool {
        self.scanner.has_begun() && !self.scanner.is_between()
    }

    /// These bytes have come.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(&mut self, bytes: &[u8], now: Instant) -> Result<(), Fault> {
        let (mut spent, mut taken) = (0, 0_u32);
        let is_http = self.scanner.read(bytes, |frame| {
            spent += u64::from(frame != Frame::Carrying) * 1000;
            taken += 1;
        });
        if !is_http {
            return Err(Fault::Preface);
        }
        self.taken = self.taken.saturating_add(taken);
        if spent == 0 {
            return Ok(());
        }
        let passed = now.saturating_duration_since(self.counted_at).as_micros();
        self.counted_at = now;
        self.earn(u64::try_from(passed).unwrap_or(u64::MAX).saturating_mul(self.budget.per_second.into()) / 1000);
        let is_enough = self.left >= spent;
        self.left = self.left.saturating_sub(spent);
        if is_enough { Ok(()) } else { Err(Fault::Frames) }
    }

    /// Whether it is the turn of whoever waits for the frames that have come; asking begins the next turn.
    pub fn is_turn_over(&mut self) -> bool {
        let is_over = self.taken > self.budget.per_turn;
        if is_over {
            self.taken = 0;
        }
        is_over
    }

    /// As many bytes were sent to the peer.
    pub fn sent(&mut self, bytes: usize) {
        self.earn((bytes as u64).saturating_mul(1000) / u64::from(self.budget.bytes_sent_per_frame.max(1)));
    }

    fn earn(&mut self, thousandths: u64) {
        self.left = self.left.saturating_add(thousandths).min(u64::from(self.budget.burst) * 1000);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BUDGET: Budget = Budget { burst: 10, per_second: 2, bytes_sent_per_frame: 100, per_turn: 20 };
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const DATA: [u8; 10] = [0, 0, 1, 0, 0, 0, 0, 0, 1, b'x'];

    fn takes(meter: &mut Meter, bytes: &[u8], now: Instant) -> bool {
        meter.read(bytes, now).is_ok()
    }

    #[test]
    fn frames_that_carry_nothing_are_paid_for_by_time_and_by_what_was_sent() {
        let start = Instant::now();
        let mut meter = Meter::of_server(BUDGET, start);
        assert!(takes(&mut meter, &PING.repeat(10), start) && takes(&mut meter, &DATA.repeat(1000), start));
        assert!(!takes(&mut meter, &PING, start));
        // Half a second later one frame, and after 300 bytes three.
        let later = start + Duration::from_millis(500);
        assert!(takes(&mut meter, &PING, later) && !takes(&mut meter, &PING, later));
        meter.sent(300);
        assert!(takes(&mut meter, &PING.repeat(3), later) && !takes(&mut meter, &PING, later));
        // Never more than the burst.
        assert!(!takes(&mut meter, &PING.repeat(11), start + Duration::from_secs(3600)));
    }

    #[test]
    fn a_turn_ends_after_so_many_frames_of_any_kind() {
        let mut meter = Meter::of_server(BUDGET, Instant::now());
        assert!(takes(&mut meter, &DATA.repeat(20), Instant::now()) && !meter.is_turn_over());
        assert!(takes(&mut meter, &DATA, Instant::now()) && meter.is_turn_over() && !meter.is_turn_over());
    }

    #[test]
    fn small_gains_add_up() {
        let mut now = Instant::now();
        let mut meter = Meter::of_server(BUDGET, now);
        assert!(takes(&mut meter, &PING.repeat(10), now));
        (0..100).for_each(|_| meter.sent(1));
        assert!(takes(&mut meter, &PING, now) && !takes(&mut meter, &PING, now));
        for _ in 0..20 {
            now += Duration::from_millis(500);
            assert!(takes(&mut meter, &PING, now));
        }
    }

    #[test]
    fn an_end_inside_a_frame_is_seen() {
        let mut meter = Meter::of_server(BUDGET, Instant::now());
        assert!(!meter.is_truncated());
        assert!(takes(&mut meter, &PING, Instant::now()) && meter.has_begun() && !meter.is_truncated());
        assert!(takes(&mut meter, &PING[..12], Instant::now()) && meter.is_truncated());
    }
}
