//! The connect hooks: a socket of an enrolled pod is sent where `mesh_common::outbound` says. Never touches a socket that is
//! not a stream, nor the agent's own. A socket of a nested network namespace inside an enrolled pod is refused: it has no
//! identity and nothing would capture it.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{Endpoint, Ip16, Meta, MetaKind, PodEntry, ProbeKey, Settings, meta_flags};
use mesh_common::counter::Counter;
use mesh_common::outbound::{self, Outbound};

use crate::maps::{CGROUPS, PODS, PROBES};
use crate::refusal::{self, Refused};
use crate::socket::{self, field};
use crate::state::{State, copied, count};

const SOCK_STREAM: u32 = 1;
const ALLOW: i32 = 1;
/// Cgroups deeper than this are not told apart.
const LEVELS: u32 = 32;

pub fn connect4(context: &SockAddrContext) -> i32 {
    let address = context.sock_addr;
    if field!(address, type_) != SOCK_STREAM {
        return ALLOW;
    }
    let ip = Ip16::from_v4_word(field!(address, user_ip4));
    match steer(context, dialled(address, ip)) {
        Ok(Some(to)) => {
            // A true IPv6 target is never chosen for an IPv4 socket.
            let word = to.ip().v4_word().unwrap_or(0);
            // SAFETY: the field may be written by this hook.
            unsafe { core::ptr::write_volatile(&raw mut (*address).user_ip4, word) };
            set_port(address, to);
            ALLOW
        }
        Ok(None) => ALLOW,
        Err(refused) => refused.answer(),
    }
}

pub fn connect6(context: &SockAddrContext) -> i32 {
    let address = context.sock_addr;
    if field!(address, type_) != SOCK_STREAM {
        return ALLOW;
    }
    let words = [
        field!(address, user_ip6[0]),
        field!(address, user_ip6[1]),
        field!(address, user_ip6[2]),
        field!(address, user_ip6[3]),
    ];
    match steer(context, dialled(address, Ip16::from_words(words))) {
        Ok(Some(to)) => {
            let words = to.ip().words();
            // SAFETY: the fields may be written by this hook.
            unsafe {
                core::ptr::write_volatile(&raw mut (*address).user_ip6[0], words[0]);
                core::ptr::write_volatile(&raw mut (*address).user_ip6[1], words[1]);
                core::ptr::write_volatile(&raw mut (*address).user_ip6[2], words[2]);
                core::ptr::write_volatile(&raw mut (*address).user_ip6[3], words[3]);
            }
            set_port(address, to);
            ALLOW
        }
        Ok(None) => ALLOW,
        Err(refused) => refused.answer(),
    }
}

#[inline(always)]
fn dialled(address: *const bpf_sock_addr, ip: Ip16) -> Endpoint {
    Endpoint::new(ip, u16::from_be(field!(address, user_port) as u16))
}

#[inline(always)]
fn set_port(address: *mut bpf_sock_addr, to: Endpoint) {
    // SAFETY: the field may be written by this hook; it holds the port in network order.
    unsafe { core::ptr::write_volatile(&raw mut (*address).user_port, u32::from(to.port().to_be())) };
}

/// What to dial instead, if anything.
#[inline(always)]
fn steer(context: &SockAddrContext, dialled: Endpoint) -> Result<Option<Endpoint>, Refused> {
    let Some(state) = State::now() else { return Ok(None) };
    // SAFETY: the context is this hook's.
    let namespace = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    let socket = socket::of_address(context.sock_addr);
    let Some(pod) = copied!(PODS, &namespace) else {
        if namespace == state.settings().node_namespace {
            mark_probe(socket, dialled, &state);
            return Ok(None);
        }
        return refuse_nested(state.settings()).map(|()| None);
    };
    let old = socket::meta(socket);
    if let Some(meta) = old {
        if matches!(meta.kind(), Some(MetaKind::ActiveSource | MetaKind::Exempt)) {
            return Ok(None);
        }
    }
    let outcome = outbound::decide(&pod, dialled, &state);
    carry_out(context, &pod, dialled, outcome, old.is_some())
}

/// Keeps on the socket what the other hooks need. What an earlier `connect` on the same socket left is replaced or forgotten.
#[inline(always)]
fn carry_out(
    context: &SockAddrContext,
    pod: &PodEntry,
    dialled: Endpoint,
    outcome: Outbound,
    has_meta: bool,
) -> Result<Option<Endpoint>, Refused> {
    let (target, flags, endpoint, counter) = match outcome {
        Outbound::Itself { target } => (target, meta_flags::DIRECT, target, Counter::OutboundSelf),
        Outbound::Direct { target } => (target, meta_flags::DIRECT, target, Counter::OutboundDirect),
        Outbound::Agent { via, endpoint } => (via, 0, endpoint, Counter::OutboundAgent),
        Outbound::FailOpen => (dialled, meta_flags::DIRECT, dialled, Counter::OutboundFailOpen),
        Outbound::Refuse { reason, target } => {
            refusal::report_outbound(context, pod.pod, dialled, target, reason);
            return Err(Refused::because(reason));
        }
    };
    let socket = socket::of_address(context.sock_addr);
    if target == dialled {
        if has_meta {
            socket::clear_meta(socket);
        }
        count(counter);
        return Ok(None);
    }
    let meta = Meta::new(MetaKind::ActiveDestination, flags, dialled, endpoint);
    if !socket::set_meta(socket, &meta) {
        return Err(Refused::because(Counter::StorageFull));
    }
    count(counter);
    Ok(Some(target))
}

/// A process of the node that dials a declared probe port says so in META, from where the ticket takes it. Sockets of pods
/// in the node's namespace (hostNetwork) are no probes.
#[inline(always)]
fn mark_probe(socket: *mut bpf_sock, dialled: Endpoint, state: &State) {
    let Some(destination) = state_address(state, &dialled.ip()) else { return };
    if copied!(PROBES, &ProbeKey::new(destination, dialled.port())).is_none() {
        return;
    }
    if first_cgroup_mark(state.settings()).is_some() {
        return;
    }
    let meta = Meta::new(MetaKind::Exempt, meta_flags::PROBE, dialled, Endpoint::NONE);
    // Without it the connection is judged as plaintext from nobody: the safe side.
    if !socket::set_meta(socket, &meta) {
        count(Counter::StorageFull);
    }
}

#[inline(always)]
fn state_address(state: &State, ip: &Ip16) -> Option<u32> {
    outbound::Maps::address(state, ip).map(|entry| entry.pod)
}

/// Refuses a task that is in an enrolled pod's cgroup but in a namespace that is not enrolled.
#[inline(always)]
fn refuse_nested(settings: &Settings) -> Result<(), Refused> {
    match first_cgroup_mark(settings) {
        Some(pod) if pod != 0 => Err(Refused::because(Counter::NestedNamespace)),
        _ => Ok(()),
    }
}

/// What CGROUPS says of the cgroups that the current task is in: the pod if one is enrolled, 0 if it is only below
/// `kubepods`, none if it is elsewhere.
#[inline(always)]
fn first_cgroup_mark(settings: &Settings) -> Option<u32> {
    let mut found = None;
    for level in 0..LEVELS {
        if settings.cgroup_levels >> level == 0 {
            break;
        }
        if settings.cgroup_levels >> level & 1 == 0 {
            continue;
        }
        // SAFETY: the helper only reads the current task; a level that is not there answers 0.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if let Some(mark) = copied!(CGROUPS, &id) {
            found = Some(mark.pod);
            if mark.pod != 0 {
                break;
            }
        }
    }
    found
}
