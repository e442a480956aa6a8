//! Asking the control daemon for an address that the View does not know. The asker waits; the control client answers when
//! the resource, or its absence, is in the View. Never asks twice at once for one connection, never waits without limit.

use std::{net::IpAddr, time::Duration};

use tokio::sync::{mpsc, oneshot};

/// One question; `done` is answered (or dropped) when the View holds all that control says about the address.
#[derive(Debug)]
pub struct DemandRequest {
    /// What a pod dialled.
    pub address: IpAddr,
    /// Sent after the View was published.
    pub done: oneshot::Sender<()>,
}

/// The asking end, one clone per worker.
#[derive(Debug, Clone)]
pub struct Demand(mpsc::Sender<DemandRequest>);

impl Demand {
    /// Both ends; at most `depth` questions wait.
    pub fn channel(depth: usize) -> (Self, mpsc::Receiver<DemandRequest>) {
        let (sender, receiver) = mpsc::channel(depth);
        (Self(sender), receiver)
    }

    /// Asks and waits, at most for `timeout`. The caller looks into the View of after; whether control answered, was away
    /// or was slow makes no difference to it.
    pub async fn ask(&self, address: IpAddr, timeout: Duration) {
        let (done, answered) = oneshot::channel();
        let asking = async {
            if self.0.send(DemandRequest { address, done }).await.is_ok() {
                answered.await.ok();
            }
        };
        tokio::time::timeout(timeout, asking).await.ok();
    }
}
