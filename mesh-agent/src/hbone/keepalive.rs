//! Is the peer still there? TCP answers that only after minutes, and only when something is sent.

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

use super::{PING_INTERVAL, PING_TIMEOUT};

/// Returns when a PING stayed unanswered for too long, or the connection is gone.
pub(super) async fn until_dead(ping_pong: Option<PingPong>) {
    // h2 gives it out once; a connection that was asked before has somebody else who watches.
    let Some(mut ping_pong) = ping_pong else { return std::future::pending().await };
    loop {
        sleep(PING_INTERVAL).await;
        match timeout(PING_TIMEOUT, ping_pong.ping(Ping::opaque())).await {
            Ok(Ok(_)) => (),
            // The connection has failed; its driver says how.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
