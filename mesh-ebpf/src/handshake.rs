//! sock_ops during handshakes: what the connect hook or the agent kept on the dialling socket reaches the accepted one
//! (PENDING), and the source proves itself to the destination's sk_lookup (TICKET).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::abi::{
    Direction, Endpoint, Flow, FlowFlags, MetaKind, PendingKey, Ticket, TicketKind, Tuple, meta_flags, ticket_flags,
};
use mesh_common::counter::Counter;
use mesh_common::{PORT_HBONE, PORT_OUTBOUND, PORT_PLAINTEXT};

use crate::maps::{DIRECT, PENDING, PODIP, PODS, SETTINGS, TICKET};
use crate::socket::{self, field};
use crate::state::{copied, count};
use crate::telemetry;

const DONE: u32 = 1;

/// One end of a connection, as a callback sees it.
pub struct End {
    pub socket: *mut bpf_sock,
    pub namespace: u64,
    pub local: Endpoint,
    pub remote: Endpoint,
}

/// Each step is a function of its own to the kernel too: together they would not fit into the 512 bytes of its stack.
pub fn dispatch(context: &SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => dialling(context.ops),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => dialled(context.ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(context.ops),
        BPF_SOCK_OPS_STATE_CB if telemetry::is_telling(context) => changed(context.ops),
        _ => {}
    }
    DONE
}

#[inline(always)]
fn end(context: &SockOpsContext) -> Option<End> {
    let socket = socket::of_ops(context.ops)?;
    // SAFETY: the context is this program's.
    let namespace = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    Some(End { socket, namespace, local: socket::local(context.ops), remote: socket::remote(context.ops) })
}

/// The SYN is about to leave, addresses and ports are known.
#[inline(never)]
fn dialling(ops: *mut bpf_sock_ops) {
    let context = &SockOpsContext::new(ops);
    let Some(end) = end(context) else { return };
    // SAFETY: plain bytes.
    if let Some(pod) = unsafe { PODS.get(&end.namespace) } {
        return pod_dials(context, &end, pod.pod, pod.is_enrolled_with(&end.local.ip()));
    }
    let is_node = SETTINGS.get(0).is_some_and(|settings| settings.node_namespace == end.namespace);
    if is_node && takes_ticket(&end, 0) {
        let is_probe = socket::meta(end.socket).is_some_and(|meta| meta.has(meta_flags::PROBE));
        let flags = if is_probe { ticket_flags::PROBE } else { 0 };
        write_ticket(&end, &Ticket::new(TicketKind::Node, flags, 0, end.namespace));
        watch(context);
    }
}

#[inline(always)]
fn pod_dials(context: &SockOpsContext, end: &End, pod: u32, is_at_home: bool) {
    let meta = socket::meta(end.socket);
    let (meta, child) = match meta.and_then(|meta| meta.kind().map(|kind| (meta, kind))) {
        Some((_, MetaKind::Exempt)) => return,
        Some((meta, MetaKind::ActiveSource)) => (meta, MetaKind::PassiveSource),
        Some((meta, MetaKind::ActiveDestination)) if !meta.has(meta_flags::DIRECT) => {
            (meta, MetaKind::PassiveDestination)
        }
        _ => {
            let original = meta.map_or(end.remote, |meta| meta.original());
            if takes_ticket(end, pod) && !(is_at_home && begins_direct(context, end, pod, original)) {
                write_ticket(end, &Ticket::new(TicketKind::Pod, 0, pod, end.namespace));
            }
            return watch(context);
        }
    };
    let key = PendingKey::new(end.namespace, Tuple::new(end.local, end.remote));
    if PENDING.insert(&key, &meta.with_kind(child), 0).is_err() {
        count(Counter::HandshakeMapFull);
    }
    watch(context);
}

/// Notes a connection to another pod of the node; not one to the agent. Only from an address that no other socket of the node
/// can have, because the entry is found by its ends; whether there was room.
#[inline(always)]
fn begins_direct(context: &SockOpsContext, end: &End, pod: u32, original: Endpoint) -> bool {
    if end.remote.port() == PORT_HBONE {
        return false;
    }
    let mut flow = Flow::new(Direction::Outbound, pod, end.namespace, end.local, end.remote);
    flow.original = original;
    flow.add(FlowFlags::DIRECT);
    telemetry::begins(context, &Tuple::new(end.local, end.remote), &flow)
}

/// Whether the destination is an enrolled pod other than `pod`, at a port that is not captured there.
#[inline(always)]
fn takes_ticket(end: &End, pod: u32) -> bool {
    if matches!(end.remote.port(), PORT_OUTBOUND | PORT_PLAINTEXT) {
        return false;
    }
    copied!(PODIP, &end.remote.ip()).is_some_and(|entry| entry.pod != pod)
}

#[inline(always)]
fn write_ticket(end: &End, ticket: &Ticket) {
    if TICKET.insert(&Tuple::new(end.local, end.remote), ticket, 0).is_err() {
        count(Counter::HandshakeMapFull);
    }
}

/// Asks for this socket's changes of state, beside what other programs asked for.
#[inline(always)]
fn watch(context: &SockOpsContext) {
    let flags = context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    // It fails only for a request that is no full socket, which was ruled out.
    let _ = context.set_cb_flags(flags as i32);
}

/// Whether the SYN of this socket passed while its pod was enrolled.
#[inline(always)]
fn is_watched(context: &SockOpsContext) -> bool {
    context.cb_flags() & BPF_SOCK_OPS_STATE_CB_FLAG != 0
}

/// The socket that dialled is connected.
#[inline(never)]
fn dialled(ops: *mut bpf_sock_ops) {
    let context = &SockOpsContext::new(ops);
    let Some(end) = end(context) else { return };
    if telemetry::establishes(context, &Tuple::new(end.local, end.remote)) {
        return;
    }
    let Some(pod) = pod_of(end.namespace) else { return };
    let mut flow = Flow::new(Direction::Outbound, pod, end.namespace, end.local, end.remote);
    let meta = socket::meta(end.socket);
    match meta.and_then(|meta| meta.kind().map(|kind| (meta, kind))) {
        Some((_, MetaKind::ActiveSource | MetaKind::Exempt)) => return,
        Some((meta, MetaKind::ActiveDestination)) => {
            flow.original = meta.original();
            flow.add(if meta.has(meta_flags::DIRECT) { way(&end, pod) } else { FlowFlags::AGENT });
        }
        _ if is_watched(context) => flow.add(way(&end, pod)),
        _ => {
            flow.add(unseen(&end, pod));
            watch(context);
        }
    }
    telemetry::established(context, &mut flow);
}

/// How a connection goes whose SYN passed when the pod was not yet enrolled.
#[inline(always)]
fn unseen(end: &End, pod: u32) -> FlowFlags {
    match way(end, pod) {
        FlowFlags::ITSELF => FlowFlags::ITSELF,
        _ => FlowFlags::BEFORE_ENROLMENT,
    }
}

/// How a connection goes that does not go through the agent.
#[inline(always)]
fn way(end: &End, pod: u32) -> FlowFlags {
    if end.local.ip() == end.remote.ip() || end.remote.ip().is_loopback() {
        return FlowFlags::ITSELF;
    }
    match copied!(PODIP, &end.remote.ip()) {
        Some(entry) if entry.pod == pod => FlowFlags::ITSELF,
        Some(_) => FlowFlags::DIRECT,
        None => FlowFlags::FAIL_OPEN,
    }
}

/// A listener's child is connected and not yet accepted. Of a direct connection nothing is kept at this end: what dialled is
/// on this node and in DIRECT or FLOWS for both, and half the work of a short connection would be to say it twice.
#[inline(never)]
fn accepted(ops: *mut bpf_sock_ops) {
    let context = &SockOpsContext::new(ops);
    let Some(end) = end(context) else { return };
    let tuple = Tuple::new(end.remote, end.local);
    let ticket = take_ticket(&tuple);
    // None once the pod that dialled has been withdrawn: then this end is all that is known.
    let source = ticket.and_then(|(_, namespace)| pod_of(namespace));
    if ticket.is_some_and(|(kind, _)| kind == Some(TicketKind::Pod)) && source.is_some() {
        return;
    }
    let Some(pod) = pod_of(end.namespace) else { return };
    let is_agents = socket::is_agents(end.socket);
    let takes_pending = if is_agents { end.local.port() == PORT_OUTBOUND } else { ticket.is_none() };
    let pending = if takes_pending { take_pending(&end, tuple) } else { None };
    if is_agents {
        if takes_pending && pending.is_none() {
            count(Counter::PendingMissing);
        }
        return;
    }
    let mut flow = Flow::new(Direction::Inbound, pod, end.namespace, end.local, end.remote);
    match (ticket, pending) {
        (Some((Some(TicketKind::Node), _)), _) => flow.add(FlowFlags::PROBE),
        (None, Some(original)) => {
            flow.original = original;
            flow.add(FlowFlags::AGENT);
        }
        _ => flow.add(unseen(&end, pod)),
    }
    watch(context);
    telemetry::established(context, &mut flow);
}

/// Who dialled, and in which namespace. It speaks once.
#[inline(always)]
fn take_ticket(tuple: &Tuple) -> Option<(Option<TicketKind>, u64)> {
    if let Some(direct) = DIRECT.get_ptr_mut(tuple) {
        // SAFETY: the value is there until its socket closes, and is plain bytes. Nobody else writes what is written here.
        let direct = unsafe { &mut *direct };
        if direct.is_ticket() {
            direct.taken = 1;
            return Some((Some(TicketKind::Pod), direct.flow.namespace));
        }
    }
    // The whole of it would be an eighth of the stack.
    // SAFETY: plain bytes, read before the entry is removed.
    let ticket = unsafe { TICKET.get(tuple) }.map(|ticket| (ticket.kind(), ticket.namespace()))?;
    let _ = TICKET.remove(tuple);
    Some(ticket)
}

/// Moves what the dialling socket left into META of the accepted one, and answers its original address.
#[inline(always)]
fn take_pending(end: &End, tuple: Tuple) -> Option<Endpoint> {
    let key = PendingKey::new(end.namespace, tuple);
    // SAFETY: plain bytes, read before the entry is removed.
    let meta = unsafe { PENDING.get(&key) }?;
    let original = meta.original();
    let is_kept = socket::set_meta(end.socket, meta);
    let _ = PENDING.remove(&key);
    if !is_kept {
        count(Counter::StorageFull);
        return None;
    }
    Some(original)
}

/// The enrolled pod of a namespace.
#[inline(always)]
fn pod_of(namespace: u64) -> Option<u32> {
    // SAFETY: plain bytes.
    unsafe { PODS.get(&namespace) }.map(|entry| entry.pod)
}

#[inline(never)]
fn changed(ops: *mut bpf_sock_ops) {
    let context = &SockOpsContext::new(ops);
    let (old, new) = (field!(context.ops, __bindgen_anon_1.args[0]), field!(context.ops, __bindgen_anon_1.args[1]));
    let tuple = Tuple::new(socket::local(ops), socket::remote(ops));
    if new != BPF_TCP_CLOSE {
        return telemetry::finished(context, &tuple);
    }
    let closed = telemetry::closed(context, &tuple, old);
    // An accepted socket has no ticket, and took that of the socket that dialled it when it was made.
    if closed.as_ref().is_some_and(|closed| closed.direction == Direction::Inbound || closed.is_answered) {
        return;
    }
    let Some(end) = end(context) else { return };
    // Of a handshake that never ended, and of one whose destination did not take its ticket.
    let _ = TICKET.remove(&tuple);
    if closed.is_none() {
        let _ = PENDING.remove(&PendingKey::new(end.namespace, tuple));
    }
}
