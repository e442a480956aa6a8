//! The maps as the decisions of `mesh_common` ask for them. Never writes but counters.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release};
use mesh_common::abi::{
    AddressEntry, BackendKey, Endpoint, Ip16, ListenKey, Listener, PodEntry, PolicyKey, PolicyValue, ProbeKey,
    ServiceEntry, Settings, Ticket, TicketKind, Tuple,
};
use mesh_common::counter::Counter;
use mesh_common::lookup::Arrivals;
use mesh_common::outbound::Maps;
use mesh_common::{MAX_WORKERS, verdict};

use crate::maps::{
    BACKENDS, COUNTERS, DIRECT, HEARTBEAT, LISTEN, PODIP, PODS, POLICY, PROBES, SERVICES, SETTINGS, TICKET,
};

/// The maps of this node.
pub struct State {
    settings: Settings,
    now_ns: u64,
}

/// Copies a map's value, if there is one.
macro_rules! copied {
    ($map:ident, $key:expr) => {
        // SAFETY: the value is plain bytes; at worst a concurrent update is seen in parts, for the time of one lookup.
        unsafe { $map.get($key).copied() }
    };
}
pub(crate) use copied;

impl State {
    /// The state of now; none before the agent wrote its settings.
    #[inline(always)]
    pub fn now() -> Option<Self> {
        let settings = *SETTINGS.get(0)?;
        Some(Self { settings, now_ns: now_ns() })
    }

    #[inline(always)]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    #[inline(always)]
    pub fn workers(&self) -> u32 {
        self.settings.workers
    }

    /// Age of a worker's last beat.
    #[inline(always)]
    pub fn worker_beat_age_ns(&self, worker: u32) -> u64 {
        match HEARTBEAT.get(worker).copied() {
            None | Some(0) => u64::MAX,
            Some(beat) => self.now_ns.saturating_sub(beat),
        }
    }
}

/// CLOCK_MONOTONIC.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing and only reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts one more.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(total) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own.
        unsafe { *total += 1 };
    }
}

/// Runs `with` on a listener of LISTEN, if it is there, and lets go of it.
#[inline(always)]
pub fn with_listener<T>(key: &ListenKey, with: impl FnOnce(*mut bpf_sock) -> T) -> Option<T> {
    let map = (&raw const LISTEN).cast_mut().cast::<c_void>();
    // SAFETY: the map is LISTEN and the key is its key type.
    let socket = unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(key).cast_mut().cast()) };
    if socket.is_null() {
        return None;
    }
    let answer = with(socket.cast());
    // SAFETY: the lookup acquired the reference, and it is not used after this.
    unsafe { bpf_sk_release(socket) };
    Some(answer)
}

impl Maps for State {
    #[inline(always)]
    fn service(&self, address: &Endpoint) -> Option<ServiceEntry> {
        copied!(SERVICES, address)
    }

    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<Endpoint> {
        copied!(BACKENDS, key)
    }

    #[inline(always)]
    fn address(&self, ip: &Ip16) -> Option<AddressEntry> {
        copied!(PODIP, ip)
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue> {
        copied!(POLICY, key).and_then(PolicyValue::from_word)
    }

    #[inline(always)]
    fn beat_age_ns(&self) -> u64 {
        let mut youngest = u64::MAX;
        for worker in 0..MAX_WORKERS {
            if worker >= self.settings.workers {
                break;
            }
            let age = self.worker_beat_age_ns(worker);
            if age < youngest {
                youngest = age;
            }
        }
        youngest
    }

    #[inline(always)]
    fn direct_max_age_ns(&self) -> u64 {
        self.settings.direct_max_age_ns
    }

    #[inline(always)]
    fn is_listening(&self, address: Ip16) -> bool {
        for worker in 0..MAX_WORKERS {
            if worker >= self.settings.workers {
                break;
            }
            let is_beating = verdict::is_beating(self.worker_beat_age_ns(worker));
            if is_beating && with_listener(&ListenKey::new(address, Listener::Outbound, worker), |_| ()).is_some() {
                return true;
            }
        }
        false
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing.
        unsafe { bpf_get_prandom_u32() }
    }
}

impl Arrivals for State {
    #[inline(always)]
    fn address(&self, ip: &Ip16) -> Option<AddressEntry> {
        copied!(PODIP, ip)
    }

    #[inline(always)]
    fn ticket(&self, tuple: &Tuple) -> Option<Ticket> {
        // SAFETY: plain bytes, of which three fields are read.
        match unsafe { DIRECT.get(tuple) } {
            Some(direct) if direct.is_ticket() => {
                Some(Ticket::new(TicketKind::Pod, 0, direct.flow.pod, direct.flow.namespace))
            }
            _ => copied!(TICKET, tuple),
        }
    }

    #[inline(always)]
    fn pod(&self, namespace: u64) -> Option<PodEntry> {
        copied!(PODS, &namespace)
    }

    #[inline(always)]
    fn is_probe_port(&self, key: &ProbeKey) -> bool {
        copied!(PROBES, key).is_some()
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue> {
        Maps::policy(self, key)
    }

    #[inline(always)]
    fn is_direct_in_force(&self, address: Ip16) -> bool {
        let listening = || self.is_listening(address);
        verdict::is_direct_in_force(self.beat_age_ns(), self.settings.direct_max_age_ns, listening)
    }
}
