//! What is known about a connection that the kernel let pass, or refused, without the agent: told in the words of those
//! that the agent carries. Identities are those of enrolled pods of this node, proved by the kernel; any other end has none.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_common::abi::Flow;

use crate::{
    enrol::{Pod, PodTable},
    kernel::{Direction, FlowFlags},
    path::{Source, judge},
    telemetry::{ConnectionRecord, Party, Security},
    view::View,
};

/// A connection by the kernel's record of one of its ends.
#[derive(Debug)]
pub(crate) struct Witness {
    /// In the path's words; without bytes, which records and sockets know.
    pub(crate) record: ConnectionRecord,
    /// The pod whose socket it is.
    pub(crate) own: Arc<Pod>,
    /// The pod at the other end, if it is one of this node.
    pub(crate) other: Option<Arc<Pod>>,
}

/// Tells of a flow. None when its pod is not enrolled any more. `now_ns`: CLOCK_MONOTONIC.
pub(crate) fn tell(view: &View, pods: &PodTable, flow: &Flow, now_ns: u64) -> Option<Witness> {
    let own = pods.by_uid.values().find(|pod| pod.id == flow.pod)?;
    let remote = flow.remote.address()?;
    let local = flow.local.address().or_else(|| unbound(own, remote))?;
    let original = flow.original.address().unwrap_or(remote);
    let is_outbound = flow.direction() == Direction::Outbound;
    // Inbound, the real client is the original one.
    let far = if is_outbound { remote } else { original };
    let is_proved = !flow.flags().has(FlowFlags::BEFORE_ENROLMENT);
    let other = pods.by_address.get(&far.ip()).filter(|_| is_proved);
    let mut record = ConnectionRecord::new(if is_outbound { "outbound" } else { "inbound" });
    record.pod = own.full_name();
    let (here, there) = (party(view, Some(own), local), party(view, other, far));
    (record.source, record.destination) = if is_outbound { (here, there) } else { (there, here) };
    if is_outbound && original != remote {
        record.service = view.service_at(original, &own.namespace).cloned();
    }
    name_ends(&mut record, flow, local, remote);
    time(&mut record, flow, now_ns);
    (record.path, record.security) = path(flow.flags());
    if flow.flags().has(FlowFlags::FAIL_OPEN) {
        record.plaintext_reason = "fail_open";
    }
    if !flow.flags().has(FlowFlags::ITSELF) {
        judge_it(view, &mut record);
    }
    Some(Witness { record, own: own.clone(), other: other.cloned() })
}

/// The end that was dialled of a direct connection: the hooks list the one that dialled alone, which says all about both.
pub(crate) fn far_end(pods: &PodTable, flow: &Flow) -> Option<Flow> {
    let is_direct = flow.direction() == Direction::Outbound && flow.flags().has(FlowFlags::DIRECT);
    let pod = pods.by_address.get(&flow.remote.address()?.ip()).filter(|_| is_direct)?;
    let mut far = Flow::new(Direction::Inbound, pod.id, 0, flow.remote, flow.local);
    far.established_ns = flow.established_ns;
    far.add(FlowFlags::DIRECT);
    Some(far)
}

/// Gives a record of another connection between the same ends what is this one's own.
pub(crate) fn retell(record: &mut ConnectionRecord, flow: &Flow, now_ns: u64) {
    if let (Some(local), Some(remote)) = (flow.local.address(), flow.remote.address()) {
        name_ends(record, flow, local, remote);
    }
    time(record, flow, now_ns);
}

fn name_ends(record: &mut ConnectionRecord, flow: &Flow, local: SocketAddr, remote: SocketAddr) {
    let original = flow.original.address().unwrap_or(remote);
    let (source, destination, dialled) =
        if flow.direction() == Direction::Outbound { (local, remote, original) } else { (original, local, local) };
    (record.source.address, record.destination.address) = (Some(source), Some(destination));
    record.original_destination = Some(dialled);
}

fn time(record: &mut ConnectionRecord, flow: &Flow, now_ns: u64) {
    (record.started, record.duration) = times(flow, now_ns);
}

/// When it began, and how long it has been there at `now_ns` of CLOCK_MONOTONIC.
pub(crate) fn times(flow: &Flow, now_ns: u64) -> (SystemTime, Duration) {
    // A refused one was never established.
    let age_ns = if flow.established_ns == 0 { 0 } else { now_ns.saturating_sub(flow.established_ns) };
    let age = Duration::from_nanos(age_ns);
    (SystemTime::now() - age, age)
}

/// A socket that was refused in `connect` has no address yet: it would have got the pod's.
fn unbound(own: &Pod, remote: SocketAddr) -> Option<SocketAddr> {
    let same_family = |address: &&IpAddr| address.is_ipv4() == remote.is_ipv4();
    own.addresses.iter().find(same_family).map(|address| SocketAddr::new(*address, 0))
}

fn party(view: &View, pod: Option<&Arc<Pod>>, address: SocketAddr) -> Party {
    let workload = match pod {
        Some(pod) => pod.workload(view),
        None => view.workload_at(address.ip()),
    };
    let identity = workload.filter(|_| pod.is_some()).map(|workload| workload.identity.clone());
    Party { workload: workload.cloned(), identity, claimed: None, address: Some(address) }
}

fn path(flags: FlowFlags) -> (&'static str, Security) {
    let known = [
        (FlowFlags::ITSELF, "self", Security::NodeLocal),
        (FlowFlags::DIRECT, "node_local", Security::NodeLocal),
        (FlowFlags::PROBE, "probe", Security::None),
        (FlowFlags::FAIL_OPEN, "fail_open", Security::None),
        (FlowFlags::BEFORE_ENROLMENT, "before_enrolment", Security::None),
    ];
    let found = known.into_iter().find(|(flag, ..)| flags.has(*flag));
    found.map_or(("", Security::None), |(_, path, security)| (path, security))
}

/// The kernel knows only that a pair of classes may or may not: which policy it was is asked again.
fn judge_it(view: &View, record: &mut ConnectionRecord) {
    let (Some(source), Some(destination)) = (record.source.address, record.destination.address) else { return };
    let (Some(workload), Some(_)) = (&record.destination.workload, &record.destination.identity) else { return };
    let asking = Source { identity: record.source.identity.clone(), address: source.ip() };
    let decision = judge(view, &asking, workload, destination.ip(), destination.port());
    record.verdict = Some(decision.verdict);
    record.policy = decision.policy;
    record.dry_run = decision.dry_run;
}
