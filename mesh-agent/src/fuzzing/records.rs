//! What the hooks write into the ring buffer.

use std::sync::{Arc, OnceLock};

use crate::{
    enrol::{Pod, PodTable},
    kernel::{NetworkNamespace, Record, record},
    steer::witness,
    view::{View, fixtures},
};

/// Bytes of one record.
const RECORD: usize = size_of::<Record>();

/// Records one behind the other. Good when each was of a known kind and told of an enrolled pod.
pub fn kernel_records(bytes: &[u8]) -> bool {
    static VIEW: OnceLock<Arc<View>> = OnceLock::new();
    let (view, pods) = (VIEW.get_or_init(view), pods());
    let mut are_good = !bytes.is_empty();
    for chunk in bytes.chunks(RECORD) {
        let record = record(chunk);
        assert_eq!(record.is_some(), chunk.len() == RECORD);
        let Some(record) = record else { return false };
        let witness = witness::tell(view, pods, &record.flow, record.at_ns);
        are_good &= record.kind().is_some() && witness.is_some();
        for party in witness.iter().flat_map(|witness| [&witness.record.source, &witness.record.destination]) {
            let enrolled = party.address.and_then(|address| pods.by_address.get(&address.ip()));
            // The own pod is proved by its number, whatever its record says of addresses.
            let is_own = |pod: &Pod| {
                party.identity.as_ref().is_some_and(|identity| identity.service_account() == pod.service_account)
            };
            let is_proved = enrolled.is_some() || witness.as_ref().is_some_and(|witness| is_own(&witness.own));
            assert!(party.identity.is_none() || is_proved, "{party:?} has an identity that nobody proved");
        }
    }
    are_good
}

/// The enrolled pods, and a service that one of them backs.
fn view() -> Arc<View> {
    let (web, db) = (fixtures::pod("web", &["10.0.0.1"]), fixtures::pod("db", &["10.0.0.2"]));
    let service = fixtures::service("db.default.svc.cluster.local", &["10.96.0.1"], &[5432]);
    fixtures::view([web, fixtures::behind(db, "db.default.svc.cluster.local", 5432, 5432)], [service], [])
}

/// Their enrolments, once: they hold namespaces open.
pub(super) fn pods() -> &'static PodTable {
    static PODS: OnceLock<PodTable> = OnceLock::new();
    PODS.get_or_init(table)
}

fn table() -> PodTable {
    let mut table = PodTable::default();
    for (id, name, address) in [(1, "web", [10, 0, 0, 1]), (2, "db", [10, 0, 0, 2])] {
        let pod = Arc::new(Pod {
            id,
            uid: name.into(),
            namespace: "default".into(),
            name: name.into(),
            service_account: name.into(),
            addresses: vec![address.into()],
            network_namespace: NetworkNamespace::current().expect("/proc is there"),
            cgroup_path: "/".into(),
            probe_ports: Vec::new(),
        });
        table.by_address.insert(address.into(), pod.clone());
        table.by_uid.insert(pod.uid.clone(), pod);
    }
    table
}
