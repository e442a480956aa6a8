//! Stage 1: the one accept loop. Tells errors of one connection, of the moment and of the listener apart; with descriptors
//! used up it resets what waits instead of letting it hang, slows down, and still hears drain.

use std::{fs::File, io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use crate::drain::{Drain, Phase};

/// Waits after errors of the moment: doubled from the first to the last.
const BACK_OFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(1);

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Resets when dropped.
    pub socket: TcpStream,
    /// Who connected.
    pub peer: SocketAddr,
}

/// What an error of `accept` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// This connection is gone; the next may be fine. Source: accept(2), which asks to treat pending network errors so.
    Connection,
    /// Descriptors or memory are used up.
    Moment,
    /// The listener cannot accept.
    Listener,
}

/// Accepts until drain, or until the listener fails for good.
#[expect(clippy::disallowed_methods, reason = "the one accept loop")]
pub(super) async fn accept(listener: &TcpListener, drain: &Drain, shed: impl Fn(), mut taken: impl FnMut(Accepted)) {
    let mut draining = std::pin::pin!(drain.reached(Phase::Draining));
    let mut spare = Spare::default();
    let mut back_off = *BACK_OFF.start();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut draining => return,
            accepted = listener.accept() => accepted,
        };
        let error = match accepted {
            Ok((socket, peer)) => {
                back_off = *BACK_OFF.start();
                taken(Accepted { socket, peer });
                continue;
            }
            Err(error) => error,
        };
        match kind(&error) {
            Kind::Connection => tracing::debug!(%error, "accept"),
            Kind::Moment => {
                tracing::warn!(%error, "accept: resetting what waits");
                spare.shed(listener, &shed);
                tokio::select! {
                    () = &mut draining => return,
                    () = tokio::time::sleep(back_off) => back_off = (back_off * 2).min(*BACK_OFF.end()),
                }
            }
            Kind::Listener => return tracing::error!(%error, "accept: the listener has failed"),
        }
    }
}

fn kind(error: &io::Error) -> Kind {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => Kind::Moment,
        Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => Kind::Listener,
        _ => Kind::Connection,
    }
}

/// What is reset in one go, so that the other tasks of the thread have their turn.
const SHED: usize = 1024;

/// A descriptor kept for the time when there is no other: given up, it makes room to accept connections and to reset them, one
/// after the other, until nobody waits.
struct Spare(Option<File>);

impl Default for Spare {
    fn default() -> Self {
        Self(File::open("/dev/null").ok())
    }
}

impl Spare {
    fn shed(&mut self, listener: &TcpListener, shed: impl Fn()) {
        if self.0.take().is_some() {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            for _ in 0..SHED {
                // Nobody waits any more, or somebody else was quicker to take the descriptor.
                let std::task::Poll::Ready(Ok(_)) = listener.poll_accept(&mut context) else { break };
                shed();
            }
        }
        self.0 = File::open("/dev/null").ok();
    }
}
