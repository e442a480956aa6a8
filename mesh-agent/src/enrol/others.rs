//! Other addresses of the pods' interfaces: those that a pod's namespace shows beside the ones that it was enrolled with.
//! Such an address is the pod's own word. It names the pod to its callers only where nobody else has it, never gives it a
//! class, and a pod that is enrolled with it takes it away.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use mesh_api::proto::admin::pod_event::Kind;

use crate::{
    kernel::{AddressWatch, KernelError, interface},
    view::View,
};

use super::{
    Pod,
    registry::{Enrolled, Registry},
};

/// Other addresses that count of one pod.
const LIMIT: usize = 8;

/// What is known of a pod's other addresses.
#[derive(Debug)]
pub(super) struct Others {
    watch: AddressWatch,
    /// As the interface has them.
    shown: BTreeSet<IpAddr>,
    is_current: bool,
    /// The last change failed, and that was told.
    is_failing: bool,
    /// As the kernel was told.
    pub(super) steered: Vec<IpAddr>,
}

impl Others {
    /// Of a pod that is about to be steered; none is yet.
    pub(super) fn new(pod: &Pod) -> Result<Self, KernelError> {
        let watch = AddressWatch::new(&pod.network_namespace)?;
        Ok(Self { watch, shown: BTreeSet::new(), is_current: false, is_failing: false, steered: Vec::new() })
    }

    fn look(&mut self, pod: &Pod) {
        if self.watch.has_changed() {
            self.is_current = false;
        }
        if self.is_current {
            return;
        }
        match interface::siblings(&pod.network_namespace, &pod.addresses) {
            Ok(shown) => (self.shown, self.is_current) = (shown, true),
            Err(error) => tracing::warn!(uid = &*pod.uid, %error, "other addresses of a pod are not known"),
        }
    }
}

impl Registry {
    /// Brings the kernel to what the pods' interfaces show by now.
    pub(super) fn follow_addresses(&mut self) {
        for enrolled in self.enrolled.values_mut() {
            enrolled.others.look(&enrolled.pod);
        }
        let view = self.wiring.view.load_full();
        let claimed = self.claimed();
        let mut taken: HashSet<IpAddr> = HashSet::new();
        let mut uids: Vec<Arc<str>> = self.enrolled.keys().cloned().collect();
        // Who has an address keeps it; of two that show it at once the one that was enrolled first has it.
        uids.sort_by_key(|uid| self.enrolled.get(uid).map(|enrolled| enrolled.pod.id));
        let held: HashSet<IpAddr> = self.enrolled.values().flat_map(|one| one.others.steered.iter().copied()).collect();
        for uid in uids {
            let Some(Enrolled { pod, others, .. }) = self.enrolled.get(&uid) else { continue };
            let is_free = |address: &IpAddr| {
                let is_held = others.steered.contains(address) || !held.contains(address);
                is_held && !claimed.contains(address) && !taken.contains(address)
            };
            let counts =
                |address: &&IpAddr| is_free(address) && view.as_ref().is_some_and(|view| is_its(view, pod, **address));
            let steered: Vec<IpAddr> = others.shown.iter().filter(counts).take(LIMIT).copied().collect();
            taken.extend(&steered);
            if steered != others.steered {
                self.steer_others(&uid, steered);
            }
        }
    }

    /// A pod is enrolled with these addresses: no other has them any more.
    pub(super) fn yield_addresses(&mut self, claimed: &[IpAddr]) {
        let has = |enrolled: &&Enrolled| enrolled.others.steered.iter().any(|address| claimed.contains(address));
        let uids: Vec<Arc<str>> = self.enrolled.values().filter(has).map(|enrolled| enrolled.pod.uid.clone()).collect();
        for uid in uids {
            let Some(enrolled) = self.enrolled.get(&uid) else { continue };
            let rest = enrolled.others.steered.iter().filter(|address| !claimed.contains(address)).copied().collect();
            self.steer_others(&uid, rest);
        }
    }

    /// Addresses that pods were enrolled with.
    fn claimed(&self) -> HashSet<IpAddr> {
        let enrolled = self.enrolled.values().flat_map(|enrolled| &enrolled.claim.addresses);
        let failed = self.failed.values().flat_map(|failed| &failed.record.claim.addresses);
        enrolled.chain(failed).copied().collect()
    }

    fn steer_others(&mut self, uid: &Arc<str>, others: Vec<IpAddr>) {
        let Some(enrolled) = self.enrolled.get_mut(uid) else { return };
        let class = self.wiring.classes.load().get(&enrolled.pod.id).copied().unwrap_or_default();
        let before = std::mem::replace(&mut enrolled.others.steered, others);
        if let Err(error) = super::admission::steer(&self.wiring.kernel, enrolled, class) {
            if !std::mem::replace(&mut enrolled.others.is_failing, true) {
                tracing::error!(uid = &**uid, %error, "other addresses of a pod were not changed; it is tried again");
            }
            enrolled.others.steered = before;
            return;
        }
        enrolled.others.is_failing = false;
        let (pod, steered) = (enrolled.pod.clone(), enrolled.others.steered.clone());
        tracing::info!(uid = &**uid, addresses = ?steered, "other addresses of a pod");
        self.change_pods(|table| table.put_others(&pod, &steered));
        self.tell_change();
        self.tell(Kind::Changed, self.describe(&self.enrolled[uid]));
    }
}

/// Whether an address that a pod shows can be its: one of the cluster's pod addresses that is nobody else's.
fn is_its(view: &View, pod: &Pod, address: IpAddr) -> bool {
    let is_pods = view.mesh.pod_ranges.iter().any(|range| range.contains(&address));
    let own = pod.workload(view).map(|workload| &workload.uid);
    let is_anothers = view.workload_at(address).is_some_and(|known| Some(&known.uid) != own);
    is_pods && !is_anothers && view.services_at(address).is_empty() && !view.mesh.node_addresses.contains(&address)
}

#[cfg(test)]
mod tests {
    use mesh_api::proto::mesh::MeshConfig;

    use super::*;
    use crate::{
        proving,
        view::{
            Store,
            fixtures::{bytes, named_service, named_workload, pod, service},
        },
    };

    #[test]
    fn an_address_that_a_pod_shows_counts_in_the_pod_ranges_where_nobody_else_has_it() {
        let mut store = Store::default();
        let known = [
            named_workload(pod("web", &["10.0.0.1", "fd00::1"])),
            named_workload(pod("far", &["10.0.0.9"])),
            named_service(service("echo", &["10.0.0.50"], &[80])),
        ];
        assert_eq!(store.apply_addresses(&known, &[]), []);
        let config = MeshConfig {
            trust_domain: "cluster.local".into(),
            pod_ranges: vec!["10.0.0.0/24".into()],
            node_addresses: vec![bytes("10.0.0.250")],
            node_port_first: 30000,
            node_port_last: 32767,
            ..MeshConfig::default()
        };
        store.apply_mesh(&config).unwrap();
        let (view, web) = (store.publish(), proving::pod(1, "web", "10.0.0.1".parse().unwrap()));
        let rows = [
            ("10.0.0.77", true),
            // The View says that it is this pod's.
            ("10.0.0.1", true),
            ("10.0.0.9", false),
            ("10.0.0.50", false),
            ("10.0.0.250", false),
            ("192.0.2.1", false),
            ("fd00::1", false),
        ];
        for (address, expected) in rows {
            assert_eq!(is_its(&view, &web, address.parse().unwrap()), expected, "{address}");
        }
    }
}
