//! Lists and watches one kind for as long as the daemon runs, and puts what it sees into the store. Survives an API
//! server that is not there yet, goes away or has forgotten the version we were at, and a kind that comes and goes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::{
    Api, Client, ResourceExt,
    api::DynamicObject,
    runtime::watcher::{self, Event, watcher},
};
use tokio_stream::StreamExt;

use super::{
    kinds::{Kind, Served},
    read,
    store::{Seen, Store},
};
use crate::{metrics::Metrics, objects::metadata::Name};

/// First and longest wait after a failure: the API server's return is noticed within the longer.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A kind that is missing is looked for this often.
const MISSING: Duration = Duration::from_secs(2);
/// A watch that has not failed for this long is going on: when it is resumed, nothing is said until an object changes.
/// Longer than an attempt to connect and the longest wait together.
const CALM: Duration = Duration::from_secs(7);
/// A watch is asked for again after this long, so that a connection that died in silence is noticed.
const WATCH_SECONDS: u32 = 60;

/// One kind's watch.
pub struct KindWatch {
    /// What is watched.
    pub kind: &'static Kind,
    /// Who is asked.
    pub client: Client,
    /// Where it is put.
    pub store: Arc<Store>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl KindWatch {
    /// Follows the kind; never returns.
    pub async fn follow(self) {
        let mut wait = WAITS.0;
        loop {
            match self.kind.served(&self.client).await {
                Ok(Some(served)) => self.follow_served(&served, &mut wait).await,
                Ok(None) => {
                    if self.store.missing(self.kind) {
                        tracing::warn!(kind = %self.kind, "the API server does not have this kind; it is looked for until it has");
                    }
                    tokio::time::sleep(MISSING).await;
                    continue;
                }
                Err(error) => self.failed(&error),
            }
            pause(&mut wait).await;
        }
    }

    /// Follows it in one version until the API server says that there is no such thing.
    async fn follow_served(&self, served: &Served, wait: &mut Duration) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &served.resource);
        let mut events = Box::pin(watcher(api, watcher::Config::default().timeout(WATCH_SECONDS)));
        let mut listed = BTreeMap::new();
        loop {
            let next = tokio::select! {
                next = events.next() => next,
                () = tokio::time::sleep(CALM), if self.store.is_failing(self.kind) => {
                    self.is_back();
                    continue;
                }
            };
            let Some(event) = next else { return };
            match event {
                Ok(event) => {
                    if !matches!(event, Event::Init) {
                        *wait = WAITS.0;
                    }
                    self.take(event, served, &mut listed);
                }
                Err(error) => {
                    self.failed(&error);
                    if code(&error) == Some(404) {
                        return;
                    }
                    pause(wait).await;
                }
            }
        }
    }

    fn take(&self, event: Event<DynamicObject>, served: &Served, listed: &mut BTreeMap<Name, Seen>) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => drop(listed.insert(key(&object), read::object(served, object))),
            Event::InitDone => {
                self.metrics.kubernetes_listed(self.kind.name);
                tracing::info!(kind = %self.kind, objects = listed.len(), "listed");
                self.store.replace(self.kind, std::mem::take(listed));
            }
            Event::Apply(object) => {
                let name = key(&object);
                self.store.put(self.kind, name, read::object(served, object));
                self.is_back();
            }
            Event::Delete(object) => {
                self.store.remove(self.kind, &key(&object));
                self.is_back();
            }
        }
    }

    fn is_back(&self) {
        if self.store.watched(self.kind) {
            tracing::info!(kind = %self.kind, "watched again");
        }
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) {
        self.metrics.kubernetes_failed(self.kind.name);
        let reason = crate::kubernetes::sentence(error);
        if self.store.failing(self.kind, reason.clone()) {
            tracing::warn!(kind = %self.kind, reason, "cannot be watched; what was seen last stays in force");
        }
    }
}

async fn pause(wait: &mut Duration) {
    // Replicas and kinds that lost the API server together come back one after the other.
    tokio::time::sleep(wait.mul_f64(0.5 + jitter())).await;
    *wait = (*wait * 2).min(WAITS.1);
}

/// A number in 0..0.5 that differs from call to call.
fn jitter() -> f64 {
    let nanoseconds = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
    f64::from(nanoseconds % 1_000) / 2_000.0
}

fn key(object: &DynamicObject) -> Name {
    Name::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// The HTTP status behind a failure of a watch.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}
