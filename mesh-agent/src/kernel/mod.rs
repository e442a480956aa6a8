//! Everything the agent asks of the kernel: loads and pins the programs, writes their maps, opens sockets inside pods'
//! namespaces, reads what the hooks tell. The only place that names aya. Never decides about a connection: the decisions
//! are in `mesh_common`, made by the hooks from the maps that are written here.

mod cgroup;
mod charge;
mod classes;
pub mod diag;
mod error;
mod events;
mod facts;
mod flows;
pub mod interface;
mod link;
pub mod listener;
mod load;
mod maps;
mod moves;
pub mod namespace;
mod pins;
mod pods;
mod policy;
mod socket;
mod steering;
mod sys;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mesh_common::MAX_WORKERS;
use mesh_common::abi::Settings;

use cgroup::CgroupRoot;
use load::Programs;
use maps::Maps;
use pins::Pins;
use steering::Installed;

pub use cgroup::{PodCgroup, subtree};
pub use charge::Attached;
pub use error::KernelError;
pub use events::Events;
#[cfg(any(test, fuzzing))]
pub(crate) use events::record;
pub use facts::{Fact, FactResult, precheck};
pub use flows::{FlowRow, MapFill, ProgramRuns};
pub use interface::AddressWatch;
pub use mesh_common::abi::{Direction, FlowFlags, Listener, PolicyKey, PolicyValue, Record, RecordKind};
pub use mesh_common::counter::Counter;
pub use namespace::NetworkNamespace;
pub use pins::MAPS_VERSION;
pub use pods::{AdoptedPod, PodId, PodSteering};
pub(crate) use policy::look_up;
pub use socket::Origin;
pub use steering::{ServiceSlots, SteeringReport, SteeringTables};

/// What the kernel side is started with.
#[derive(Clone, Debug)]
pub struct KernelSettings {
    /// The cgroup (v2) that hooks are attached to: above all pods of the node and the agent.
    pub cgroup_root: PathBuf,
    /// Where maps and links are pinned; mounted as bpffs when it is not.
    pub bpffs: PathBuf,
    /// How the maps are laid out that are made anew when that changes: [`MAPS_VERSION`], or what a build after this one says.
    pub maps_version: &'static str,
    /// The network namespace of the node itself; none: the one that the agent runs in.
    pub node_namespace: Option<PathBuf>,
    /// Worker threads that will beat, 1 to [`mesh_common::MAX_WORKERS`].
    pub workers: u32,
    /// How long a direct connection is allowed after the last heartbeat; zero: not at all once the agent is away.
    pub direct_max_age: Duration,
    /// Sizes of maps. They hold for maps created by this start; pinned ones keep theirs (a warning names the difference).
    pub map_sizes: MapSizes,
}

/// Largest number of entries of each map that is sized by settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Enrolled pods of the node.
    pub pods: u32,
    /// Service address and port pairs.
    pub services: u32,
    /// Slots of all services together; a change of a service needs room for its old and its new slots.
    pub backends: u32,
    /// Pairs of classes and ports.
    pub policies: u32,
    /// Handshakes under way (PENDING and TICKET each).
    pub handshakes: u32,
    /// Live connections that are listed (DIRECT and FLOWS each).
    pub flows: u32,
    /// Bytes of the ring buffer of records: a power of two, at least a page.
    pub event_bytes: u32,
}

impl Default for MapSizes {
    /// For 250 pods on the node and 50,000 endpoints.
    fn default() -> Self {
        Self {
            pods: 512,
            services: 65_536,
            backends: 262_144,
            policies: 65_536,
            handshakes: 65_536,
            flows: 131_072,
            event_bytes: 1 << 20,
        }
    }
}

/// The node's programs and maps, attached and pinned. All methods take `&self` and may be called from any thread.
///
/// Dropping it detaches nothing: links and maps are pinned, so that steering outlives the process.
#[derive(Debug)]
pub struct Kernel {
    pins: Pins,
    root: CgroupRoot,
    maps: Maps,
    programs: Programs,
    workers: u32,
    /// The maps of this version were made by this start: nothing that runs knows them yet.
    is_new: bool,
    /// Our programs are on the hooks. Before, nothing is written that another agent's programs go by.
    is_attached: AtomicBool,
    /// What SETTINGS holds; locked while pods come and go, which changes it.
    settings: Mutex<Settings>,
    /// What the maps compiled from the View hold; none until they were read or written once.
    installed: Mutex<Option<Installed>>,
}

impl Kernel {
    /// [`Kernel::prepare`] and [`Kernel::attach`] at once, for who has no pods to write in between.
    ///
    /// # Errors
    /// Missing kernel features or rights, a cgroup root that is no cgroup v2, wrong settings. What was attached by this
    /// call is taken back.
    pub fn start(settings: &KernelSettings) -> Result<Self, KernelError> {
        let kernel = Self::prepare(settings)?;
        match kernel.attach() {
            Ok(attached) => attached.keep(),
            Err(error) => {
                kernel.abandon();
                return Err(error);
            }
        }
        Ok(kernel)
    }

    /// Loads the programs and re-opens or creates the pinned maps. Attaches nothing: whoever is in charge stays so.
    ///
    /// # Errors
    /// As [`Kernel::start`].
    pub fn prepare(settings: &KernelSettings) -> Result<Self, KernelError> {
        settings.check()?;
        let root = CgroupRoot::open(&settings.cgroup_root)?;
        let pins = Pins::prepare(&settings.bpffs, settings.maps_version)?;
        let is_new = !pins.are_in_force();
        let prepared = Self::prepare_on(settings, root, pins.clone(), is_new);
        prepared.inspect_err(|_| pins.take_back(is_new))
    }

    fn prepare_on(settings: &KernelSettings, root: CgroupRoot, pins: Pins, is_new: bool) -> Result<Self, KernelError> {
        if is_new {
            pins.clear_maps()?;
        }
        let (programs, maps) = load::load(&pins, settings)?;
        maps.report_sizes(settings);
        let node = match &settings.node_namespace {
            Some(path) => NetworkNamespace::open(path)?,
            None => NetworkNamespace::current()?,
        };
        Ok(Self {
            pins,
            root,
            maps,
            programs,
            workers: settings.workers,
            is_new,
            is_attached: AtomicBool::new(false),
            settings: Mutex::new(Settings {
                node_namespace: node.cookie(),
                direct_max_age_ns: u64::try_from(settings.direct_max_age.as_nanos()).unwrap_or(u64::MAX),
                workers: settings.workers,
                cgroup_levels: 0,
            }),
            installed: Mutex::new(None),
        })
    }

    /// Cookie of the node's own network namespace.
    pub fn node_namespace(&self) -> u64 {
        self.settings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).node_namespace
    }

    /// Removes every link and map of the node (connect hooks first) and unmounts `bpffs`, if an agent mounted it: plain
    /// networking is back when this returns. Needs no running agent and is no error when nothing is there.
    ///
    /// # Errors
    /// A pin that could not be removed; the others are removed all the same.
    pub fn detach(bpffs: &Path) -> Result<(), KernelError> {
        Pins::at(bpffs, MAPS_VERSION).remove()
    }

    /// Says that a worker is alive. Every 500 ms or so, and only while the agent holds a View. Not before our programs are on
    /// the hooks: that would speak for another agent, which may hang.
    ///
    /// # Errors
    /// A worker number that is not below [`KernelSettings::workers`].
    pub fn heartbeat(&self, worker: u32) -> Result<(), KernelError> {
        if worker >= self.workers {
            return Err(KernelError::Setting { name: "workers", reason: format!("there is no worker {worker}") });
        }
        if self.is_attached() { self.beat(worker) } else { Ok(()) }
    }

    fn beat(&self, worker: u32) -> Result<(), KernelError> {
        self.maps
            .heartbeat
            .set(&worker, &monotonic_ns(), sys::ANY)
            .map_err(|source| KernelError::system("writing a heartbeat", source))
    }

    /// How long ago each worker beat; none: never.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn heartbeat_ages(&self) -> Result<Vec<Option<Duration>>, KernelError> {
        let now = monotonic_ns();
        let age = |worker: u32| {
            let beat = self.maps.heartbeat.get(&worker)?.filter(|beat| *beat != 0);
            Ok(beat.map(|beat| Duration::from_nanos(now.saturating_sub(beat))))
        };
        let ages: io::Result<Vec<_>> = (0..self.workers).map(age).collect();
        ages.map_err(|source| KernelError::system("reading heartbeats", source))
    }

    /// The totals of every counter of the hooks.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, KernelError> {
        let total = |counter: &Counter| Ok((*counter, self.maps.counters.total(*counter)?));
        let totals: io::Result<Vec<_>> = Counter::ALL.iter().map(total).collect();
        totals.map_err(|source| KernelError::system("reading the counters", source))
    }
}

impl KernelSettings {
    fn check(&self) -> Result<(), KernelError> {
        let wrong = |name, reason: String| Err(KernelError::Setting { name, reason });
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return wrong("workers", format!("{} is not between 1 and {MAX_WORKERS}", self.workers));
        }
        let bytes = self.map_sizes.event_bytes;
        if !bytes.is_power_of_two() || bytes < 4096 {
            return wrong("event_bytes", format!("{bytes} is not a power of two of at least 4096"));
        }
        match self.map_entries().iter().find(|(_, entries)| *entries == 0) {
            Some((map, _)) => wrong("map_sizes", format!("{map} would have no entries")),
            None => Ok(()),
        }
    }
}

/// CLOCK_MONOTONIC in ns, as the hooks see it.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec.cast_unsigned())
}

#[cfg(test)]
mod tests;
