//! Pods that go from one agent to the next: their listening sockets, which stay open all the while, and what is known of them
//! that is in no record. Never decides which agent is in charge: `takeover` does.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{
    kernel::Listener,
    path::{SharedListener, WorkerError},
};

use super::{Pod, error::NodeError, registry::Registry};

/// Of all pods that an agent serves, by uid.
#[derive(Debug, Default)]
pub struct Handed {
    /// By the runtime's key.
    pub pods: HashMap<Arc<str>, HandedPod>,
}

/// Of one pod.
#[derive(Debug, Default)]
pub struct HandedPod {
    /// The sockets themselves.
    pub listeners: Vec<HandedListener>,
    /// Cookies of sockets that are older than the enrolment; none: they are to be looked for.
    pub older: Option<HashSet<u64>>,
    /// Other addresses of its interface that are steered.
    pub others: Vec<IpAddr>,
}

/// A listening socket that another process accepts on, or did.
#[derive(Debug)]
pub struct HandedListener {
    /// Where it listens; the port says of what kind it is.
    pub address: SocketAddr,
    /// The number of the worker that accepts on it.
    pub worker: usize,
    /// The socket.
    pub listener: OwnedFd,
}

/// A listener of a pod that nobody of this agent accepts on yet.
#[derive(Debug)]
pub(super) struct Waiting {
    worker: usize,
    pod: Arc<Pod>,
    kind: Listener,
    listener: OwnedFd,
}

impl Registry {
    /// Accepts on all listeners from now on: this agent is in charge.
    ///
    /// # Errors
    /// A worker has ended.
    pub async fn accept(&mut self) -> Result<(), NodeError> {
        self.handed = None;
        for Waiting { worker, pod, kind, listener } in self.waiting.take().unwrap_or_default() {
            self.wiring.workers[worker].serve(pod, kind, listener).await?;
        }
        Ok(())
    }

    /// How many pods are served.
    pub fn served(&self) -> usize {
        self.enrolled.len()
    }

    pub(super) async fn serve(
        &mut self,
        worker: usize,
        pod: &Arc<Pod>,
        kind: Listener,
        listener: OwnedFd,
    ) -> Result<(), WorkerError> {
        let pod = pod.clone();
        match &mut self.waiting {
            Some(waiting) => waiting.push(Waiting { worker, pod, kind, listener }),
            None => self.wiring.workers[worker].serve(pod, kind, listener).await?,
        }
        Ok(())
    }

    pub(super) fn is_handed(&self, uid: &str) -> bool {
        self.handed.as_ref().is_some_and(|handed| handed.pods.contains_key(uid))
    }

    /// What was handed over of a pod; the pod stays known as one that was.
    pub(super) fn take_handed(&mut self, uid: &str) -> HandedPod {
        let found = self.handed.as_mut().and_then(|handed| handed.pods.get_mut(uid));
        found.map(std::mem::take).unwrap_or_default()
    }

    /// Answers with all that a successor needs, and waits until it has taken over: true, and the pods are its. Until then
    /// nothing of them changes.
    pub(super) async fn hand_over(
        &mut self,
        answer: oneshot::Sender<Result<Handed, WorkerError>>,
        taken: oneshot::Receiver<()>,
    ) -> bool {
        let handed = self.collect().await;
        if answer.send(handed).is_ok() && taken.await.is_ok() {
            return true;
        }
        // Whatever a successor that failed has written: our state is in force.
        for enrolled in self.enrolled.values() {
            let class = self.class_of(enrolled.pod.id);
            if let Err(error) = super::admission::steer(&self.wiring.kernel, enrolled, class) {
                tracing::error!(uid = &*enrolled.pod.uid, %error, "a pod's steering was not renewed");
            }
        }
        self.tell_change();
        false
    }

    async fn collect(&self) -> Result<Handed, WorkerError> {
        let of_pod = |enrolled: &super::registry::Enrolled| HandedPod {
            listeners: Vec::new(),
            older: Some(enrolled.older.clone()),
            others: enrolled.others.steered.clone(),
        };
        let mut handed =
            Handed { pods: self.enrolled.iter().map(|(uid, enrolled)| (uid.clone(), of_pod(enrolled))).collect() };
        for (worker, handle) in self.wiring.workers.iter().enumerate() {
            for SharedListener { uid, address, listener } in handle.share().await? {
                if let Some(pod) = handed.pods.get_mut(&uid) {
                    pod.listeners.push(HandedListener { address, worker, listener });
                }
            }
        }
        Ok(handed)
    }
}
