//! What the API server has said last: the pods of this node, and the label of every namespace.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;

use super::pod::NodePod;

/// Namespace and name.
type Name = (String, String);

/// Pods of this node that are not enrolled, and why; read without a lock.
pub type SharedOutside = Arc<ArcSwap<HashMap<Name, String>>>;

/// Shared by the watches, the follower and the plug-in's questions.
#[derive(Debug, Default)]
pub(super) struct Known {
    state: Mutex<State>,
    outside: SharedOutside,
}

#[derive(Debug, Default)]
struct State {
    /// None: they have not been listed yet.
    pods: Option<HashMap<Name, Arc<NodePod>>>,
    /// As above; the label by name.
    namespaces: Option<HashMap<String, Option<String>>>,
}

impl Known {
    fn with<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        what(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Every pod with its namespace's label; none until both kinds were listed. A pod whose namespace is not known yet is left
    /// out.
    pub(super) fn all(&self) -> Option<Vec<(Arc<NodePod>, Option<String>)>> {
        self.with(|state| {
            let (pods, namespaces) = (state.pods.as_ref()?, state.namespaces.as_ref()?);
            let with_mode = |pod: &Arc<NodePod>| Some((pod.clone(), namespaces.get(&pod.namespace)?.clone()));
            Some(pods.values().filter_map(with_mode).collect())
        })
    }

    pub(super) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<NodePod>> {
        self.with(|state| state.pods.as_ref()?.get(&(namespace.to_owned(), name.to_owned())).cloned())
    }

    /// The label of a namespace; the outer none: it is not known.
    pub(super) fn mode(&self, namespace: &str) -> Option<Option<String>> {
        self.with(|state| state.namespaces.as_ref()?.get(namespace).cloned())
    }

    /// Whether a pod of the agent's own DaemonSet is on this node: then the setting names the right one.
    pub(super) fn has_agent(&self) -> bool {
        self.with(|state| state.pods.iter().flat_map(HashMap::values).any(|pod| pod.is_agent))
    }

    pub(super) fn set_pods(&self, pods: Vec<NodePod>) {
        let named = pods.into_iter().map(|pod| ((pod.namespace.clone(), pod.name.clone()), Arc::new(pod)));
        self.with(|state| state.pods = Some(named.collect()));
    }

    pub(super) fn put_pod(&self, pod: NodePod) {
        let name = (pod.namespace.clone(), pod.name.clone());
        self.with(|state| state.pods.get_or_insert_default().insert(name, Arc::new(pod)));
    }

    pub(super) fn remove_pod(&self, namespace: &str, name: &str) {
        self.with(|state| state.pods.get_or_insert_default().remove(&(namespace.to_owned(), name.to_owned())));
    }

    pub(super) fn set_namespaces(&self, namespaces: HashMap<String, Option<String>>) {
        self.with(|state| state.namespaces = Some(namespaces));
    }

    pub(super) fn put_namespace(&self, name: String, mode: Option<String>) {
        self.with(|state| state.namespaces.get_or_insert_default().insert(name, mode));
    }

    /// What was asked for by name: a watch that has listed nothing yet still has to say the rest.
    pub(super) fn learn_namespace(&self, name: &str, mode: Option<String>) {
        self.with(|state| state.namespaces.as_mut().map(|all| all.insert(name.to_owned(), mode)));
    }

    pub(super) fn remove_namespace(&self, name: &str) {
        self.with(|state| state.namespaces.get_or_insert_default().remove(name));
    }

    pub(super) fn outside(&self) -> SharedOutside {
        self.outside.clone()
    }
}
