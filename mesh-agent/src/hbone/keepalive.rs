//! Is the peer still there? TCP answers that only after minutes, and only when something is sent.

use h2::{Ping, PingPong};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{DOUBT, PING_GAP, PING_INTERVAL, PING_TIMEOUT, SILENCE};

/// What the streams of a tunnel and the task that sends its PINGs tell each other.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    wanted: Notify,
    felt: Notify,
}

impl Pulse {
    /// Returns when the peer has not answered a PING since [`SILENCE`], while somebody waits for it. What keeps the peer
    /// from answering is not told: it hangs, or the way to it is gone.
    pub(super) async fn lost(&self) {
        loop {
            sleep(DOUBT).await;
            let felt = self.felt.notified();
            self.wanted.notify_one();
            if timeout(SILENCE - DOUBT, felt).await.is_err() {
                return;
            }
        }
    }
}

/// Returns when a PING stayed unanswered for too long, or the connection is gone.
pub(super) async fn until_dead(ping_pong: Option<PingPong>, pulse: &Pulse) {
    // h2 gives it out once; a connection that was asked before has somebody else who watches.
    let Some(mut ping_pong) = ping_pong else { return std::future::pending().await };
    loop {
        sleep(PING_GAP).await;
        tokio::select! {
            () = sleep(PING_INTERVAL - PING_GAP) => (),
            () = pulse.wanted.notified() => (),
        }
        match timeout(PING_TIMEOUT, ping_pong.ping(Ping::opaque())).await {
            Ok(Ok(_)) => pulse.felt.notify_waiters(),
            // The connection has failed; its driver says how.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
