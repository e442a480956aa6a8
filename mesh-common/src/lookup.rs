//! What becomes of a SYN that arrives at an enrolled pod: the first rule that matches wins. Pure: the maps are behind
//! [`Arrivals`]. Never trusts an address for an identity: only a ticket says who dialled.

use crate::abi::{
    AddressEntry, Endpoint, Ip16, Listener, PodEntry, PolicyKey, PolicyValue, ProbeKey, Ticket, TicketKind, Tuple,
    ticket_flags,
};
use crate::counter::Counter;
use crate::outbound::policy_of;
use crate::{PORT_HBONE, PORT_OUTBOUND, PORT_PLAINTEXT};

/// What the decision asks the maps.
pub trait Arrivals {
    /// PODIP.
    fn address(&self, ip: &Ip16) -> Option<AddressEntry>;
    /// TICKET.
    fn ticket(&self, tuple: &Tuple) -> Option<Ticket>;
    /// PODS.
    fn pod(&self, namespace: u64) -> Option<PodEntry>;
    /// PROBES.
    fn is_probe_port(&self, key: &ProbeKey) -> bool;
    /// POLICY.
    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue>;
    /// Whether direct connections are in force for the pod at this address ([`crate::verdict::is_direct_in_force`]).
    fn is_direct_in_force(&self, address: Ip16) -> bool;
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// To whatever listens in the pod.
    Pass(Counter),
    /// To a listener of the agent, whichever worker is alive; dropped if none is.
    Assign(Listener),
    /// Refused with RST.
    Drop(Counter),
}

/// Decides for a SYN from `source` to `destination`.
#[inline(always)]
pub fn decide(source: Endpoint, destination: Endpoint, maps: &impl Arrivals) -> Steer {
    let to = maps.address(&destination.ip());
    let from = maps.address(&source.ip());
    if is_local(&source, &destination, from.as_ref(), to.as_ref()) {
        return match destination.port() {
            PORT_OUTBOUND => Steer::Assign(Listener::Outbound),
            PORT_PLAINTEXT | PORT_HBONE => Steer::Drop(Counter::InboundOwnPort),
            _ => Steer::Pass(Counter::InboundSelf),
        };
    }
    let Some(to) = to else { return Steer::Drop(Counter::InboundForeignAddress) };
    match destination.port() {
        PORT_OUTBOUND | PORT_PLAINTEXT => return Steer::Drop(Counter::InboundOwnPort),
        PORT_HBONE => return Steer::Assign(Listener::Hbone),
        _ => {}
    }
    match maps.ticket(&Tuple::new(source, destination)) {
        Some(ticket) => with_ticket(&ticket, &to, destination, maps),
        None if from.is_some() => Steer::Drop(Counter::NoTicket),
        None => Steer::Assign(Listener::Plaintext),
    }
}

/// Whether both ends are the same pod. By address, because local traffic to the pod's own address does not arrive on `lo`
/// as far as this hook can see; such sources from outside are martians or cannot finish a handshake.
#[inline(always)]
fn is_local(source: &Endpoint, destination: &Endpoint, from: Option<&AddressEntry>, to: Option<&AddressEntry>) -> bool {
    if source.ip() == destination.ip() || source.ip().is_loopback() {
        return true;
    }
    match (from, to) {
        (Some(from), Some(to)) => from.pod == to.pod,
        _ => false,
    }
}

#[inline(always)]
fn with_ticket(ticket: &Ticket, to: &AddressEntry, destination: Endpoint, maps: &impl Arrivals) -> Steer {
    match ticket.kind() {
        Some(TicketKind::Pod) => from_pod(ticket, to, destination, maps),
        Some(TicketKind::Node) => {
            let is_probe =
                ticket.has(ticket_flags::PROBE) && maps.is_probe_port(&ProbeKey::new(to.pod, destination.port()));
            if is_probe { Steer::Pass(Counter::InboundProbe) } else { Steer::Assign(Listener::Plaintext) }
        }
        // Of a version that this one does not know.
        None => Steer::Drop(Counter::InboundNotDirect),
    }
}

#[inline(always)]
fn from_pod(ticket: &Ticket, to: &AddressEntry, destination: Endpoint, maps: &impl Arrivals) -> Steer {
    // The class of now, not of the SYN: a pod that was withdrawn since speaks for nobody.
    let Some(source) = maps.pod(ticket.namespace()) else { return Steer::Drop(Counter::InboundNotDirect) };
    match policy_of(source.class, to, destination.port(), |key| maps.policy(key)) {
        Some(PolicyValue::Direct) if maps.is_direct_in_force(destination.ip()) => Steer::Pass(Counter::InboundDirect),
        Some(PolicyValue::Direct) => Steer::Drop(Counter::InboundStale),
        Some(PolicyValue::Deny) => Steer::Drop(Counter::InboundDenied),
        None => Steer::Drop(Counter::InboundNotDirect),
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
