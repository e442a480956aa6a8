//! What the control side and the workers share, and who is woken by a change of which part.

use std::{collections::BTreeSet, sync::Arc};

use arc_swap::ArcSwapOption;
use mesh_api::Identity;
use tokio::sync::{Notify, watch};

use crate::{
    certificates::SharedWallet,
    config::Config,
    enrol::{SharedPods, Wiring},
    kernel::Kernel,
    path::{self, Context, Worker, WorkerHandle},
    steer::SharedClasses,
    takeover::Predecessors,
    telemetry::Telemetry,
    view::{Demand, SharedView},
};

use super::AgentError;

/// Without a change for so long, an agent has settled.
const QUIET: std::time::Duration = std::time::Duration::from_secs(1);

/// What is shared between the control side and the workers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) kernel: Arc<Kernel>,
    pub(super) view: SharedView,
    pub(super) view_changes: watch::Sender<u64>,
    pub(super) pods: SharedPods,
    pub(super) pod_changes: watch::Sender<u64>,
    pub(super) wallet: SharedWallet,
    pub(super) wallet_changes: watch::Sender<u64>,
    /// Any of the three: live connections are judged again, those that wait look again.
    pub(super) changes: watch::Sender<u64>,
    /// From the kernel's records to enrolment, see [`Wiring::unseen`].
    pub(super) unseen: Arc<Notify>,
    pub(super) telemetry: Arc<Telemetry>,
    /// The agents before, while they drain.
    pub(super) predecessors: Predecessors,
    /// True while a successor takes the pods up.
    pub(super) frozen: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(kernel: Arc<Kernel>, config: &Config) -> Result<Self, AgentError> {
        let telemetry = Telemetry::new(config.access_log)
            .map_err(|source| AgentError::System { action: "start the access log", source })?;
        Ok(Self {
            kernel,
            view: Arc::new(ArcSwapOption::empty()),
            view_changes: watch::channel(0).0,
            pods: SharedPods::default(),
            pod_changes: watch::channel(0).0,
            wallet: SharedWallet::default(),
            wallet_changes: watch::channel(0).0,
            changes: watch::channel(0).0,
            unseen: Arc::default(),
            telemetry: Arc::new(telemetry),
            predecessors: Predecessors::default(),
            frozen: watch::channel(false).0,
        })
    }

    pub(super) fn start_workers(&self, config: &Config, demand: Demand) -> Result<Arc<[WorkerHandle]>, AgentError> {
        let context = Arc::new(Context {
            steering: path::Steering::Kernel(self.kernel.clone()),
            view: self.view.clone(),
            view_changes: self.changes.subscribe(),
            pods: self.pods.clone(),
            wallet: self.wallet.clone(),
            demand,
            pod_memory: path::POD_MEMORY,
            pod_tasks: path::POD_TASKS,
            telemetry: self.telemetry.clone(),
        });
        let start = |index| Worker::start(index, context.clone());
        let started: Result<Vec<_>, _> = (0..config.kernel.workers).map(start).collect();
        Ok(started?.into())
    }

    pub(super) fn wiring(&self, workers: &Arc<[WorkerHandle]>, classes: &SharedClasses) -> Wiring {
        Wiring {
            kernel: self.kernel.clone(),
            workers: workers.clone(),
            pods: self.pods.clone(),
            view: self.view.clone(),
            view_changes: self.view_changes.subscribe(),
            pod_changes: self.pod_changes.clone(),
            classes: classes.clone(),
            unseen: self.unseen.clone(),
            telemetry: self.telemetry.clone(),
            predecessors: self.predecessors.clone(),
        }
    }

    /// Raises `changes` with each of the three.
    pub(super) fn join_changes(&self) -> impl Future<Output = ()> + Send + use<> {
        let changes = self.changes.clone();
        let mut view = self.view_changes.subscribe();
        let mut pods = self.pod_changes.subscribe();
        let mut wallet = self.wallet_changes.subscribe();
        // When another agent has taken over nobody changes pods and certificates any more: the View still does.
        let senders = (self.pod_changes.clone(), self.wallet_changes.clone());
        async move {
            let _senders = senders;
            loop {
                let changed = tokio::select! {
                    changed = view.changed() => changed,
                    changed = pods.changed() => changed,
                    changed = wallet.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
                changes.send_modify(|generation| *generation += 1);
            }
        }
    }

    /// Lets go of what start-up has mapped, when the agent has its View and nothing has changed for a second.
    pub(super) fn forget_start_up(&self) -> impl Future<Output = ()> + Send + use<> {
        let (view, mut changes) = (self.view.clone(), self.changes.subscribe());
        async move {
            loop {
                match tokio::time::timeout(QUIET, changes.changed()).await {
                    Err(_) if view.load().is_some() => return crate::memory::forget_program(),
                    Ok(Err(_)) => return,
                    Err(_) | Ok(Ok(())) => (),
                }
            }
        }
    }

    /// Says which identities must have a certificate: those of enrolled pods that the View confirms.
    pub(super) fn confirm_identities(
        &self,
        wanted: watch::Sender<Option<Arc<BTreeSet<Identity>>>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (view, pods) = (self.view.clone(), self.pods.clone());
        let (mut view_changes, mut pod_changes) = (self.view_changes.subscribe(), self.pod_changes.subscribe());
        async move {
            loop {
                if let Some(view) = view.load_full() {
                    let identities = pods.load().identities(&view);
                    wanted.send_if_modified(|current| {
                        let is_new = current.as_deref() != Some(&identities);
                        *current = Some(Arc::new(identities));
                        is_new
                    });
                }
                let changed = tokio::select! {
                    changed = view_changes.changed() => changed,
                    changed = pod_changes.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
