//! What a listener refused, by reason: a number for each, and a line in the log that a flood does not repeat. Locks nothing.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::limits::LOG_INTERVAL;

/// Why somebody was refused, or cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// All places are taken: of connections, of handshakes, of requests.
    Crowded,
    /// The caller's address has as many as one address may.
    CrowdedAddress,
    /// No descriptor was left.
    Descriptors,
    /// The handshake, or a request's head, took too long.
    Timeout,
    /// What came is no handshake, or one that we refuse: no TLS, no certificate of the mesh.
    Handshake,
    /// No token of a node came with the request.
    Token,
    /// The certificate is good and of somebody else than the caller's address.
    Identity,
    /// Records that TLS refuses after the handshake.
    Records,
    /// No HTTP/1 request, or one whose head is too large.
    Head,
    /// HTTP/2 that h2 refuses: a frame too large, a window overflown, too many CONTINUATIONs, resets, empty DATA frames.
    Protocol,
    /// More frames that carry nothing than [`crate::Budget`] allows.
    Frames,
    /// An end in the middle of a frame or a request.
    Truncated,
}

impl Reason {
    /// How many there are.
    const COUNT: usize = 12;
    /// All of them, by number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Crowded,
        Self::CrowdedAddress,
        Self::Descriptors,
        Self::Timeout,
        Self::Handshake,
        Self::Token,
        Self::Identity,
        Self::Records,
        Self::Head,
        Self::Protocol,
        Self::Frames,
        Self::Truncated,
    ];

    /// As metrics and logs have it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Crowded => "crowded",
            Self::CrowdedAddress => "crowded_address",
            Self::Descriptors => "descriptors",
            Self::Timeout => "timeout",
            Self::Handshake => "handshake",
            Self::Token => "token",
            Self::Identity => "identity",
            Self::Records => "records",
            Self::Head => "head",
            Self::Protocol => "protocol",
            Self::Frames => "frames",
            Self::Truncated => "truncated",
        }
    }
}

/// Of one listener, or of all pods' listeners of a kind.
#[derive(Debug)]
pub struct Refusals {
    /// As metrics and logs have it: the port, or `admin`.
    pub listener: &'static str,
    counts: [AtomicU64; Reason::COUNT],
    /// When each was last said, in milliseconds since `started`, plus one; 0: never.
    said: [AtomicU64; Reason::COUNT],
    started: Instant,
}

impl Refusals {
    /// None yet.
    pub fn of(listener: &'static str) -> Self {
        Self { listener, counts: Default::default(), said: Default::default(), started: Instant::now() }
    }

    /// Counts one, and says so unless that was said lately.
    pub fn refuse(&self, reason: Reason, peer: impl fmt::Display, detail: impl fmt::Display) {
        let count = self.counts[reason as usize].fetch_add(1, Relaxed) + 1;
        if self.is_to_be_said(reason, self.started.elapsed()) {
            let (listener, reason) = (self.listener, reason.label());
            tracing::warn!(listener, reason, %peer, %detail, count, "refused at a listener");
        }
    }

    /// True once in an interval, whoever asks at the same time.
    fn is_to_be_said(&self, reason: Reason, now: Duration) -> bool {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1);
        let said = &self.said[reason as usize];
        let (last, now) = (said.load(Relaxed), millis(now) + 1);
        let is_due = last == 0 || now - last.min(now) >= millis(LOG_INTERVAL);
        is_due && said.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }

    /// How many of each, all reasons.
    pub fn counts(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().map(|reason| (reason, self.counts[reason as usize].load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_and_said_once_in_an_interval() {
        let refusals = Refusals::of("15008");
        (0..3).for_each(|_| refusals.refuse(Reason::Frames, "peer", "detail"));
        refusals.refuse(Reason::Head, "peer", "detail");
        let counts: Vec<_> = refusals.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [(Reason::Head, 1), (Reason::Frames, 3)]);
        let said = |at: Duration| refusals.is_to_be_said(Reason::Identity, at);
        let asked = [0, 1, 9_999, 10_000, 19_000, 20_000].map(|at| said(Duration::from_millis(at)));
        assert_eq!(asked, [true, false, false, true, false, true]);
    }

    #[test]
    fn every_reason_has_a_number_and_a_label_of_its_own() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
        let mut labels = Reason::ALL.map(Reason::label);
        labels.sort_unstable();
        assert!(labels.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
