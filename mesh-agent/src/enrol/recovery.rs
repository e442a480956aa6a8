//! The pods of before a restart. One that cannot be taken up again stays as the kernel steers it: without a listener it is
//! refused, never let by in the clear. Only a proven death ends steering here.

use std::{collections::HashSet, sync::Arc};

use mesh_api::proto::admin::{Pod as PodMessage, pod_event::Kind};

use crate::kernel::{AdoptedPod, NetworkNamespace, PodId};

use super::{
    EnrolError,
    admission::Before,
    claim::InvalidField,
    error::NodeError,
    pulse::{self, Death, Pulse},
    record::PodRecord,
    registry::Registry,
};

/// A pod that is steered, refused, and tried again.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) record: PodRecord,
    reason: String,
}

impl Failed {
    pub(super) fn describe(&self) -> PodMessage {
        let PodRecord { cookie, claim, .. } = &self.record;
        PodMessage {
            uid: claim.uid.clone(),
            namespace: claim.namespace.clone(),
            name: claim.name.clone(),
            service_account: claim.service_account.clone(),
            addresses: claim.addresses.iter().map(ToString::to_string).collect(),
            network_namespace: claim.network_namespace.path().display().to_string(),
            network_namespace_cookie: *cookie,
            cgroup_path: claim.cgroup_path.display().to_string(),
            probe_ports: claim.probe_ports.iter().copied().map(u32::from).collect(),
            state: format!("failed: {}", self.reason),
            fail_open: false,
        }
    }
}

impl Registry {
    /// Takes up the pods of before a restart.
    pub(super) async fn restore(&mut self, records: Vec<PodRecord>) -> Result<(), NodeError> {
        let adopted = self.wiring.kernel.pods()?;
        self.check_recorded(&records)?;
        // What POLICY says about a pod's class holds until the View comes.
        self.wiring.classes.store(Arc::new(adopted.iter().map(|pod| (pod.pod.0, pod.class)).collect()));
        let numbers = adopted.iter().map(|pod| pod.pod.0).chain(records.iter().map(|record| record.id));
        self.last_id = numbers.fold(self.last_id, u32::max);
        let recorded: HashSet<u32> = records.iter().map(|record| record.id).collect();
        for record in records {
            let uid = record.claim.uid.clone();
            match self.take_up(record.clone()).await {
                Ok(_) => tracing::info!(uid, "pod found again"),
                Err(error) => self.fail_at_start(record, &error)?,
            }
        }
        for AdoptedPod { pod, cookie, .. } in adopted.into_iter().filter(|adopted| !recorded.contains(&adopted.pod.0)) {
            tracing::error!(
                pod = pod.0,
                cookie,
                "a steered pod without a record is refused until it is enrolled or gone"
            );
            if self.handed.is_none() {
                self.refuse_all(pod);
            }
            self.unrecorded.insert(cookie, pod.0);
        }
        if self.handed.is_none() {
            self.bury_unrecorded();
        }
        self.publish_failed();
        Ok(())
    }

    /// Maps that are new know only what records tell of: what else is steered would be let by.
    fn check_recorded(&self, records: &[PodRecord]) -> Result<(), NodeError> {
        let kernel = &self.wiring.kernel;
        if !kernel.is_new() {
            return Ok(());
        }
        for cookie in kernel.steered_namespaces()? {
            if !records.iter().any(|record| record.cookie == cookie) && !kernel.is_namespace_gone(cookie)? {
                let pod = format!("in the network namespace with cookie {cookie}");
                let reason = "it has no record; enrol it or let it end under the agent of before".into();
                return Err(NodeError::NotTakenUp { pod, reason });
            }
        }
        Ok(())
    }

    fn fail_at_start(&mut self, record: PodRecord, error: &EnrolError) -> Result<(), NodeError> {
        let uid = record.claim.uid.clone();
        let is_dead = matches!(error, EnrolError::Dead(_));
        match &self.handed {
            // Buried when this agent is in charge.
            Some(_) if is_dead => {
                self.failed.insert(uid.into(), Failed { record, reason: error.to_string() });
                Ok(())
            }
            _ if !is_dead && (self.wiring.kernel.is_new() || self.is_handed(&uid)) => {
                Err(NodeError::NotTakenUp { pod: uid, reason: error.to_string() })
            }
            _ => {
                self.fail(record, error);
                Ok(())
            }
        }
    }

    async fn take_up(&mut self, record: PodRecord) -> Result<Arc<str>, EnrolError> {
        let PodRecord { id, cookie, claim, sysctls } = record;
        let path = claim.network_namespace.path();
        pulse::check_namespace(&path)?;
        let namespace = NetworkNamespace::open(&path).map_err(EnrolError::Namespace)?;
        if namespace.cookie() != cookie {
            return Err(Death::Namespace.into());
        }
        if !claim.cgroup_path.starts_with(&self.settings.cgroup_root) {
            let reason = "not below the agent's cgroup root any more".into();
            return Err(InvalidField { field: "cgroup_path", reason }.into());
        }
        let pulse = Pulse::new(&claim, &namespace)?;
        let before = if self.is_handed(&claim.uid) { Before::Served } else { Before::Steered };
        self.install(id, claim, namespace, pulse, sysctls, before).await
    }

    /// The dead are withdrawn; all others stay steered, and nothing but the agent may let them pass.
    fn fail(&mut self, record: PodRecord, error: &EnrolError) {
        let uid = record.claim.uid.clone();
        if let EnrolError::Dead(death) = error {
            tracing::info!(uid, %death, "pod died while there was no agent");
            if let Err(error) = self.wiring.kernel.withdraw(PodId(record.id)) {
                tracing::warn!(uid, %error, "dead pod was not removed completely");
            }
            return;
        }
        let reason = error.to_string();
        tracing::error!(uid, reason, "pod of before the restart is refused until it can be taken up again");
        self.refuse_all(PodId(record.id));
        self.failed.insert(uid.into(), Failed { record, reason });
    }

    /// A class of before may have another meaning by now; without one everything asks the agent.
    fn refuse_all(&self, pod: PodId) {
        if let Err(error) = self.wiring.kernel.set_class(pod, 0) {
            tracing::error!(pod = pod.0, %error, "what may pass without the agent was not taken from a failed pod");
        }
    }

    /// Tries all that failed once more.
    pub(super) async fn recover(&mut self) {
        let failed: Vec<_> = self.failed.keys().cloned().collect();
        for uid in failed {
            // Told and logged where it changed.
            self.retry(&uid).await.ok();
        }
        self.bury_unrecorded();
    }

    /// Tries one that failed once more.
    pub(super) async fn retry(&mut self, uid: &str) -> Result<(), EnrolError> {
        let Some(Failed { record, reason }) = self.failed.remove(uid) else { return Ok(()) };
        let result = self.take_up(record.clone()).await;
        match &result {
            Ok(uid) => {
                tracing::info!(uid = &**uid, "pod taken up again");
                self.tell(Kind::Changed, self.describe(&self.enrolled[uid]));
                self.follow_view();
            }
            Err(EnrolError::Dead(_)) => {
                self.failed.insert(uid.into(), Failed { record, reason });
                self.abandon(uid)?;
            }
            Err(error) if error.to_string() == reason => {
                self.failed.insert(uid.into(), Failed { record, reason });
            }
            Err(error) => {
                self.fail(record, error);
                self.failed.get(uid).into_iter().for_each(|failed| self.tell(Kind::Changed, failed.describe()));
            }
        }
        self.publish_failed();
        result.map(drop)
    }

    /// Ends steering of one that failed: it was withdrawn, or is dead.
    pub(super) fn abandon(&mut self, uid: &str) -> Result<(), EnrolError> {
        let Some(failed) = self.failed.remove(uid) else { return Err(EnrolError::Unknown(uid.to_owned())) };
        let steering = self.wiring.kernel.withdraw(PodId(failed.record.id));
        self.wiring.telemetry.forget(failed.record.id);
        let namespace = NetworkNamespace::open(&failed.record.claim.network_namespace.path()).ok();
        let namespace = namespace.filter(|namespace| namespace.cookie() == failed.record.cookie);
        let sysctls = namespace.map_or(Ok(()), |namespace| failed.record.sysctls.restore(&namespace));
        self.publish_failed();
        let stored = self.store_record();
        self.tell(Kind::Withdrawn, failed.describe());
        tracing::info!(uid, "failed pod withdrawn");
        steering.map_err(NodeError::Kernel)?;
        sysctls.map_err(NodeError::Sysctl)?;
        Ok(stored.map_err(NodeError::Record)?)
    }

    /// Removes what is steered for namespaces that are proven gone.
    fn bury_unrecorded(&mut self) {
        let kernel = &self.wiring.kernel;
        self.unrecorded.retain(|cookie, pod| match kernel.is_namespace_gone(*cookie) {
            Ok(true) => {
                tracing::info!(pod, cookie, "the namespace of a pod without a record is gone");
                kernel.withdraw(PodId(*pod)).inspect_err(|error| tracing::warn!(%error, "it was not removed")).is_err()
            }
            Ok(false) => true,
            Err(error) => {
                tracing::debug!(%error, "a pod without a record was not looked at");
                true
            }
        });
    }

    fn publish_failed(&self) {
        let failed = self.failed.len() + self.unrecorded.len();
        if self.wiring.pods.load().failed != failed {
            self.change_pods(|table| table.failed = failed);
        }
    }
}
