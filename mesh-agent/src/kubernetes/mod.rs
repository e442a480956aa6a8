//! What an API server says of this node's pods, and what follows: pods are enrolled and withdrawn by their labels, the CNI
//! plug-in is answered, and the agent learns whether its own DaemonSet is still wanted. Never steers: that is `enrol`'s.

mod api;
mod follower;
mod known;
mod owner;
mod place;
mod pod;
mod sandbox;
#[cfg(test)]
mod tests;
mod watch;

pub use api::{Api, ApiError};
pub use known::SharedOutside;

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use tokio::sync::{Notify, watch as values};

use crate::enrol::Enrolment;

use self::{follower::Follower, known::Known, owner::Owner};

/// Runs as long as the agent is in charge.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The cluster as this node's agent sees it.
#[derive(Debug)]
pub struct Cluster {
    api: Api,
    known: Known,
    owner: Owner,
    enrolment: Enrolment,
    /// Where pods' cgroups are.
    cgroup_root: PathBuf,
    /// Told when what is known has changed.
    changed: Notify,
    /// The mesh is being taken off this node: nobody is enrolled any more.
    is_leaving: values::Sender<bool>,
}

impl Cluster {
    /// Asks nobody yet.
    pub fn new(api: Api, cgroup_root: &Path, enrolment: Enrolment) -> Arc<Self> {
        Arc::new(Self {
            api,
            known: Known::default(),
            owner: Owner::default(),
            enrolment,
            cgroup_root: cgroup_root.to_owned(),
            changed: Notify::new(),
            is_leaving: values::Sender::new(false),
        })
    }

    /// Pods that are not enrolled, and why, as `meshctl workloads` shows it.
    pub fn outside(&self) -> SharedOutside {
        self.known.outside()
    }

    /// All that runs as long as the agent is in charge.
    pub fn tasks(self: &Arc<Self>, pods: values::Receiver<u64>) -> [Task; 4] {
        [
            Box::pin(watch::pods(self.clone())),
            Box::pin(watch::namespaces(self.clone())),
            Box::pin(owner::follow_own(self.clone())),
            Box::pin(Follower::new(self.clone(), pods).run()),
        ]
    }

    /// Whether the agent's DaemonSet is gone or being deleted. Asks the API server if its watch has not said so; no answer
    /// is a no, because pods must not be let out in the clear by mistake.
    pub async fn is_removed(&self) -> bool {
        owner::is_removed(self).await
    }

    /// Nobody is enrolled from now on, and everybody is withdrawn. What fails is logged: there is no second try.
    pub async fn withdraw_all(&self) {
        self.is_leaving.send_replace(true);
        let Ok((pods, _)) = self.enrolment.list().await else { return };
        for pod in pods {
            if let Err(error) = self.enrolment.withdraw(pod.uid).await {
                tracing::warn!(pod = format!("{}/{}", pod.namespace, pod.name), %error, "was not withdrawn completely");
            }
        }
    }
}
