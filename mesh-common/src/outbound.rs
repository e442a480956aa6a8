//! Where a connection of an enrolled pod goes, decided when it dials. Pure: the maps are behind [`Maps`]. Never lets a
//! connection of an unknown destination pass: what the maps do not say is the agent's.

use crate::abi::{
    AddressEntry, BackendKey, Endpoint, Ip16, POD_FAIL_OPEN, PodEntry, PolicyKey, PolicyValue, SERVICE_AGENT_ONLY,
    ServiceEntry,
};
use crate::counter::Counter;
use crate::verdict::{self, Verdict};
use crate::{PORT_OUTBOUND, is_own_port};

/// What the decision asks the maps.
pub trait Maps {
    /// SERVICES.
    fn service(&self, address: &Endpoint) -> Option<ServiceEntry>;
    /// BACKENDS.
    fn backend(&self, key: &BackendKey) -> Option<Endpoint>;
    /// PODIP.
    fn address(&self, ip: &Ip16) -> Option<AddressEntry>;
    /// POLICY.
    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue>;
    /// Age of the youngest heartbeat; `u64::MAX` when there was none.
    fn beat_age_ns(&self) -> u64;
    /// Setting: how old it may be for direct connections.
    fn direct_max_age_ns(&self) -> u64;
    /// Whether a beating worker has an outbound listener at this address.
    fn is_listening(&self, address: Ip16) -> bool;
    /// A random number.
    fn random(&self) -> u32;
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// To the pod itself, without the agent.
    Itself {
        /// What to dial; differs from what the application dialled when that is a service.
        target: Endpoint,
    },
    /// To another pod of this node, without the agent.
    Direct {
        /// What to dial.
        target: Endpoint,
    },
    /// To the agent.
    Agent {
        /// The listener to dial.
        via: Endpoint,
        /// The endpoint chosen behind a service, or [`Endpoint::NONE`].
        endpoint: Endpoint,
    },
    /// In the clear, as dialled.
    FailOpen,
    /// Nowhere.
    Refuse {
        /// Why.
        reason: Counter,
        /// What would have been dialled.
        target: Endpoint,
    },
}

/// Decides for a pod that dials `dialled`.
#[inline(always)]
pub fn decide(pod: &PodEntry, dialled: Endpoint, maps: &impl Maps) -> Outbound {
    // Dialling "any" means this host.
    if dialled.ip().is_loopback() || dialled.ip().is_unspecified() {
        return Outbound::Itself { target: dialled };
    }
    let endpoint = choose(&dialled, maps);
    let target = match endpoint {
        Choice::NoService => dialled,
        Choice::Slot(slot) => slot,
        Choice::AskAgent => return by_agent(pod, dialled, Endpoint::NONE, None, maps),
    };
    let chosen = if let Choice::Slot(slot) = endpoint { slot } else { Endpoint::NONE };
    let Some(destination) = maps.address(&target.ip()) else {
        return by_agent(pod, dialled, chosen, None, maps);
    };
    if destination.pod == pod.pod {
        return to_itself(target);
    }
    // A socket of one family cannot be pointed at the other.
    let policy = if target.ip().is_v4() == dialled.ip().is_v4() {
        policy_of(pod.class, &destination, target.port(), |key| maps.policy(key))
    } else {
        None
    };
    match by_agent(pod, dialled, chosen, policy, maps) {
        Outbound::Direct { .. } => Outbound::Direct { target },
        Outbound::Refuse { reason, .. } => Outbound::Refuse { reason, target },
        other => other,
    }
}

/// POLICY for a pair of classes: the exact port wins over any.
#[inline(always)]
pub fn policy_of(
    source: u32,
    destination: &AddressEntry,
    port: u16,
    look_up: impl Fn(&PolicyKey) -> Option<PolicyValue>,
) -> Option<PolicyValue> {
    match look_up(&PolicyKey::new(source, destination.class, port)) {
        Some(exact) => Some(exact),
        None => look_up(&PolicyKey::new(source, destination.class, 0)),
    }
}

#[derive(Clone, Copy)]
enum Choice {
    NoService,
    Slot(Endpoint),
    AskAgent,
}

#[inline(always)]
fn choose(dialled: &Endpoint, maps: &impl Maps) -> Choice {
    let Some(service) = maps.service(dialled) else { return Choice::NoService };
    if service.flags & SERVICE_AGENT_ONLY != 0 || service.slots == 0 {
        return Choice::AskAgent;
    }
    let slot = maps.random() % service.slots;
    match maps.backend(&BackendKey { service: service.id, slot }) {
        Some(endpoint) => Choice::Slot(endpoint),
        None => Choice::AskAgent,
    }
}

#[inline(always)]
fn to_itself(target: Endpoint) -> Outbound {
    if is_own_port(target.port()) {
        return Outbound::Refuse { reason: Counter::OutboundOwnPort, target };
    }
    Outbound::Itself { target }
}

#[inline(always)]
fn by_agent(
    pod: &PodEntry,
    dialled: Endpoint,
    endpoint: Endpoint,
    policy: Option<PolicyValue>,
    maps: &impl Maps,
) -> Outbound {
    let listener = if dialled.ip().is_v4() { pod.v4 } else { pod.v6 };
    let refuse = |reason| Outbound::Refuse { reason, target: dialled };
    let fails_open = pod.flags & POD_FAIL_OPEN != 0;
    let listening = || maps.is_listening(listener);
    match verdict::outbound(policy, maps.beat_age_ns(), maps.direct_max_age_ns(), fails_open, listening) {
        Verdict::Direct => Outbound::Direct { target: dialled },
        Verdict::Agent if listener == Ip16::NONE => refuse(Counter::OutboundNoFamily),
        Verdict::Agent => Outbound::Agent { via: Endpoint::new(listener, PORT_OUTBOUND), endpoint },
        Verdict::FailOpen => Outbound::FailOpen,
        Verdict::Refuse(reason) => refuse(reason),
    }
}

#[cfg(test)]
#[path = "outbound_tests.rs"]
mod tests;
