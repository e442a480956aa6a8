//! sk_lookup in an enrolled pod's namespace: carries out what `mesh_common::lookup` decides. Looks at TCP only, sees only
//! packets that found no established socket, and never lets one pass when no worker is alive to take it.

use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup};
use aya_ebpf::helpers::generated::bpf_sk_assign;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::abi::{Endpoint, Ip16, ListenKey, Listener};
use mesh_common::counter::Counter;
use mesh_common::lookup::{self, Arrivals, Steer};
use mesh_common::{MAX_WORKERS, verdict};

use crate::refusal;
use crate::socket::{AF_INET, field};
use crate::state::{State, count, with_listener};

const DROP: u32 = 0;
const PASS: u32 = 1;
const IPPROTO_TCP: u32 = 6;

pub fn lookup(context: &SkLookupContext) -> u32 {
    let packet = context.lookup;
    if field!(packet, protocol) != IPPROTO_TCP {
        return PASS;
    }
    let Some(state) = State::now() else { return DROP };
    let (source, destination) = ends(packet);
    match lookup::decide(source, destination, &state) {
        Steer::Pass(counter) => {
            count(counter);
            PASS
        }
        Steer::Drop(counter) => {
            count(counter);
            report(source, destination, counter, &state);
            DROP
        }
        Steer::Assign(kind) => assign(context, source, destination, kind, &state),
    }
}

/// Both ends. Both families are read and one is chosen by value, as in [`crate::socket`].
#[inline(always)]
fn ends(packet: *const bpf_sk_lookup) -> (Endpoint, Endpoint) {
    let source4 = Ip16::from_v4_word(field!(packet, remote_ip4));
    let destination4 = Ip16::from_v4_word(field!(packet, local_ip4));
    let source6 = Ip16::from_words([
        field!(packet, remote_ip6[0]),
        field!(packet, remote_ip6[1]),
        field!(packet, remote_ip6[2]),
        field!(packet, remote_ip6[3]),
    ]);
    let destination6 = Ip16::from_words([
        field!(packet, local_ip6[0]),
        field!(packet, local_ip6[1]),
        field!(packet, local_ip6[2]),
        field!(packet, local_ip6[3]),
    ]);
    let is_v4 = field!(packet, family) == AF_INET;
    let (source, destination) = if is_v4 { (source4, destination4) } else { (source6, destination6) };
    let source_port = u16::from_be(field!(packet, remote_port));
    (Endpoint::new(source, source_port), Endpoint::new(destination, field!(packet, local_port) as u16))
}

/// Gives the SYN to the listener of a worker that is alive. The first choice follows from the addresses: under SYN cookies
/// the handshake's last packet is looked up again and must meet the same listener.
#[inline(always)]
fn assign(context: &SkLookupContext, source: Endpoint, destination: Endpoint, kind: Listener, state: &State) -> u32 {
    let workers = state.workers();
    if workers == 0 {
        count(Counter::InboundAway);
        return DROP;
    }
    let at = listening(destination.ip(), state);
    let first = mix(source, destination) % workers;
    for step in 0..MAX_WORKERS {
        if step >= workers {
            break;
        }
        let worker = (first + step) % workers;
        if !verdict::is_beating(state.worker_beat_age_ns(worker)) {
            continue;
        }
        let flags = u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT);
        let assigned = with_listener(&ListenKey::new(at, kind, worker), |socket| {
            // SAFETY: the context is this hook's and the socket is held for the call.
            unsafe { bpf_sk_assign(context.lookup.cast(), socket.cast(), flags) }
        });
        if assigned == Some(0) {
            count(match kind {
                Listener::Outbound => Counter::AssignOutbound,
                Listener::Plaintext => Counter::AssignPlaintext,
                Listener::Hbone => Counter::AssignHbone,
            });
            return PASS;
        }
    }
    count(Counter::InboundAway);
    DROP
}

/// Where the listeners of the pod with this address are: for another address of its interface, at its own.
#[inline(always)]
fn listening(address: Ip16, state: &State) -> Ip16 {
    let pod = Arrivals::address(state, &address).and_then(|entry| state.pod(entry.namespace));
    match pod {
        Some(pod) if address.is_v4() => pod.v4,
        Some(pod) => pod.v6,
        None => address,
    }
}

/// A hash of both ends.
#[inline(always)]
fn mix(source: Endpoint, destination: Endpoint) -> u32 {
    let [a, b, c, d] = source.ip().words();
    let ports = u32::from(source.port()) << 16 | u32::from(destination.port());
    let mut hash = ports.wrapping_mul(0x9e37_79b1) ^ a ^ b.rotate_left(7) ^ c.rotate_left(13) ^ d.rotate_left(19);
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^ hash >> 13
}

/// Tells the agent of the drops that concern this node's pods. Others come from the wire: counted only, because anybody
/// could fill the buffer with them.
#[inline(always)]
fn report(source: Endpoint, destination: Endpoint, reason: Counter, state: &State) {
    let concerns_pods = matches!(
        reason,
        Counter::InboundDenied | Counter::InboundNotDirect | Counter::InboundStale | Counter::NoTicket
    );
    if concerns_pods {
        if let Some(entry) = Arrivals::address(state, &destination.ip()) {
            refusal::report_inbound(entry.pod, entry.namespace, source, destination, reason);
        }
    }
}
