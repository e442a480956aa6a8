//! Enrolment: which pods of this node are steered. Validates, opens what the kernel needs inside the pod's namespace,
//! remembers across restarts, notices deaths. Never waits for a View.

mod admission;
mod claim;
mod descriptors;
mod error;
mod handover;
mod older;
mod others;
mod pulse;
mod record;
mod recovery;
mod registry;
mod requests;
#[cfg(test)]
mod scripted;
mod sysctl;
mod wakeups;

pub use claim::{Claim, InvalidField, NamespaceSource};
pub use descriptors::{DescriptorError, check_room, raise_limit};
pub use error::{Conflict, EnrolError, NodeError};
pub use handover::{Handed, HandedListener, HandedPod};
pub use older::{SharedOlder, count_open};
pub use pulse::Death;
#[cfg(any(test, fuzzing))]
pub(crate) use record::Record;
pub use record::{RecordError, forget_all};
pub use registry::{Registry, RegistrySettings, Wiring};
pub use requests::{Enrolment, FailOpen};
#[cfg(test)]
pub(crate) use scripted::Script;
pub use sysctl::{SysctlError, open_settings};
pub(crate) use wakeups::Wakeups;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use arc_swap::ArcSwap;
use mesh_api::Identity;

use crate::{
    kernel::NetworkNamespace,
    view::{View, Workload},
};

/// One enrolled pod of this node. What is here was said by the runtime and checked against the kernel.
#[derive(Debug)]
pub struct Pod {
    /// Number of this enrolment in the kernel's maps; never used twice while the agent's pins live.
    pub id: u32,
    /// The runtime's key of it.
    pub uid: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name in it.
    pub name: String,
    /// Service account: with the namespace, its identity.
    pub service_account: String,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Held open.
    pub network_namespace: NetworkNamespace,
    /// Its cgroup, all links resolved.
    pub cgroup_path: std::path::PathBuf,
    /// Ports that the kubelet probes.
    pub probe_ports: Vec<u16>,
}

/// All enrolled pods; immutable, swapped on every change.
#[derive(Debug, Default, Clone)]
pub struct PodTable {
    /// By the runtime's key.
    pub by_uid: HashMap<Arc<str>, Arc<Pod>>,
    /// By each address: those that pods were enrolled with, and others of their interfaces.
    pub by_address: HashMap<IpAddr, Arc<Pod>>,
    /// Pods of before a restart that could not be taken up again: steered and refused, and in none of the maps above.
    pub failed: usize,
}

/// The pods of now, shared by all threads. Read without a lock.
pub type SharedPods = Arc<ArcSwap<PodTable>>;

impl Pod {
    /// `namespace/name`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The workload that the View has for this pod: the same address, namespace, name and service account. `None`: the
    /// pod is *pending*.
    pub fn workload<'a>(&self, view: &'a View) -> Option<&'a Arc<Workload>> {
        self.addresses.iter().filter_map(|address| view.workload_at(*address)).find(|workload| {
            workload.namespace == self.namespace
                && workload.name == self.name
                && workload.identity.service_account() == self.service_account
        })
    }
}

impl PodTable {
    /// The identities that must have a certificate: those of pods that the View confirms.
    pub fn identities(&self, view: &View) -> BTreeSet<Identity> {
        self.by_uid.values().filter_map(|pod| pod.workload(view)).map(|workload| workload.identity.clone()).collect()
    }

    fn insert(&mut self, pod: &Arc<Pod>) {
        self.by_uid.insert(pod.uid.clone(), pod.clone());
        for address in &pod.addresses {
            self.by_address.insert(*address, pod.clone());
        }
    }

    /// The pod's other addresses are these, and no more.
    fn put_others(&mut self, pod: &Arc<Pod>, others: &[IpAddr]) {
        self.by_address.retain(|address, of| of.uid != pod.uid || pod.addresses.contains(address));
        self.by_address.extend(others.iter().map(|address| (*address, pod.clone())));
    }

    /// Forgets a pod that the agent in charge has withdrawn.
    pub(crate) fn forget(&mut self, uid: &str) {
        if let Some(pod) = self.by_uid.get(uid).cloned() {
            self.remove(&pod);
        }
    }

    fn remove(&mut self, pod: &Pod) {
        self.by_uid.remove(&pod.uid);
        self.by_address.retain(|_, other| other.uid != pod.uid);
    }
}
