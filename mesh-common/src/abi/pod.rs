//! What the maps hold per enrolled pod and per node: PODS, PODIP, CGROUPS, PROBES, LISTEN and SETTINGS.

use super::{Ip16, plain};

/// Flag of a [`PodEntry`]: while the agent is away its outbound connections go direct and in the clear.
pub const POD_FAIL_OPEN: u32 = 1;

/// Value of PODS, whose key is the network namespace's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    /// The agent's number for the pod, never 0.
    pub pod: u32,
    /// Policy class; 0 is "none": never in POLICY, so everything asks the agent.
    pub class: u32,
    /// [`POD_FAIL_OPEN`] or 0.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// IPv4 address to which connections of this family are redirected, or [`Ip16::NONE`].
    pub v4: Ip16,
    /// IPv6 address to which connections of this family are redirected, or [`Ip16::NONE`].
    pub v6: Ip16,
}

impl PodEntry {
    /// Whether the pod was enrolled with this address: others of its interface have no class and no listeners.
    #[inline(always)]
    pub fn is_enrolled_with(&self, address: &Ip16) -> bool {
        *address == self.v4 || *address == self.v6
    }
}

/// Value of PODIP, whose key is an address of an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressEntry {
    /// The pod that holds the address.
    pub pod: u32,
    /// Its policy class; 0 at addresses that it was not enrolled with.
    pub class: u32,
    /// Its namespace's cookie.
    pub namespace: u64,
}

/// Value of CGROUPS, whose key is a cgroup's id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupMark {
    /// The enrolled pod whose cgroup this is; 0: a parent of pods' cgroups (`kubepods`).
    pub pod: u32,
    /// Its depth below the hierarchy's root.
    pub level: u32,
}

/// Key of PROBES: a port that the pod declares for the kubelet's probes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProbeKey {
    pod: u32,
    port: [u8; 2],
    reserved: [u8; 2],
}

impl ProbeKey {
    /// From a pod and a port in host order.
    #[inline(always)]
    pub const fn new(pod: u32, port: u16) -> Self {
        Self { pod, port: port.to_be_bytes(), reserved: [0; 2] }
    }

    /// The pod.
    pub const fn pod(&self) -> u32 {
        self.pod
    }

    /// The port in host order.
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// Which of a pod's listeners.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// Port 15001: what the pod dials.
    Outbound = 1,
    /// Port 15006: what dials the pod in plaintext.
    Plaintext = 2,
    /// Port 15008.
    Hbone = 3,
}

impl Listener {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Outbound, Self::Plaintext, Self::Hbone];

    /// The port it is bound to, in host order.
    pub const fn port(self) -> u16 {
        match self {
            Self::Outbound => crate::PORT_OUTBOUND,
            Self::Plaintext => crate::PORT_PLAINTEXT,
            Self::Hbone => crate::PORT_HBONE,
        }
    }
}

/// Key of LISTEN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenKey {
    /// The pod's address.
    pub address: Ip16,
    kind: u32,
    /// The worker thread that accepts from this listener.
    pub worker: u32,
}

impl ListenKey {
    /// From the pod's address, the kind and the worker.
    #[inline(always)]
    pub const fn new(address: Ip16, kind: Listener, worker: u32) -> Self {
        Self { address, kind: kind as u32, worker }
    }
}

/// The one value of SETTINGS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cookie of the node's own network namespace.
    pub node_namespace: u64,
    /// A direct connection is refused once the last heartbeat is this old; 0: at once when the agent is away.
    pub direct_max_age_ns: u64,
    /// Worker threads of the agent, at most [`crate::MAX_WORKERS`].
    pub workers: u32,
    /// Bit n: some cgroup in CGROUPS is at level n below the hierarchy's root.
    pub cgroup_levels: u32,
}

plain!(PodEntry: 48, AddressEntry: 16, CgroupMark: 8, ProbeKey: 8, ListenKey: 24, Settings: 24);
