//! The agents before, as the one in charge sees them: they drain, and are told which pods have been withdrawn meanwhile. From
//! one agent in charge to the next they are handed on, because those between may have ended first.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Mutex;

use super::{
    channel::{Channel, ChannelError, DESCRIPTORS},
    message::{Answer, Question},
};

/// Cutting a pod's connections takes no longer; whoever withdraws it must not wait for an agent that hangs.
const WITHDRAWAL: Duration = Duration::from_secs(2);

/// Agents that drain. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Predecessors(Arc<Mutex<Vec<Channel>>>);

impl Predecessors {
    /// The agent before drains from now on; so do those that it knew.
    pub(super) async fn drain(&self, before: Option<Channel>, others: Vec<OwnedFd>) {
        let mut channels = self.0.lock().await;
        channels.extend(before);
        // One that has ended meanwhile is not needed.
        channels.extend(others.into_iter().filter_map(|other| Channel::of(other).ok()));
    }

    /// Has them cut all connections of a pod; returns when they have, or have ended.
    pub async fn withdraw(&self, uid: &str) {
        let mut channels = self.0.lock().await;
        let mut alive = Vec::new();
        for mut channel in channels.drain(..) {
            match ask(&mut channel, uid).await {
                Ok(()) => alive.push(channel),
                Err(ChannelError::Ended) => {}
                Err(error) => {
                    tracing::warn!(uid, %error, "connections of a withdrawn pod may go on until an agent has drained");
                }
            }
        }
        *channels = alive;
    }

    /// Hands them on with the word that everything is the successor's.
    pub(super) async fn hand_on(&self, next: &mut Channel) -> Result<(), ChannelError> {
        let mut channels = self.0.lock().await;
        let descriptors: Vec<BorrowedFd<'_>> = channels.iter().map(AsFd::as_fd).take(DESCRIPTORS).collect();
        next.send(&Answer::Yours, &descriptors).await?;
        channels.clear();
        Ok(())
    }
}

async fn ask(channel: &mut Channel, uid: &str) -> Result<(), ChannelError> {
    channel.send(&Question::Withdraw { uid: uid.to_owned() }, &[]).await?;
    match channel.receive_within(WITHDRAWAL).await? {
        (Answer::Withdrawn, _) => Ok(()),
        (other, _) => Err(ChannelError::Unknown(format!("{other:?}"))),
    }
}
