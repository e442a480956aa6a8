//! Tells authors what became of their objects, while this replica leads: a condition on every AuthorizationPolicy, an event
//! for every object that is refused. Looks at what is said already and writes only what is not, so that a new leader goes on
//! where the old one stopped.

use std::{collections::HashSet, sync::Arc, time::Duration};

use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    WRITER,
    kinds::Kind,
    store::{Handle, Seen, Store},
    verdict,
};
use crate::{metrics::Metrics, objects::metadata::Name};

/// Changes that come together are told together.
const QUIET: Duration = Duration::from_millis(100);
/// What could not be written is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);

/// Writes to objects.
pub struct Teller {
    /// Who is told.
    pub client: Client,
    /// What there is to tell.
    pub store: Arc<Store>,
    /// This replica.
    pub replica: String,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Names of the events that were written since this replica leads.
    pub told: HashSet<String>,
}

impl Teller {
    /// Tells for as long as the daemon runs.
    pub async fn follow(mut self, mut leads: watch::Receiver<bool>) {
        let mut changes = self.store.changes();
        loop {
            changes.mark_unchanged();
            let is_leader = *leads.borrow_and_update();
            if !is_leader {
                self.told.clear();
            }
            let is_done = !is_leader || !self.store.is_complete() || self.tell(&leads).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                changed = leads.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN), if !is_done => {}
            }
            tokio::time::sleep(QUIET).await;
        }
    }

    /// Tells all that is not said yet; false when something could not be.
    async fn tell(&mut self, leads: &watch::Receiver<bool>) -> bool {
        let (mut is_done, mut current) = (true, HashSet::new());
        for (kind, name, seen) in self.store.told() {
            let Some(handle) = seen.handle.as_deref() else { continue };
            if !*leads.borrow() {
                return true;
            }
            if kind.name == "AuthorizationPolicy"
                && let Some(conditions) = verdict::conditions(&seen, handle)
            {
                is_done &= self.noted("condition", kind, &name, self.write(kind, &name, handle, conditions).await);
            }
            if !seen.problems.is_empty() {
                is_done &= self.report(kind, &name, &seen, handle, &mut current).await;
            }
        }
        self.told = current;
        is_done
    }

    async fn report(
        &self,
        kind: &Kind,
        name: &Name,
        seen: &Seen,
        handle: &Handle,
        current: &mut HashSet<String>,
    ) -> bool {
        let event = verdict::event(kind, name, seen, handle, &self.replica);
        let word = event.metadata.name.clone().unwrap_or_default();
        let is_done = self.told.contains(&word) || {
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            let written = events.create(&PostParams::default(), &event).await.map(drop);
            self.noted("event", kind, name, written)
        };
        if is_done {
            current.insert(word);
        }
        is_done
    }

    async fn write(
        &self,
        kind: &Kind,
        name: &Name,
        handle: &Handle,
        conditions: Vec<Value>,
    ) -> Result<(), kube::Error> {
        let (group, version) = handle.api_version.rsplit_once('/').unwrap_or(("", &handle.api_version));
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: handle.api_version.clone(),
            kind: kind.name.to_owned(),
            plural: kind.plural.to_owned(),
        };
        let mut metadata = json!({"name": name.name, "namespace": name.namespace});
        if !handle.has_shared_conditions {
            // The list is written as a whole: not over what another has said meanwhile.
            metadata["resourceVersion"] = handle.resource_version.clone().into();
        }
        let body = json!({
            "apiVersion": handle.api_version,
            "kind": kind.name,
            "metadata": metadata,
            "status": {"conditions": conditions},
        });
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &name.namespace, &resource);
        let params = PatchParams::apply(WRITER).force();
        api.patch_status(&name.name, &params, &Patch::Apply(&body)).await.map(drop)
    }

    /// Counts what was written; true unless it has to be tried again.
    fn noted(&self, what: &'static str, kind: &Kind, name: &Name, written: Result<(), kube::Error>) -> bool {
        match written {
            Ok(()) => {
                self.metrics.kubernetes_written(what);
                true
            }
            // Said already, gone, or changed: then its next form is on the way here.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
            Err(error) => {
                let reason = super::sentence(&error);
                tracing::warn!(object = %format!("{} {name}", kind.name), what, reason, "its author could not be told");
                false
            }
        }
    }
}
