//! Makes the node's enrolments what the labels say: the backstop of the plug-in, and what enrols running pods when a label
//! appears and withdraws them when it goes. What fails is tried again, less and less often.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use mesh_api::proto::admin::Pod as PodMessage;
use tokio::{sync::watch, time::Instant};

use super::{Cluster, place, pod::NodePod};
use crate::enrol::{Conflict, EnrolError};

/// First and longest wait after a failure.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Without any change: an address, a process or a cgroup may have come that nobody tells of.
const LOOK: Duration = Duration::from_secs(30);

/// A pod that could not be enrolled or withdrawn.
#[derive(Debug)]
struct Failure {
    reason: String,
    again: Instant,
    wait: Duration,
    /// In the log.
    is_told: bool,
}

/// The one task that does it.
#[derive(Debug)]
pub(super) struct Follower {
    cluster: Arc<Cluster>,
    /// Told of every enrolment and end.
    pods: watch::Receiver<u64>,
    failures: HashMap<String, Failure>,
}

impl Follower {
    pub(super) fn new(cluster: Arc<Cluster>, pods: watch::Receiver<u64>) -> Self {
        Self { cluster, pods, failures: HashMap::new() }
    }

    /// Never ends.
    pub(super) async fn run(mut self) {
        loop {
            if self.follow().await.is_err() {
                // The registry has ended, and this task is about to.
                return std::future::pending().await;
            }
            let next = self.failures.values().map(|failure| failure.again).min();
            let next = next.unwrap_or_else(|| Instant::now() + LOOK);
            tokio::select! {
                () = self.cluster.changed.notified() => {}
                changed = self.pods.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    async fn follow(&mut self) -> Result<(), EnrolError> {
        let Some(all) = self.cluster.known.all() else { return Ok(()) };
        let (enrolled, _) = self.cluster.enrolment.list().await?;
        let enrolled: HashMap<&str, &PodMessage> = enrolled.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
        let mut outside = HashMap::new();
        for (pod, mode) in &all {
            if *self.cluster.is_leaving.borrow() {
                return Ok(());
            }
            let wish = pod.wish(mode.as_deref());
            let done = match (wish, enrolled.get(pod.uid.as_str())) {
                (Ok(()), None) => self.enrol(pod).await,
                (Ok(()), Some(known)) => self.keep(pod, known).await,
                (Err(why), Some(_)) => self.withdraw(pod, why.reason()).await,
                (Err(_), None) => self.settle(pod, Ok(())),
            };
            let reason = wish.err().map(|outside| outside.reason().to_owned()).or(done.err());
            if let Some(reason) = reason {
                outside.insert((pod.namespace.clone(), pod.name.clone()), reason);
            }
        }
        let uids: HashSet<&str> = all.iter().map(|(pod, _)| pod.uid.as_str()).collect();
        self.failures.retain(|uid, _| uids.contains(uid.as_str()));
        self.cluster.known.outside().store(Arc::new(outside));
        Ok(())
    }

    async fn enrol(&mut self, pod: &NodePod) -> Result<(), String> {
        if pod.is_finished || pod.addresses.is_empty() {
            // Not there yet, or no more: the plug-in enrols what starts.
            return self.settle(pod, Ok(()));
        }
        self.wait(pod)?;
        let result = self.enrol_running(pod).await;
        self.settle(pod, result)
    }

    async fn enrol_running(&self, pod: &NodePod) -> Result<(), EnrolError> {
        let cgroup = place::cgroup(&self.cluster.cgroup_root, &pod.uid);
        let source = cgroup.as_deref().and_then(place::network_namespace);
        let source = source.ok_or_else(|| EnrolError::NoProcess { uid: pod.uid.clone() })?;
        let addresses = pod.addresses.iter().map(ToString::to_string).collect();
        match self.cluster.enrol(pod, source, addresses).await {
            // The plug-in was faster, and knows the sandbox of now.
            Err(EnrolError::Conflict(Conflict::Differs { .. })) => Ok(()),
            enrolled => enrolled,
        }
    }

    /// Of what may change while a pod runs, only its annotation is the agent's to follow.
    async fn keep(&mut self, pod: &NodePod, enrolled: &PodMessage) -> Result<(), String> {
        if let Some(reason) = enrolled.state.strip_prefix("failed: ") {
            return Err(reason.to_owned());
        }
        self.wait(pod)?;
        let result = self.cluster.enrolment.set_fail_open(pod.uid.clone(), pod.wants_fail_open).await;
        self.settle(pod, result)
    }

    async fn withdraw(&mut self, pod: &NodePod, reason: &str) -> Result<(), String> {
        self.wait(pod)?;
        tracing::info!(pod = format!("{}/{}", pod.namespace, pod.name), reason, "pod is withdrawn");
        let result = self.cluster.enrolment.withdraw(pod.uid.clone()).await;
        self.settle(pod, result)
    }

    /// Whether it is time to try this one; else why it failed last.
    fn wait(&self, pod: &NodePod) -> Result<(), String> {
        match self.failures.get(&pod.uid) {
            Some(failure) if failure.again > Instant::now() => Err(failure.reason.clone()),
            _ => Ok(()),
        }
    }

    fn settle(&mut self, pod: &NodePod, result: Result<(), EnrolError>) -> Result<(), String> {
        let Err(error) = result else {
            self.failures.remove(&pod.uid);
            return Ok(());
        };
        let reason = error.to_string();
        let before = self.failures.get(&pod.uid);
        // Once is nothing: a pod that ends has no process any more before the API server says so.
        let same = before.filter(|before| before.reason == reason);
        if same.is_some_and(|same| !same.is_told) {
            let name = format!("{}/{}", pod.namespace, pod.name);
            tracing::warn!(
                pod = name,
                reason,
                "what the labels say of a running pod cannot be done; it is tried again"
            );
        }
        let is_told = same.is_some();
        let wait = before.map_or(WAITS.0, |before| (before.wait * 2).min(WAITS.1));
        let failure = Failure { reason: reason.clone(), again: Instant::now() + wait, wait, is_told };
        self.failures.insert(pod.uid.clone(), failure);
        Err(reason)
    }
}
