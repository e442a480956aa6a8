//! What is told about connections of enrolled pods: DIRECT and FLOWS while they live, EVENTS when they end, or
//! have begun without being judged. Never wakes the agent per connection, and loses a record rather than delay a socket.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT,
    BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK,
};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::abi::{DirectFlow, Direction, Flow, FlowFlags, Record, RecordKind, Totals, Tuple};
use mesh_common::counter::Counter;

use crate::maps::{DIRECT, EVENTS, FLOWS};
use crate::socket::field;
use crate::state::{count, now_ns};

/// A connection between pods of the node begins; whether there was room for it.
#[inline(always)]
pub fn begins(context: &SockOpsContext, tuple: &Tuple, flow: &Flow) -> bool {
    DIRECT.insert(tuple, &DirectFlow::new(cookie(context), *flow), 0).is_ok()
}

/// The handshake of a connection ended that [`begins`] noted; whether it is one.
#[inline(always)]
pub fn establishes(context: &SockOpsContext, tuple: &Tuple) -> bool {
    let Some(direct) = own_direct(context, tuple) else { return false };
    direct.flow.established_ns = now_ns();
    count(Counter::Established);
    true
}

/// What [`begins`] noted of this socket. Another socket with the same ends (its address is not its own) has none.
#[inline(always)]
fn own_direct(context: &SockOpsContext, tuple: &Tuple) -> Option<&'static mut DirectFlow> {
    // SAFETY: a value of a map is there until it is removed, which only the callbacks of its socket do, one at a time. The
    // destination writes `taken` alone.
    let direct = unsafe { &mut *DIRECT.get_ptr_mut(tuple)? };
    if direct.socket == cookie(context) { Some(direct) } else { None }
}

/// What FLOWS holds of this socket.
#[inline(always)]
fn own_flow(context: &SockOpsContext) -> Option<&'static mut Flow> {
    // SAFETY: as in `own_direct`.
    FLOWS.get_ptr_mut(&cookie(context)).map(|flow| unsafe { &mut *flow })
}

/// A handshake ended.
#[inline(always)]
pub fn established(context: &SockOpsContext, flow: &mut Flow) {
    let socket = cookie(context);
    flow.established_ns = now_ns();
    if FLOWS.insert(&socket, &*flow, 0).is_err() {
        count(Counter::FlowsFull);
    }
    count(Counter::Established);
    if flow.flags().has(FlowFlags::BEFORE_ENROLMENT) {
        report(RecordKind::Established, 0, socket, flow, &Totals::default());
    }
}

/// Whether anything follows from this change of state: from most of them nothing does.
#[inline(always)]
pub fn is_telling(context: &SockOpsContext) -> bool {
    let new = field!(context.ops, __bindgen_anon_1.args[1]);
    matches!(new, BPF_TCP_CLOSE | BPF_TCP_FIN_WAIT2)
}

/// The peer acknowledged the socket's FIN and has not sent its own. Noted because the kernel's byte counts include FINs, and
/// the states before the end tell all about them but whether one arrives after this.
#[inline(always)]
pub fn finished(context: &SockOpsContext, tuple: &Tuple) {
    match own_direct(context, tuple) {
        Some(direct) => note_fin(context, &mut direct.flow),
        None => {
            if let Some(flow) = own_flow(context) {
                note_fin(context, flow);
            }
        }
    }
}

#[inline(always)]
fn note_fin(context: &SockOpsContext, flow: &mut Flow) {
    flow.add(FlowFlags::FIN_SENT);
    flow.received_at_fin = field!(context.ops, bytes_received) as u32;
}

/// A connection that was established and is closed.
pub struct Closed {
    pub direction: Direction,
    /// Whether the peer acknowledged more than the SYN, which only an accepted socket does.
    pub is_answered: bool,
}

/// The socket is closed; none when it never was established.
#[inline(always)]
pub fn closed(context: &SockOpsContext, tuple: &Tuple, old: u32) -> Option<Closed> {
    if let Some(direct) = own_direct(context, tuple) {
        let closed = if direct.is_established() { Some(ended(context, &mut direct.flow, old)) } else { None };
        let _ = DIRECT.remove(tuple);
        return closed;
    }
    let closed = ended(context, own_flow(context)?, old);
    let _ = FLOWS.remove(&cookie(context));
    Some(closed)
}

/// Tells of the end of a connection.
#[inline(always)]
fn ended(context: &SockOpsContext, flow: &mut Flow, old: u32) -> Closed {
    let (acknowledged, received) = (field!(context.ops, bytes_acked), field!(context.ops, bytes_received));
    let fin_after_ours = old == BPF_TCP_FIN_WAIT2 && received as u32 != flow.received_at_fin;
    if fin_after_ours || matches!(old, BPF_TCP_CLOSE_WAIT | BPF_TCP_LAST_ACK | BPF_TCP_CLOSING) {
        flow.add(FlowFlags::FIN_RECEIVED);
    }
    if old == BPF_TCP_LAST_ACK || old == BPF_TCP_CLOSING {
        flow.add(FlowFlags::FIN_SENT);
    }
    if flow.tells() {
        let totals = Totals {
            bytes_sent: acknowledged.saturating_sub(counted_flags(flow)),
            bytes_received: received.saturating_sub(u64::from(flow.flags().has(FlowFlags::FIN_RECEIVED))),
            rtt_us: field!(context.ops, srtt_us) >> 3,
            retransmits: field!(context.ops, total_retrans),
        };
        report(RecordKind::Closed, 0, cookie(context), flow, &totals);
    }
    Closed { direction: flow.direction(), is_answered: acknowledged > 1 }
}

/// How many of the acknowledged bytes are SYN and FIN: the SYN is counted for the end that dialled.
#[inline(always)]
fn counted_flags(flow: &Flow) -> u64 {
    u64::from(flow.direction() == Direction::Outbound) + u64::from(flow.flags().has(FlowFlags::FIN_SENT))
}

/// What a record takes in the ring buffer, its header included.
const RECORD_BYTES: u64 = size_of::<Record>() as u64 + 8;

/// Writes a record, in place: a copy on the stack would be a quarter of it. Refusals wake the agent; the rest waits for its
/// next look, but for the record that fills a quarter of the buffer: waking costs more than all the rest, so it is done once
/// and not for every record while nobody reads.
#[inline(always)]
pub fn report(kind: RecordKind, reason: u32, socket: u64, flow: &Flow, totals: &Totals) {
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else { return count(Counter::EventsLost) };
    entry.write(Record::new(kind, reason, socket, *flow, now_ns(), *totals));
    let before = EVENTS.query(BPF_RB_AVAIL_DATA.into());
    let quarter = EVENTS.query(BPF_RB_RING_SIZE.into()) / 4;
    let fills_quarter = before < quarter && before + RECORD_BYTES >= quarter;
    let is_urgent = fills_quarter || reason != 0;
    entry.submit(if is_urgent { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }.into());
}

#[inline(always)]
fn cookie(context: &SockOpsContext) -> u64 {
    // SAFETY: the context is this program's.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}
