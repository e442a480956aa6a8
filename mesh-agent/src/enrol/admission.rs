//! How a claim becomes an enrolled pod, step by step, each undone when a later one fails. Nothing of the pod is steered
//! before its listeners are in place.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use mesh_api::proto::admin::pod_event::Kind;

use crate::{
    control::causes,
    kernel::{Kernel, Listener, NetworkNamespace, PodId, PodSteering, listener},
};

use super::{
    EnrolError, Pod,
    claim::Claim,
    descriptors,
    error::{Conflict, NodeError},
    handover::HandedListener,
    older,
    others::Others,
    pulse::Pulse,
    registry::{Enrolled, Registry},
    sysctl::SavedSysctls,
};

/// What each pod's address gets from each worker.
const KINDS: [Listener; 3] = [Listener::Outbound, Listener::Plaintext, Listener::Hbone];

/// Cookies of the namespaces that no pod of its own can have: the node's, the agent's, and the machine's first process's.
pub(super) fn node_namespaces(kernel: &Kernel) -> HashSet<u64> {
    let own = [NetworkNamespace::current(), NetworkNamespace::open(Path::new("/proc/1/ns/net"))];
    let own = own.into_iter().flatten().map(|namespace| namespace.cookie());
    own.chain([kernel.node_namespace()]).collect()
}

/// The same uid a second time: fine when it asks for the same.
///
/// # Errors
/// A field differs.
pub(super) fn same_again(enrolled: &Claim, claim: &Claim) -> Result<(), EnrolError> {
    match enrolled.difference(claim) {
        None => Ok(()),
        Some(field) => Err(Conflict::Differs { uid: claim.uid.clone(), field }.into()),
    }
}

/// Writes how a pod is steered into the kernel's maps. A new pod's class is 0, all asks the agent, until `steer` has one.
pub(super) fn steer(kernel: &Kernel, enrolled: &Enrolled, class: u32) -> Result<(), EnrolError> {
    let pod = &enrolled.pod;
    let of_family = |is_v4: bool| pod.addresses.iter().find(move |address| address.is_ipv4() == is_v4);
    let (v4, v6) = (of_family(true).and_then(as_v4), of_family(false).and_then(as_v6));
    let steering = PodSteering {
        pod: PodId(pod.id),
        namespace: pod.network_namespace.as_fd(),
        cookie: pod.network_namespace.cookie(),
        v4,
        v6,
        other_addresses: enrolled.others.steered.clone(),
        cgroups: vec![enrolled.claim.cgroup()?],
        class,
        probe_ports: pod.probe_ports.clone(),
        fail_open: enrolled.is_fail_open,
    };
    Ok(kernel.enrol(&steering).map_err(NodeError::Kernel)?)
}

fn as_v4(address: &IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(v4) = address { Some(*v4) } else { None }
}

fn as_v6(address: &IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(v6) = address { Some(*v6) } else { None }
}

/// What the kernel holds of a pod that is about to be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing: a failure leaves nothing.
    New,
    /// It is steered: a failure leaves it so, and refused.
    Steered,
    /// The agent that is still in charge serves it: a failure leaves it to that one.
    Served,
}

impl Registry {
    /// Takes a pod in that is not enrolled.
    pub(super) async fn admit(&mut self, claim: Claim) -> Result<Arc<str>, EnrolError> {
        let namespace = NetworkNamespace::open(&claim.network_namespace.path()).map_err(EnrolError::Namespace)?;
        self.check_conflicts(&claim, &namespace)?;
        self.yield_addresses(&claim.addresses);
        let listeners = KINDS.len() * self.wiring.workers.len() * claim.addresses.len();
        descriptors::check_room(listeners as u64)?;
        let pulse = Pulse::new(&claim, &namespace)?;
        let sysctls = SavedSysctls::change(&namespace).map_err(NodeError::Sysctl)?;
        let cookie = namespace.cookie();
        if let Some(id) = self.unrecorded.get(&cookie).copied() {
            let uid = self.install(id, claim, namespace, pulse, sysctls, Before::Steered).await?;
            self.unrecorded.remove(&cookie);
            return Ok(uid);
        }
        self.last_id += 1;
        let id = self.last_id;
        self.install(id, claim, namespace, pulse, sysctls, Before::New).await
    }

    fn check_conflicts(&self, claim: &Claim, namespace: &NetworkNamespace) -> Result<(), EnrolError> {
        if self.node_namespaces.contains(&namespace.cookie()) {
            return Err(Conflict::NodeNamespace.into());
        }
        let enrolled = self.enrolled.values().map(|other| (&other.claim, other.pod.network_namespace.cookie()));
        let failed = self.failed.values().map(|other| (&other.record.claim, other.record.cookie));
        for (other, cookie) in enrolled.chain(failed) {
            let uid = || other.uid.clone();
            if cookie == namespace.cookie() {
                return Err(Conflict::Namespace(uid()).into());
            }
            let (ours, theirs) = (&claim.cgroup_path, &other.cgroup_path);
            if ours.starts_with(theirs) || theirs.starts_with(ours) {
                return Err(Conflict::Cgroup(uid()).into());
            }
            if let Some(address) = claim.addresses.iter().find(|address| other.addresses.contains(address)) {
                return Err(Conflict::Address { address: *address, uid: uid() }.into());
            }
        }
        Ok(())
    }

    /// Whether the mesh forbids what the pod asks for; without a View nothing is known to be.
    pub(super) fn check_fail_open(&self, claim: &Claim) -> Result<(), EnrolError> {
        let is_forbidden = self.wiring.view.load().as_ref().is_some_and(|view| !view.mesh.allow_fail_open);
        if claim.is_fail_open && is_forbidden { Err(Conflict::FailOpen.into()) } else { Ok(()) }
    }

    /// What an enrolled pod asks has changed.
    pub(super) fn set_fail_open(&mut self, uid: &str, asks: bool) -> Result<(), EnrolError> {
        let enrolled = self.enrolled.get_mut(uid).ok_or_else(|| EnrolError::Unknown(uid.to_owned()))?;
        if std::mem::replace(&mut enrolled.claim.is_fail_open, asks) == asks {
            return Ok(());
        }
        self.follow_view();
        self.tell(Kind::Changed, self.describe(&self.enrolled[uid]));
        Ok(self.store_record().map_err(NodeError::Record)?)
    }

    /// Listeners first, steering last.
    pub(super) async fn install(
        &mut self,
        id: u32,
        claim: Claim,
        namespace: NetworkNamespace,
        pulse: Pulse,
        sysctls: SavedSysctls,
        before: Before,
    ) -> Result<Arc<str>, EnrolError> {
        let pod = Arc::new(Pod {
            id,
            uid: claim.uid.as_str().into(),
            namespace: claim.namespace.clone(),
            name: claim.name.clone(),
            service_account: claim.service_account.clone(),
            addresses: claim.addresses.clone(),
            network_namespace: namespace,
            cgroup_path: claim.cgroup_path.clone(),
            probe_ports: claim.probe_ports.clone(),
        });
        let allows_fail_open = self.wiring.view.load().as_ref().is_some_and(|view| view.mesh.allow_fail_open);
        let is_fail_open = claim.is_fail_open && allows_fail_open;
        let (older, others) = (HashSet::new(), Others::new(&pod).map_err(NodeError::Kernel)?);
        let mut enrolled = Enrolled { pod, claim, sysctls, pulse, older, others, is_ready: false, is_fail_open };
        if let Err(error) = self.open_and_steer(&mut enrolled).await {
            match before {
                Before::New => self.undo(&enrolled).await,
                Before::Steered => self.refuse(&enrolled).await,
                Before::Served => {}
            }
            return Err(error);
        }
        let uid = enrolled.pod.uid.clone();
        self.enrolled.insert(uid.clone(), enrolled);
        Ok(uid)
    }

    async fn open_and_steer(&mut self, enrolled: &mut Enrolled) -> Result<(), EnrolError> {
        let pod = enrolled.pod.clone();
        let handed = self.take_handed(&pod.uid);
        enrolled.others.steered.clone_from(&handed.others);
        let listeners = self.open_listeners(&pod, handed.listeners)?;
        // Connections look their pod up as soon as they are accepted.
        self.change_pods(|table| {
            table.insert(&pod);
            table.put_others(&pod, &handed.others);
        });
        for (worker, kind, listener) in listeners {
            self.serve(worker, &pod, kind, listener).await.map_err(NodeError::Worker)?;
        }
        steer(&self.wiring.kernel, enrolled, self.class_of(pod.id))?;
        self.tell_change();
        enrolled.older = match handed.older {
            Some(older) => older,
            None => older::find(&self.wiring.kernel, &enrolled.pod).map_err(NodeError::Kernel)?,
        };
        Ok(())
    }

    pub(super) fn class_of(&self, pod: u32) -> u32 {
        self.wiring.classes.load().get(&pod).copied().unwrap_or_default()
    }

    /// Those that were handed over, and what is missing. More than one for a worker, from an agent with more of them, are
    /// served too: connections wait in their queues.
    fn open_listeners(
        &self,
        pod: &Pod,
        mut handed: Vec<HandedListener>,
    ) -> Result<Vec<(usize, Listener, OwnedFd)>, EnrolError> {
        let refused = |error| EnrolError::Listener(causes(&error));
        let workers = self.wiring.workers.len();
        let mut listeners = Vec::new();
        for (address, kind) in pod.addresses.iter().flat_map(|address| KINDS.map(|kind| (address, kind))) {
            let is_same = |one: &mut HandedListener| one.address.ip() == *address && one.address.port() == kind.port();
            let mut same: Vec<_> = handed.extract_if(.., is_same).collect();
            // A worker keeps its own, so that LISTEN changes for nobody; what is left is for workers that have none.
            let mut own: Vec<_> =
                (0..workers).map(|worker| same.extract_if(.., |one| one.worker == worker).next()).collect();
            own.iter_mut().filter(|own| own.is_none()).for_each(|own| *own = same.pop());
            for (worker, own) in own.into_iter().enumerate() {
                let listener: OwnedFd = match own {
                    Some(found) => found.listener,
                    None => listener::open(pod.network_namespace.as_fd(), *address, kind).map_err(refused)?.into(),
                };
                let inserted = self.wiring.kernel.insert_listener(*address, kind, worker as u32, &listener);
                inserted.map_err(NodeError::Kernel)?;
                listeners.push((worker, kind, listener));
            }
            let more = same.into_iter().map(|one| (one.worker % workers, kind, one.listener));
            listeners.extend(more);
        }
        Ok(listeners)
    }

    /// What a failed enrolment leaves is taken back; what cannot be is logged, because the caller is told why it failed.
    async fn undo(&self, enrolled: &Enrolled) {
        let pod = &enrolled.pod;
        if let Err(error) = self.wiring.kernel.withdraw(PodId(pod.id)) {
            tracing::warn!(uid = &*pod.uid, %error, "steering of a failed enrolment was not removed completely");
        }
        self.let_go(pod).await;
        if let Err(error) = enrolled.sysctls.restore(&pod.network_namespace) {
            tracing::warn!(uid = &*pod.uid, %error, "settings of the pod's namespace were not put back");
        }
    }

    /// Nothing listens for the pod any more; the kernel goes on steering, so it is refused.
    async fn refuse(&self, enrolled: &Enrolled) {
        self.let_go(&enrolled.pod).await;
        // The pins may be gone or of another class: no class lets anything pass without the agent.
        if let Err(error) = steer(&self.wiring.kernel, enrolled, 0) {
            tracing::error!(uid = &*enrolled.pod.uid, %error, "steering of a pod that failed was not renewed");
        }
    }

    async fn let_go(&self, pod: &Pod) {
        self.change_pods(|table| table.remove(pod));
        self.tell_change();
        if let Err(error) = self.withdraw_from_workers(&pod.uid).await {
            tracing::warn!(uid = &*pod.uid, %error, "listeners of a failed enrolment");
        }
    }
}
