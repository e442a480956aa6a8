//! Lists and watches the pods of this node and all namespaces for as long as the agent is in charge. An API server that is
//! late, away or has forgotten changes nothing of what is known.

use std::{collections::HashMap, fmt::Debug, pin::pin, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    ResourceExt,
    core::PartialObjectMeta,
    runtime::watcher::{Config, Event, watcher},
};
use mesh_api::membership::DATAPLANE_MODE;
use tokio_stream::{Stream, StreamExt};

use super::{Cluster, pod::NodePod};
use crate::control::causes;

/// First and longest wait after a failure.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A watch is asked for again after this long, so that a connection that died in silence is noticed.
const WATCH_SECONDS: u32 = 60;
/// Objects of one answer: whole pods pass through memory once, and then only what is kept of them.
const PAGE: u32 = 50;

/// Follows the pods of this node; never ends.
pub(super) async fn pods(cluster: Arc<Cluster>) {
    let config = Config::default().fields(&format!("spec.nodeName={}", cluster.api.node)).page_size(PAGE);
    let events = watcher(cluster.api.pods(), config.timeout(WATCH_SECONDS));
    let mut listed = Vec::new();
    let read = |pod: &Pod| NodePod::read(pod, cluster.api.daemon_set.as_ref());
    let take = |event| match event {
        Event::Init => listed.clear(),
        Event::InitApply(pod) => listed.extend(read(&pod)),
        Event::InitDone => {
            cluster.known.set_pods(std::mem::take(&mut listed));
            // A list is objects as a whole, of which little is kept.
            crate::memory::give_back();
        }
        Event::Apply(pod) => read(&pod).into_iter().for_each(|pod| cluster.known.put_pod(pod)),
        Event::Delete(pod) => cluster.known.remove_pod(&pod.namespace().unwrap_or_default(), &pod.name_any()),
    };
    follow("pods", events, &cluster, take).await;
}

/// Follows the labels of all namespaces; never ends.
pub(super) async fn namespaces(cluster: Arc<Cluster>) {
    let config = Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
    let events = watcher(cluster.api.namespaces(), config);
    let mut listed = HashMap::new();
    let own = cluster.api.daemon_set.as_ref().map(|(namespace, _)| namespace.as_str());
    let look = |namespace: &PartialObjectMeta<Namespace>| {
        if own == Some(namespace.name_any().as_str()) {
            cluster.owner.set_namespace(namespace.metadata.deletion_timestamp.is_some());
        }
        (namespace.name_any(), mode(namespace))
    };
    let take = |event: Event<PartialObjectMeta<Namespace>>| match event {
        Event::Init => listed.clear(),
        Event::InitApply(namespace) => listed.extend([look(&namespace)]),
        Event::InitDone => cluster.known.set_namespaces(std::mem::take(&mut listed)),
        Event::Apply(namespace) => {
            let (name, mode) = look(&namespace);
            cluster.known.put_namespace(name, mode);
        }
        Event::Delete(namespace) => cluster.known.remove_namespace(&namespace.name_any()),
    };
    follow("namespaces", events, &cluster, take).await;
}

fn mode(namespace: &impl ResourceExt) -> Option<String> {
    namespace.labels().get(DATAPLANE_MODE).cloned()
}

/// Takes every event; after a failure the watcher goes on by itself, when it is asked again.
pub(super) async fn follow<K: Debug>(
    kind: &'static str,
    events: impl Stream<Item = kube::runtime::watcher::Result<Event<K>>>,
    cluster: &Cluster,
    mut take: impl FnMut(Event<K>),
) {
    let mut events = pin!(events);
    let (mut wait, mut is_failing) = (WAITS.0, false);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // What begins with a list has not been answered yet.
                if !matches!(event, Event::Init) {
                    wait = WAITS.0;
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(kind, "watched again");
                    }
                }
                let is_whole = !matches!(event, Event::Init | Event::InitApply(_));
                take(event);
                if is_whole {
                    cluster.changed.notify_one();
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(
                        kind,
                        error = causes(&error),
                        "cannot be watched; what was seen last stays in force"
                    );
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(WAITS.1);
            }
        }
    }
}
