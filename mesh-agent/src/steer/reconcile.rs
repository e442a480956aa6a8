//! Writes what was compiled into the kernel on every change, has direct connections ended that are no longer allowed to be
//! direct, and tries again what failed. Never decides what is allowed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_api::ADDRESS_TYPE;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::sync::watch;

use crate::{
    control::{Backoff, SharedControlStatus},
    enrol::SharedPods,
    kernel::{Kernel, KernelError, PodId, SteeringReport},
    view::SharedView,
};

use super::{Classes, Compiled, SharedClasses, compile, flows};

/// How soon the rest is tried again, and the most that is waited.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How often a failure that lasts is told.
const TELL: Duration = Duration::from_secs(60);

/// What is not up to date in the kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum SteeringError {
    /// Maps could not be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Some entries could not be written, or removed.
    #[error("{0} entries could not be changed: the agent is asked instead")]
    Incomplete(u64),
    /// Connections of some pods could not be ended.
    #[error("direct connections that policy denies could not be ended in {pods} pods, of {uid}")]
    Flows {
        /// How many pods.
        pods: usize,
        /// One of them.
        uid: Arc<str>,
        /// Why there.
        source: KernelError,
    },
}

/// The actor; [`Steering::run`] it on the control thread.
#[derive(Debug)]
pub struct Steering {
    kernel: Arc<Kernel>,
    view: SharedView,
    pods: SharedPods,
    view_changes: watch::Receiver<u64>,
    pod_changes: watch::Receiver<u64>,
    classes: Classes,
    shared: SharedClasses,
    slots: usize,
    control: SharedControlStatus,
    /// Until control has said which workloads there are, the agent goes by what it knew before it restarted.
    was_from_disk: bool,
    /// As last compiled.
    compiled: Compiled,
    /// Handshakes that another POLICY has let begin are over by then.
    settled: Instant,
    retry: Backoff,
    /// When a failure was told last.
    told: Option<Instant>,
    failures: Counter,
    /// While a successor takes the pods up nothing is written.
    frozen: watch::Receiver<bool>,
}

impl Steering {
    /// `shared` holds the classes of pods that the kernel has from before a restart; it is kept current. `slots`: how many
    /// service slots the kernel holds. `frozen`: whether all must stay as it is for now. `control`: whether it has confirmed the
    /// View in force.
    ///
    /// # Errors
    /// The maps could not be read.
    pub fn new(
        kernel: Arc<Kernel>,
        (view, view_changes): (SharedView, watch::Receiver<u64>),
        (pods, pod_changes): (SharedPods, watch::Receiver<u64>),
        (shared, frozen): (SharedClasses, watch::Receiver<bool>),
        slots: usize,
        control: SharedControlStatus,
    ) -> Result<Self, KernelError> {
        let last = kernel.last_class()?;
        Ok(Self {
            kernel,
            view,
            pods,
            view_changes,
            pod_changes,
            classes: Classes::after(last),
            shared,
            slots,
            control,
            was_from_disk: false,
            compiled: Compiled::default(),
            settled: Instant::now(),
            retry: Backoff::new(RETRY.0, RETRY.1),
            told: None,
            failures: Counter::default(),
            frozen,
        })
    }

    /// Adds its metrics.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Attempts that left the kernel's tables or direct connections not up to date";
        registry.register("mesh_steering_failures", help, self.failures.clone());
    }

    /// Runs until what feeds it has gone. What could not be done is tried again, also when nothing changes.
    pub async fn run(mut self) {
        loop {
            if self.frozen.wait_for(|is_frozen| !is_frozen).await.is_err() {
                return;
            }
            self.view_changes.borrow_and_update();
            self.pod_changes.borrow_and_update();
            let next = self.attempt();
            let changed = tokio::select! {
                changed = self.view_changes.changed() => changed,
                changed = self.pod_changes.changed() => changed,
                () = tokio::time::sleep(next.unwrap_or_default()), if next.is_some() => Ok(()),
                () = flows::end_late(&self.kernel, &self.pods, &self.compiled, self.settled) => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Brings all up to date; how long to wait until the rest is tried, if there is one.
    fn attempt(&mut self) -> Option<Duration> {
        let result = self.reconcile();
        let Err(error) = result else {
            self.retry.reset();
            return None;
        };
        self.failures.inc();
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            tracing::error!(error = crate::control::causes(&error), "steering is not up to date; it is tried again");
        }
        Some(self.retry.next_wait())
    }

    /// Fills maps that are new before any hook goes by them; others hold what the agent before wrote.
    ///
    /// # Errors
    /// Maps could not be read. What could not be written asks the agent, and is tried again once it runs.
    pub fn prime(&mut self) -> Result<(), KernelError> {
        let Some(view) = self.view.load_full().filter(|_| self.kernel.is_new()) else { return Ok(()) };
        let compiled = compile(&view, &self.pods.load(), &mut self.classes, self.slots);
        let classes = self.classes_of_pods(&compiled);
        self.kernel.apply_steering(&compiled.tables, &classes).map(drop)
    }

    fn reconcile(&mut self) -> Result<(), SteeringError> {
        let Some(view) = self.view.load_full() else { return Ok(()) };
        let mut compiled = compile(&view, &self.pods.load(), &mut self.classes, self.slots);
        compiled.is_from_disk = self.is_from_disk();
        let classes = self.classes_of_pods(&compiled);
        let applied = self.kernel.apply_steering(&compiled.tables, &classes);
        if let Ok(report) = &applied {
            let generation = view.generation;
            let SteeringReport { written, removed, failed } = *report;
            tracing::debug!(generation, written, removed, failed, "steering applied");
            let used: BTreeSet<u32> = compiled.members.iter().map(|member| member.class).collect();
            self.classes.keep(&used);
        }
        if !compiled.judges_like(&self.compiled) {
            self.settled = Instant::now() + flows::HANDSHAKE;
        }
        self.compiled = compiled;
        // Whatever became of the tables: what may not be direct any more is ended.
        let ended = flows::end(&self.kernel, &self.pods.load(), &self.compiled);
        match applied {
            Ok(report) if report.failed > 0 => return Err(SteeringError::Incomplete(report.failed)),
            applied => applied?,
        };
        ended
    }

    /// Control answers type by type, and a View is published after each: what is new in one may lack in the other.
    fn is_from_disk(&mut self) -> bool {
        let control = self.control.load();
        self.was_from_disk |= control.view_cached.is_some();
        let knows_workloads = control.types.iter().any(|one| one.type_url == ADDRESS_TYPE && one.responses > 0);
        self.was_from_disk &= !knows_workloads;
        self.was_from_disk
    }

    /// A pod that the View does not confirm any more gets class 0: all asks the agent.
    fn classes_of_pods(&self, compiled: &Compiled) -> HashMap<PodId, u32> {
        let of_members: HashMap<u32, u32> =
            compiled.members.iter().map(|member| (member.pod.id, member.class)).collect();
        let class = |id: u32| of_members.get(&id).copied().unwrap_or_default();
        let classes = self.pods.load().by_uid.values().map(|pod| (PodId(pod.id), class(pod.id))).collect();
        self.shared.store(Arc::new(of_members));
        classes
    }
}
