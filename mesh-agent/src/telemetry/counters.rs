//! The mesh's own counters of the path: plaintext and denials by reason, what was shed, what the log lost. Every counter is
//! made at the start, so that a connection only adds.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::path::{PlaintextReason, Verdict};

type Labels = [(&'static str, &'static str); 2];

#[derive(Debug)]
pub(super) struct Counters {
    plaintext_node: Counter,
    plaintext_external: Counter,
    plaintext_not_in_mesh: Counter,
    plaintext_inbound: Counter,
    denied_by_policy: Counter,
    no_allow_matched: Counter,
    unknown_policy: Counter,
    shed: Counter,
}

impl Counters {
    pub(super) fn register(registry: &mut Registry, access_log_dropped: Counter) -> Self {
        let plaintext = Family::<Labels, Counter>::default();
        let of = |direction, reason| plaintext.get_or_create_owned(&[("direction", direction), ("reason", reason)]);
        let denied = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let by = |verdict: Verdict| denied.get_or_create_owned(&[("reason", verdict.label())]);
        let counters = Self {
            plaintext_node: of("outbound", PlaintextReason::Node.label()),
            plaintext_external: of("outbound", PlaintextReason::External.label()),
            plaintext_not_in_mesh: of("outbound", PlaintextReason::NotInMesh.label()),
            plaintext_inbound: of("inbound", "permissive"),
            denied_by_policy: by(Verdict::Denied),
            no_allow_matched: by(Verdict::NoAllowMatched),
            unknown_policy: by(Verdict::UnknownPolicy),
            shed: Counter::default(),
        };
        registry.register("mesh_plaintext_connections", "Connections carried in the clear", plaintext);
        registry.register("mesh_denied_connections", "Connections that policy denied", denied);
        let shed = "Connections reset at accept because descriptors had run out";
        registry.register("mesh_shed_connections", shed, counters.shed.clone());
        let dropped = "Access-log lines dropped because the log did not keep up";
        registry.register("mesh_access_log_dropped", dropped, access_log_dropped);
        counters
    }

    pub(super) fn plaintext_outbound(&self, reason: PlaintextReason) {
        match reason {
            PlaintextReason::Node => &self.plaintext_node,
            PlaintextReason::External => &self.plaintext_external,
            PlaintextReason::NotInMesh => &self.plaintext_not_in_mesh,
        }
        .inc();
    }

    pub(super) fn plaintext_inbound(&self) {
        self.plaintext_inbound.inc();
    }

    pub(super) fn denied(&self, verdict: Verdict) {
        match verdict {
            Verdict::Denied => self.denied_by_policy.inc(),
            Verdict::NoAllowMatched => self.no_allow_matched.inc(),
            Verdict::UnknownPolicy => self.unknown_policy.inc(),
            Verdict::NoPolicy | Verdict::Allowed => return,
        };
    }

    pub(super) fn shed(&self) {
        self.shed.inc();
    }
}
