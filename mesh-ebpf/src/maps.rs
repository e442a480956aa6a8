//! The maps. Names and types are what the agent finds by name; sizes are overridden by the agent's settings at load.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SockHash};
use mesh_common::MAX_WORKERS;
use mesh_common::abi::{
    AddressEntry, BackendKey, CgroupMark, DirectFlow, Endpoint, Flow, Ip16, ListenKey, Meta, PendingKey, PodEntry,
    PolicyKey, ProbeKey, ServiceEntry, Settings, Ticket, Tuple,
};

/// Slots of COUNTERS; more than there are counters, so that a new one does not need a new map.
const COUNTERS_SLOTS: u32 = 64;

#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
/// Per worker: CLOCK_MONOTONIC of its last beat, in ns.
#[map]
pub static HEARTBEAT: Array<u64> = Array::with_max_entries(MAX_WORKERS, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_SLOTS, 0);

/// Key: cookie of a network namespace.
#[map]
pub static PODS: HashMap<u64, PodEntry> = HashMap::with_max_entries(512, 0);
#[map]
pub static PODIP: HashMap<Ip16, AddressEntry> = HashMap::with_max_entries(2048, 0);
/// Key: id of a cgroup.
#[map]
pub static CGROUPS: HashMap<u64, CgroupMark> = HashMap::with_max_entries(1024, 0);
/// Value: 1.
#[map]
pub static PROBES: HashMap<ProbeKey, u32> = HashMap::with_max_entries(8192, 0);
#[map]
pub static LISTEN: SockHash<ListenKey> = SockHash::with_max_entries(32_768, 0);

/// Value: a [`mesh_common::abi::PolicyValue`].
#[map]
pub static POLICY: HashMap<PolicyKey, u32> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICES: HashMap<Endpoint, ServiceEntry> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static BACKENDS: HashMap<BackendKey, Endpoint> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

#[map]
pub static PENDING: LruHashMap<PendingKey, Meta> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static TICKET: LruHashMap<Tuple, Ticket> = LruHashMap::with_max_entries(65_536, 0);
/// Connections between pods of the node. Its entries are there from the start, as those of FLOWS (about 20 MB each): one that
/// is made for each connection costs a connection of the direct path 2 µs more. Full, TICKET and FLOWS serve instead.
#[map]
pub static DIRECT: HashMap<Tuple, DirectFlow> = HashMap::with_max_entries(131_072, 0);
/// Key: cookie of a socket.
#[map]
pub static FLOWS: HashMap<u64, Flow> = HashMap::with_max_entries(131_072, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 21, 0);

/// What a socket is to the hooks.
#[btf_map]
pub static META: SocketStorage<Meta, { BPF_F_NO_PREALLOC as usize }> = SocketStorage::new();
/// On the agent's listeners; their accepted children inherit it, so that the hooks know them from the application's.
#[btf_map]
pub static AGENT: SocketStorage<u32, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> = SocketStorage::new();

/// A socket storage map as BTF describes it: aya's own takes neither flags nor the context of sock_ops.
#[repr(C)]
pub struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are placeholders for BTF and are never dereferenced.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    pub fn as_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
