//! Ctrl-C: noticed between two scenes or waited for, never acted on in the middle, so that nothing is left behind.

use std::{mem::MaybeUninit, ptr};

/// SIGINT and SIGTERM, held back in this thread and all that it starts; programs it starts begin with none held back.
pub struct Interrupt {
    signals: libc::sigset_t,
}

impl Interrupt {
    /// Holds the signals back. To be called before any thread is started.
    pub fn catch() -> Self {
        let mut signals = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set that the other calls are given; no old mask is asked for.
        let signals = unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            let mut signals = signals.assume_init();
            libc::sigaddset(&raw mut signals, libc::SIGINT);
            libc::sigaddset(&raw mut signals, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut());
            signals
        };
        Self { signals }
    }

    /// Whether one has arrived.
    pub fn has_come(&self) -> bool {
        let mut pending = MaybeUninit::uninit();
        // SAFETY: sigpending initialises the set; sigismember only reads it.
        unsafe {
            libc::sigpending(pending.as_mut_ptr());
            let pending = pending.assume_init();
            [libc::SIGINT, libc::SIGTERM].into_iter().any(|signal| libc::sigismember(&raw const pending, signal) == 1)
        }
    }

    /// Waits for one.
    pub fn wait(&self) {
        let mut signal = 0;
        // SAFETY: both arguments live as long as the call.
        unsafe { libc::sigwait(&raw const self.signals, &raw mut signal) };
    }
}
