//! The source at work on a real API server. These tests are left to `cargo xtask test --cluster`, which builds one.

mod api_server;
mod callers;
mod cut;
mod golden;
mod scale;
mod status;
mod watches;

use std::{sync::OnceLock, time::Duration};

use tokio::sync::watch;

/// What a daemon that is never told to stop listens to.
fn never() -> watch::Receiver<bool> {
    static NEVER: OnceLock<watch::Sender<bool>> = OnceLock::new();
    NEVER.get_or_init(|| watch::Sender::new(false)).subscribe()
}

/// Asks again until the answer is good, and tells the last answer when it never is.
async fn eventually<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(reason) if tokio::time::Instant::now() >= deadline => panic!("{what}, after {limit:?}: {reason}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
