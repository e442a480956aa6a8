//! Whether the agent's own DaemonSet is still wanted. Followed all the while, because what removes it removes the agent's
//! rights in the same moment, and afterwards the API server would only refuse to say.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::runtime::watcher::{Config, Event, watcher};
use tokio::sync::watch;

use super::{Cluster, watch::follow};

/// What is known of the DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// It was never seen: perhaps the setting is wrong.
    #[default]
    Unseen,
    /// It is there.
    Wanted,
    /// It was there, and is gone or being deleted.
    Removed,
}

/// The last word on it.
#[derive(Debug, Default)]
pub(super) struct Owner {
    state: watch::Sender<State>,
    is_namespace_ending: AtomicBool,
}

impl Owner {
    fn set(&self, daemon_set: Option<&DaemonSet>) {
        self.state.send_modify(|state| {
            *state = match daemon_set {
                Some(found) if found.metadata.deletion_timestamp.is_none() => State::Wanted,
                Some(_) => State::Removed,
                None if *state == State::Unseen => State::Unseen,
                None => State::Removed,
            };
        });
    }

    /// Whether its namespace is being deleted, and with it everything in it: perhaps the agents' pods before what made them.
    pub(super) fn set_namespace(&self, is_ending: bool) {
        self.is_namespace_ending.store(is_ending, Ordering::Relaxed);
    }
}

/// Follows it; never ends.
pub(super) async fn follow_own(cluster: Arc<Cluster>) {
    let Some((api, name)) = cluster.api.daemon_sets() else { return std::future::pending().await };
    let config = Config::default().fields(&format!("metadata.name={name}"));
    let mut listed = None;
    let take = |event| match event {
        Event::Init => listed = None,
        Event::InitApply(found) => listed = Some(found),
        Event::InitDone => cluster.owner.set(listed.take().as_ref()),
        Event::Apply(found) => cluster.owner.set(Some(&found)),
        Event::Delete(_) => cluster.owner.set(None),
    };
    follow("the agent's DaemonSet", watcher(api, config.timeout(60)), &cluster, take).await;
}

/// See [`Cluster::is_removed`].
pub(super) async fn is_removed(cluster: &Cluster) -> bool {
    if cluster.api.daemon_set.is_none() {
        return false;
    }
    let state = *cluster.owner.state.borrow();
    if state == State::Removed || cluster.owner.is_namespace_ending.load(Ordering::Relaxed) {
        return true;
    }
    match cluster.api.own().await {
        Ok(Some(found)) => found.metadata.deletion_timestamp.is_some(),
        // A pod of it on this node says that there was one of this name.
        Ok(None) => state == State::Wanted || cluster.known.has_agent(),
        Err(error) => {
            tracing::info!(%error, "whether the agent's DaemonSet is gone is not known: steering stays in force");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_one_that_was_there_can_be_gone() {
        let there: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        let ending = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let ending: DaemonSet = serde_json::from_value(ending).unwrap();
        let cases = [
            (vec![], State::Unseen),
            (vec![None], State::Unseen),
            (vec![Some(&there)], State::Wanted),
            (vec![Some(&there), None], State::Removed),
            (vec![Some(&ending)], State::Removed),
            (vec![Some(&there), None, Some(&there)], State::Wanted),
        ];
        for (events, expected) in cases {
            let owner = Owner::default();
            events.iter().for_each(|event| owner.set(*event));
            assert_eq!(*owner.state.borrow(), expected, "{} events", events.len());
        }
    }
}
