//! What came of a connection that a story asked for, and what the story claims about it.

use std::net::SocketAddr;

use crate::protocol::{Report, Step};

/// A connection that was made, or refused.
#[derive(Debug, Clone)]
pub struct Dialled {
    pub(crate) to: SocketAddr,
    pub(crate) sent: String,
    pub(crate) report: Report,
}

impl Dialled {
    /// Connected, and what was sent came back.
    ///
    /// # Panics
    /// Otherwise.
    #[track_caller]
    pub fn is_answered(self) -> Self {
        assert!(self.was_answered(), "{} did not answer: {:?}", self.to, self.report);
        self
    }

    /// Whether it connected and what was sent came back.
    pub fn was_answered(&self) -> bool {
        self.report.failure.is_none() && self.report.received == self.sent
    }

    /// Refused as design says applications see it: ECONNREFUSED from `connect`, or ECONNRESET before any byte.
    ///
    /// # Panics
    /// When it was answered, ended in another way, or hung.
    #[track_caller]
    pub fn is_refused(self) -> Self {
        assert!(self.was_refused(), "{} was not refused: {:?}", self.to, self.report);
        self
    }

    /// Whether it was refused.
    pub fn was_refused(&self) -> bool {
        let Some(failure) = &self.report.failure else { return false };
        let errno_fits = match failure.step {
            // The agent may have accepted and reset it before the caller looks.
            Step::Connect => matches!(failure.errno, libc::ECONNREFUSED | libc::ECONNRESET),
            // A write may be told first when the reset came before it.
            Step::Read | Step::Write => matches!(failure.errno, libc::ECONNRESET | libc::EPIPE),
            Step::Bind => false,
        };
        errno_fits && self.report.received.is_empty()
    }

    /// The report itself.
    pub fn report(&self) -> &Report {
        &self.report
    }
}
