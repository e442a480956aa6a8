//! The one place that changes which pods are enrolled. Takes requests one after the other, looks after the pods' pulses,
//! and follows the View for what depends on it (pending or ready, fail-open, connections older than enrolment).

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mesh_api::proto::admin::{EnrolRequest, Pod as PodMessage, PodEvent, pod_event::Kind};
use tokio::{
    sync::{Notify, broadcast, mpsc, watch},
    task::JoinSet,
};

use crate::{
    kernel::{Kernel, PodId},
    path::{WorkerError, WorkerHandle},
    steer::SharedClasses,
    takeover::Predecessors,
    telemetry::Telemetry,
    view::SharedView,
};

use super::{
    EnrolError, Enrolment, Pod, SharedOlder, SharedPods,
    claim::Claim,
    error::NodeError,
    handover::{Handed, Waiting},
    older,
    others::Others,
    pulse::{Death, Pulse},
    record::{PodRecord, Record},
    recovery::Failed,
    requests::{FailOpen, Request},
    sysctl::SavedSysctls,
    wakeups::Wakeups,
};

/// Pulses are looked at this often even when nothing woke the registry: some ends (an unmount in another mount
/// namespace) leave no event. A death is answered within 2 s.
const LOOK: Duration = Duration::from_secs(1);
/// Events that a slow watcher may be behind.
const EVENTS: usize = 1024;

/// Where the registry works.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    /// The agent's cgroup root, all links resolved.
    pub cgroup_root: PathBuf,
    /// File that outlives a restart.
    pub record: PathBuf,
}

/// What the registry acts on.
#[derive(Debug)]
pub struct Wiring {
    /// Steering.
    pub kernel: Arc<Kernel>,
    /// Who serves the listeners, by worker number.
    pub workers: Arc<[WorkerHandle]>,
    /// The pods of now.
    pub pods: SharedPods,
    /// The View of now.
    pub view: SharedView,
    /// Wakes the registry for a new View.
    pub view_changes: watch::Receiver<u64>,
    /// Raised at every change of `pods`.
    pub pod_changes: watch::Sender<u64>,
    /// What `steer` made of the pods, written again when a pod is.
    pub classes: SharedClasses,
    /// Told when a handshake has ended that was under way at its pod's enrolment.
    pub unseen: Arc<Notify>,
    /// Metrics series of a dead pod are forgotten there.
    pub telemetry: Arc<Telemetry>,
    /// The agents before, while they drain.
    pub predecessors: Predecessors,
}

/// One enrolled pod with all that its end needs.
#[derive(Debug)]
pub(super) struct Enrolled {
    pub(super) pod: Arc<Pod>,
    pub(super) claim: Claim,
    pub(super) sysctls: SavedSysctls,
    pub(super) pulse: Pulse,
    pub(super) older: HashSet<u64>,
    pub(super) others: Others,
    /// As last told to watchers.
    pub(super) is_ready: bool,
    /// As last written to the kernel.
    pub(super) is_fail_open: bool,
}

/// The actor; [`Registry::run`] it on the control thread.
#[derive(Debug)]
pub struct Registry {
    pub(super) settings: RegistrySettings,
    pub(super) wiring: Wiring,
    /// Cookies of the namespaces that are the node's own.
    pub(super) node_namespaces: HashSet<u64>,
    pub(super) enrolled: HashMap<Arc<str>, Enrolled>,
    /// Pods of before the restart that are steered and refused until they can be taken up again.
    pub(super) failed: HashMap<Arc<str>, Failed>,
    /// Numbers of steered pods that no record tells of, by the cookie of their namespace.
    pub(super) unrecorded: HashMap<u64, u32>,
    pub(super) last_id: u32,
    /// From the agent before, for pods that are being taken up.
    pub(super) handed: Option<Handed>,
    /// Listeners that are accepted on when this agent is in charge; none: it is.
    pub(super) waiting: Option<Vec<Waiting>>,
    older: SharedOlder,
    wakeups: Wakeups,
    events: broadcast::Sender<PodEvent>,
    requests: mpsc::Receiver<Request>,
}

impl Registry {
    /// Starts with the pods that were enrolled before and still live; what the kernel holds of others is removed. `handed`:
    /// what the agent that is still in charge has handed over. Nothing is accepted before [`Registry::accept`].
    ///
    /// # Errors
    /// The record, the kernel's maps or inotify cannot be read. A pod that cannot be taken up again stays steered, is refused,
    /// and is tried again; it is an error when the agent before serves it, or when only that one's programs would refuse it.
    pub async fn start(
        settings: RegistrySettings,
        wiring: Wiring,
        handed: Option<Handed>,
    ) -> Result<(Self, Enrolment), NodeError> {
        let (enrolment, requests) = Enrolment::channel();
        let record = Record::load(&settings.record)?;
        let wakeups = Wakeups::new().map_err(NodeError::Wakeups)?;
        let mut registry = Self {
            node_namespaces: super::admission::node_namespaces(&wiring.kernel),
            settings,
            wiring,
            enrolled: HashMap::new(),
            failed: HashMap::new(),
            unrecorded: HashMap::new(),
            last_id: record.last_id,
            handed,
            waiting: Some(Vec::new()),
            older: SharedOlder::default(),
            wakeups,
            events: broadcast::channel(EVENTS).0,
            requests,
        };
        registry.restore(record.pods).await?;
        Ok((registry, enrolment))
    }

    /// Connections older than their pod's enrolment; stays current while the registry runs.
    pub fn older(&self) -> SharedOlder {
        self.older.clone()
    }

    /// Serves until the last [`Enrolment`] is dropped.
    pub async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.follow_view();
        self.follow_addresses();
        loop {
            self.wakeups.set(&self.watched_places());
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::HandOver(answer, taken)) => if self.hand_over(answer, taken).await { return },
                    Some(request) => self.answer(request).await,
                    None => return,
                },
                () = self.wakeups.next() => self.bury().await,
                _ = look.tick() => {
                    self.bury().await;
                    self.follow_addresses();
                }
                () = self.wiring.unseen.notified() => self.add_unseen(),
                changed = self.wiring.view_changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow_view();
                    self.follow_addresses();
                }
            }
        }
    }

    async fn answer(&mut self, request: Request) {
        // Whoever asked may have gone; what was done stays done.
        match request {
            Request::Enrol(request, fail_open, answer) => drop(answer.send(self.enrol(&request, fail_open).await)),
            Request::SetFailOpen(uid, asks, answer) => drop(answer.send(self.set_fail_open(&uid, asks))),
            Request::Withdraw(uid, answer) => drop(answer.send(self.withdraw(&uid).await)),
            Request::List(answer) => drop(answer.send((self.list(), self.events.subscribe()))),
            // Ends the registry: seen to in `run`.
            Request::HandOver(..) => {}
        }
    }

    async fn enrol(&mut self, request: &EnrolRequest, fail_open: FailOpen) -> Result<(), EnrolError> {
        let claim = Claim::read(request, &self.settings.cgroup_root)?;
        // Who died a moment ago must not be in the way.
        self.bury().await;
        if let Some(enrolled) = self.enrolled.get(claim.uid.as_str()) {
            return super::admission::same_again(&enrolled.claim, &claim);
        }
        if let Some(failed) = self.failed.get(claim.uid.as_str()) {
            super::admission::same_again(&failed.record.claim, &claim)?;
            return self.retry(claim.uid.as_str()).await;
        }
        if fail_open == FailOpen::OrRefuse {
            self.check_fail_open(&claim)?;
        }
        let uid = self.admit(claim).await?;
        if let Err(error) = self.store_record() {
            self.withdraw(&uid).await?;
            return Err(NodeError::Record(error).into());
        }
        let enrolled = &self.enrolled[&uid];
        tracing::info!(uid = &*uid, namespace = enrolled.pod.namespace, name = enrolled.pod.name, "pod enrolled");
        self.tell(Kind::Enrolled, self.describe(enrolled));
        self.follow_view();
        Ok(())
    }

    async fn withdraw(&mut self, uid: &str) -> Result<(), EnrolError> {
        let Some(mut enrolled) = self.enrolled.remove(uid) else { return self.abandon(uid) };
        enrolled.is_ready = false;
        let closing = PodMessage { state: "closing".into(), ..self.describe(&enrolled) };
        self.tell(Kind::Changed, closing.clone());
        let result = self.dismantle(&enrolled).await;
        self.publish_older();
        let stored = self.store_record();
        self.tell(Kind::Withdrawn, closing);
        tracing::info!(uid, "pod withdrawn");
        result?;
        Ok(stored.map_err(NodeError::Record)?)
    }

    /// Everything of a pod goes. While connections are being closed, new ones are refused, not let by in the clear.
    async fn dismantle(&self, enrolled: &Enrolled) -> Result<(), NodeError> {
        let pod = &enrolled.pod;
        // First: a connection that resolves from now on finds no such pod, one that did before is known and cut.
        self.change_pods(|table| table.remove(pod));
        let ended = self.withdraw_from_workers(&pod.uid).await;
        let steering = self.wiring.kernel.withdraw(PodId(pod.id));
        self.tell_change();
        self.wiring.telemetry.forget(pod.id);
        let sysctls = enrolled.sysctls.restore(&pod.network_namespace);
        steering?;
        sysctls?;
        Ok(ended?)
    }

    /// From all at once: each waits for its last connection.
    pub(super) async fn withdraw_from_workers(&self, uid: &Arc<str>) -> Result<(), WorkerError> {
        let mut ending = JoinSet::new();
        for number in 0..self.wiring.workers.len() {
            let (workers, uid) = (self.wiring.workers.clone(), uid.clone());
            ending.spawn(async move { workers[number].withdraw(uid).await });
        }
        // An agent that drains holds connections of the pod, too.
        let (ended, ()) = tokio::join!(ending.join_all(), self.wiring.predecessors.withdraw(uid));
        // A worker that has ended holds nothing any more; the others must still let go.
        ended.into_iter().collect()
    }

    /// Removes pods that have died; tries again those that failed.
    async fn bury(&mut self) {
        let mut dead: Vec<(Arc<str>, Death)> = Vec::new();
        for (uid, enrolled) in &mut self.enrolled {
            if let Err(death) = enrolled.pulse.check() {
                dead.push((uid.clone(), death));
            }
        }
        for (uid, death) in dead {
            tracing::info!(uid = &*uid, %death, "pod died");
            if let Err(error) = self.withdraw(&uid).await {
                tracing::warn!(uid = &*uid, %error, "dead pod was not removed completely");
            }
        }
        self.recover().await;
    }

    /// What depends on the View: readiness, whether fail-open is allowed, older connections.
    pub(super) fn follow_view(&mut self) {
        self.wiring.view_changes.borrow_and_update();
        let Some(view) = self.wiring.view.load_full() else { return };
        let mut changed = Vec::new();
        let classes = self.wiring.classes.load();
        for enrolled in self.enrolled.values_mut() {
            let is_ready = enrolled.pod.workload(&view).is_some();
            if std::mem::replace(&mut enrolled.is_ready, is_ready) != is_ready {
                changed.push(enrolled.pod.uid.clone());
            }
            older::close(&view, enrolled);
            let is_fail_open = enrolled.claim.is_fail_open && view.mesh.allow_fail_open;
            if is_fail_open != enrolled.is_fail_open {
                enrolled.is_fail_open = is_fail_open;
                let class = classes.get(&enrolled.pod.id).copied().unwrap_or_default();
                if let Err(error) = super::admission::steer(&self.wiring.kernel, enrolled, class) {
                    tracing::error!(uid = &*enrolled.pod.uid, %error, "fail-open of a pod was not changed");
                }
            }
        }
        for uid in changed {
            self.tell(Kind::Changed, self.describe(&self.enrolled[&uid]));
        }
        self.publish_older();
    }

    /// Handshakes that were under way at enrolment and have ended: their connections are older than it, too.
    fn add_unseen(&mut self) {
        let unseen = older::unseen(&self.wiring.kernel).unwrap_or_else(|error| {
            tracing::warn!(%error, "connections whose handshake began before enrolment were not judged");
            Vec::new()
        });
        for (pod, socket) in unseen {
            if let Some(enrolled) = self.enrolled.values_mut().find(|enrolled| enrolled.pod.id == pod) {
                enrolled.older.insert(socket);
            }
        }
        self.follow_view();
    }

    fn watched_places(&self) -> HashSet<PathBuf> {
        let pulses = self.enrolled.values().map(|enrolled| &enrolled.pulse);
        pulses.flat_map(|pulse| pulse.places().map(PathBuf::from).chain([pulse.events_file()])).collect()
    }

    fn publish_older(&self) {
        let all = self.enrolled.values().filter(|enrolled| !enrolled.older.is_empty());
        self.older.store(Arc::new(all.map(|enrolled| (enrolled.pod.uid.clone(), enrolled.older.clone())).collect()));
    }

    pub(super) fn change_pods(&self, change: impl FnOnce(&mut super::PodTable)) {
        let mut table = super::PodTable::clone(&self.wiring.pods.load());
        change(&mut table);
        self.wiring.pods.store(Arc::new(table));
    }

    /// Wakes who follows the pods: only once the kernel knows what the table says.
    pub(super) fn tell_change(&self) {
        self.wiring.pod_changes.send_modify(|generation| *generation += 1);
    }

    pub(super) fn store_record(&self) -> Result<(), super::RecordError> {
        let mut record = Record { last_id: self.last_id, ..Record::new()? };
        record.pods.extend(self.enrolled.values().map(|enrolled| PodRecord {
            id: enrolled.pod.id,
            cookie: enrolled.pod.network_namespace.cookie(),
            claim: enrolled.claim.clone(),
            sysctls: enrolled.sysctls.clone(),
        }));
        record.pods.extend(self.failed.values().map(|failed| failed.record.clone()));
        record.pods.sort_by_key(|pod| pod.id);
        record.store(&self.settings.record)
    }

    fn list(&self) -> Vec<PodMessage> {
        let mut pods: Vec<_> = self.enrolled.values().map(|enrolled| self.describe(enrolled)).collect();
        pods.extend(self.failed.values().map(Failed::describe));
        pods.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        pods
    }

    pub(super) fn tell(&self, kind: Kind, pod: PodMessage) {
        // Nobody may be watching.
        let _ = self.events.send(PodEvent { kind: kind.into(), pod: Some(pod) });
    }

    pub(super) fn describe(&self, enrolled: &Enrolled) -> PodMessage {
        let Enrolled { pod, claim, others, is_ready, is_fail_open, .. } = enrolled;
        PodMessage {
            uid: pod.uid.to_string(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: pod.service_account.clone(),
            addresses: pod.addresses.iter().chain(&others.steered).map(ToString::to_string).collect(),
            network_namespace: claim.network_namespace.path().display().to_string(),
            network_namespace_cookie: pod.network_namespace.cookie(),
            cgroup_path: pod.cgroup_path.display().to_string(),
            probe_ports: pod.probe_ports.iter().copied().map(u32::from).collect(),
            state: if *is_ready { "ready" } else { "pending" }.into(),
            fail_open: *is_fail_open,
        }
    }
}
