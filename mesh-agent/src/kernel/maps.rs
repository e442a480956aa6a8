//! The maps of the node, opened from their pins with the types of `mesh_common::abi`. Never creates one: loading does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use mesh_common::abi::{
    AddressEntry, BackendKey, CgroupMark, DirectFlow, Endpoint, Flow, Ip16, ListenKey, Meta, PendingKey, PodEntry,
    PolicyKey, ProbeKey, ServiceEntry, Settings, Ticket, Tuple,
};
use mesh_common::counter::Counter;

use super::pins::Pins;
use super::sys::{self, Attributes, Command, Map};
use super::{KernelError, KernelSettings};

/// Every pinned map, by the name that the programs give it.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) settings: Map<u32, Settings>,
    pub(super) heartbeat: Map<u32, u64>,
    pub(super) counters: PerCpu,
    pub(super) pods: Map<u64, PodEntry>,
    pub(super) addresses: Map<Ip16, AddressEntry>,
    pub(super) cgroups: Map<u64, CgroupMark>,
    pub(super) probes: Map<ProbeKey, u32>,
    pub(super) listen: Map<ListenKey, u32>,
    pub(super) policy: Map<PolicyKey, u32>,
    pub(super) services: Map<Endpoint, ServiceEntry>,
    pub(super) backends: Map<BackendKey, Endpoint>,
    pub(super) pending: Map<PendingKey, Meta>,
    pub(super) tickets: Map<Tuple, Ticket>,
    pub(super) direct: Map<Tuple, DirectFlow>,
    pub(super) flows: Map<u64, Flow>,
    pub(super) meta: Map<i32, Meta>,
    pub(super) agent: Map<i32, u32>,
}

/// Names of all maps that are pinned.
pub(super) const NAMES: [&str; 18] = [
    "SETTINGS",
    "HEARTBEAT",
    "COUNTERS",
    "PODS",
    "PODIP",
    "CGROUPS",
    "PROBES",
    "LISTEN",
    "POLICY",
    "SERVICES",
    "BACKENDS",
    "PENDING",
    "TICKET",
    "DIRECT",
    "FLOWS",
    "META",
    "AGENT",
    "EVENTS",
];

/// Those that sockets, handshakes and live connections carry on: whichever version of the programs comes next finds what the
/// one before it wrote. Their layout never changes; a new need gets a map beside them.
pub(super) const KEPT: [&str; 6] = ["META", "PENDING", "TICKET", "DIRECT", "FLOWS", "AGENT"];

impl Maps {
    /// Opens the maps that are pinned.
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            settings: open(pins, "SETTINGS")?,
            heartbeat: open(pins, "HEARTBEAT")?,
            counters: PerCpu(open(pins, "COUNTERS")?),
            pods: open(pins, "PODS")?,
            addresses: open(pins, "PODIP")?,
            cgroups: open(pins, "CGROUPS")?,
            probes: open(pins, "PROBES")?,
            listen: open(pins, "LISTEN")?,
            policy: open(pins, "POLICY")?,
            services: open(pins, "SERVICES")?,
            backends: open(pins, "BACKENDS")?,
            pending: open(pins, "PENDING")?,
            tickets: open(pins, "TICKET")?,
            direct: open(pins, "DIRECT")?,
            flows: open(pins, "FLOWS")?,
            meta: open(pins, "META")?,
            agent: open(pins, "AGENT")?,
        })
    }
}

impl Maps {
    /// Says which pinned maps are of another size than the settings ask for: they keep theirs until they are detached.
    pub(super) fn report_sizes(&self, settings: &KernelSettings) {
        for (name, entries) in settings.map_entries() {
            let Some(capacity) = self.capacity(name) else { continue };
            if capacity != entries {
                tracing::warn!(map = name, capacity, setting = entries, "a pinned map keeps its size");
            }
        }
    }

    /// How many entries a map can hold; none for one that is no map of entries.
    pub(super) fn capacity(&self, name: &str) -> Option<u32> {
        let capacity = match name {
            "PODS" => self.pods.capacity(),
            "PODIP" => self.addresses.capacity(),
            "CGROUPS" => self.cgroups.capacity(),
            "PROBES" => self.probes.capacity(),
            "LISTEN" => self.listen.capacity(),
            "POLICY" => self.policy.capacity(),
            "SERVICES" => self.services.capacity(),
            "BACKENDS" => self.backends.capacity(),
            "PENDING" => self.pending.capacity(),
            "TICKET" => self.tickets.capacity(),
            "DIRECT" => self.direct.capacity(),
            "FLOWS" => self.flows.capacity(),
            _ => return None,
        };
        capacity.ok()
    }
}

fn open<K: mesh_common::abi::Plain, V: mesh_common::abi::Plain>(
    pins: &Pins,
    name: &str,
) -> Result<Map<K, V>, KernelError> {
    Map::open(&pins.map(name)).map_err(|source| KernelError::system(format!("opening map {name}"), source))
}

/// COUNTERS: one value per counter and CPU.
#[derive(Debug)]
pub(super) struct PerCpu(Map<u32, u64>);

impl PerCpu {
    /// The sum of a counter over all CPUs.
    pub(super) fn total(&self, counter: Counter) -> io::Result<u64> {
        let mut values = vec![0_u64; possible_cpus()?];
        let key = counter as u32;
        let mut attributes = Attributes::default();
        attributes[0] = sys::number(self.0.as_fd()).into();
        attributes[1] = (&raw const key) as u64;
        attributes[2] = values.as_mut_ptr() as u64;
        // SAFETY: for a per-CPU map the kernel writes one value for each possible CPU, and so many are there.
        unsafe { sys::bpf(Command::MapLookup, &mut attributes) }?;
        Ok(values.iter().sum())
    }
}

/// How many CPUs the kernel reserves room for.
fn possible_cpus() -> io::Result<usize> {
    // "0-3", or "0,2-5" with holes: the kernel copies one value for each CPU that is possible.
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let mut cpus = 0;
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<usize>().map_err(io::Error::other);
        cpus += number(last)?.checked_sub(number(first)?).map_or(0, |more| more + 1);
    }
    Ok(cpus)
}

/// The descriptor as the key of a socket storage map.
pub(super) fn socket_key(socket: BorrowedFd<'_>) -> i32 {
    socket.as_raw_fd()
}
