//! Writes what was compiled from the View into POLICY, SERVICES and BACKENDS, as a difference to what is there, and puts the
//! pods into their classes. Never lets a service point to slots of another time: new slots come first, then the service, then
//! the old slots go.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use mesh_common::abi::{BackendKey, Endpoint, PolicyKey, PolicyValue, SERVICE_AGENT_ONLY, ServiceEntry};

use super::moves::Moves;
use super::policy::{self, PolicyTable};
use super::{Kernel, KernelError, PodId, sys};

/// All that the hooks know of the View.
#[derive(Clone, Debug, Default)]
pub struct SteeringTables {
    /// Verdicts between classes; what is absent asks the agent.
    pub policy: PolicyTable,
    /// Service addresses.
    pub services: HashMap<SocketAddr, ServiceSlots>,
}

/// Where connections to one service address go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSlots {
    /// One endpoint per slot, each as often as its weight says; the hook picks a slot at random. Empty: ask the agent.
    pub slots: Arc<[SocketAddr]>,
    /// Always through the agent, which picks (affinity, L7, internalTrafficPolicy).
    pub agent_only: bool,
}

/// What a change of the tables did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteeringReport {
    /// Entries written.
    pub written: u64,
    /// Entries removed.
    pub removed: u64,
    /// Entries and classes that could not be written or removed: those connections ask the agent.
    pub failed: u64,
}

/// What POLICY, SERVICES and BACKENDS hold.
#[derive(Debug, Default)]
pub(super) struct Installed {
    policy: PolicyTable,
    services: HashMap<SocketAddr, InstalledService>,
    /// The id that the last service got.
    last_id: u32,
}

#[derive(Debug)]
struct InstalledService {
    id: u32,
    slots: ServiceSlots,
}

impl Kernel {
    /// Brings the maps to the given state and pods into their classes; pods that are not listed stay in theirs. On the way
    /// nothing is direct that was not and shall not be, and what was direct and shall be stays so. An entry that fails is
    /// counted and left out, so its connections ask the agent; the next call tries again.
    ///
    /// # Errors
    /// The maps could not be read.
    pub fn apply_steering(
        &self,
        tables: &SteeringTables,
        classes: &HashMap<PodId, u32>,
    ) -> Result<SteeringReport, KernelError> {
        let mut installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        let installed = match installed.take() {
            Some(known) => installed.insert(known),
            None => installed.insert(
                self.read_installed()
                    .map_err(|source| KernelError::system("reading the tables that are in force", source))?,
            ),
        };
        let moves = Moves::new(self.class_changes(classes)?);
        let mut report = SteeringReport::default();
        if !moves.is_empty() {
            let on_the_way = moves.table(&installed.policy, &tables.policy);
            // What fails here is tried again below, or not asked for any more.
            report.add(SteeringReport { failed: 0, ..self.apply_policy(&on_the_way, installed) });
            self.set_classes(classes)?;
        }
        report.add(self.apply_policy(&tables.policy, installed));
        report.failed += self.set_classes(classes)?;
        self.apply_services(&tables.services, installed, &mut report);
        Ok(report)
    }

    /// What an agent before this one left in the maps.
    fn read_installed(&self) -> io::Result<Installed> {
        let known = |(key, word): (PolicyKey, u32)| PolicyValue::from_word(word).map(|value| (key, value));
        let mut installed = Installed {
            policy: self.maps.policy.entries()?.into_iter().filter_map(known).collect(),
            ..Installed::default()
        };
        let backends: HashMap<_, _> = self.maps.backends.entries()?.into_iter().collect();
        installed.last_id = backends.keys().map(|key| key.service).max().unwrap_or(0);
        for (address, entry) in self.maps.services.entries()? {
            let Some(address) = address.address() else { continue };
            let slot = |slot| backends.get(&BackendKey { service: entry.id, slot }).and_then(Endpoint::address);
            let slots: Option<Arc<[SocketAddr]>> = (0..entry.slots).map(slot).collect();
            let slots =
                ServiceSlots { slots: slots.unwrap_or_default(), agent_only: entry.flags & SERVICE_AGENT_ONLY != 0 };
            installed.last_id = installed.last_id.max(entry.id);
            installed.services.insert(address, InstalledService { id: entry.id, slots });
        }
        self.remove_orphans(&backends, &installed)?;
        Ok(installed)
    }

    /// Slots of services that an agent did not live to remove.
    fn remove_orphans(&self, backends: &HashMap<BackendKey, Endpoint>, installed: &Installed) -> io::Result<()> {
        let slots: HashMap<u32, usize> =
            installed.services.values().map(|service| (service.id, service.slots.slots.len())).collect();
        for key in backends.keys() {
            if slots.get(&key.service).is_none_or(|slots| key.slot as usize >= *slots) {
                self.maps.backends.remove(key)?;
            }
        }
        Ok(())
    }

    fn apply_policy(&self, wanted: &PolicyTable, installed: &mut Installed) -> SteeringReport {
        policy::bring(&mut installed.policy, wanted, |key, value| match value {
            Some(value) => self.maps.policy.set(key, &(value as u32), sys::ANY).is_ok(),
            None => self.maps.policy.remove(key).is_ok(),
        })
    }

    fn apply_services(
        &self,
        wanted: &HashMap<SocketAddr, ServiceSlots>,
        installed: &mut Installed,
        report: &mut SteeringReport,
    ) {
        let gone: Vec<_> =
            installed.services.keys().filter(|address| !wanted.contains_key(*address)).copied().collect();
        for address in gone {
            let is_gone = self.maps.services.remove(&address.into()).is_ok();
            report.note(is_gone, Change::Removed);
            if is_gone && let Some(service) = installed.services.remove(&address) {
                self.remove_slots(service.id, service.slots.slots.len(), report);
            }
        }
        for (address, slots) in wanted {
            if installed.services.get(address).is_none_or(|now| now.slots != *slots) {
                self.put_service(*address, slots, installed, report);
            }
        }
    }

    /// New slots under a new id, then the service that points to them, then the old slots go. A hook that read the service
    /// just before finds its old slots or none, and then asks the agent.
    fn put_service(
        &self,
        address: SocketAddr,
        wanted: &ServiceSlots,
        installed: &mut Installed,
        report: &mut SteeringReport,
    ) {
        installed.last_id = installed.last_id.wrapping_add(1).max(1);
        let id = installed.last_id;
        let mut slots = wanted.clone();
        if !self.put_slots(id, &slots.slots, report) {
            // Asks the agent, and differs from what is wanted: the next call tries again.
            slots.slots = Arc::default();
        }
        let count = slots.slots.len();
        let flags = if slots.agent_only { SERVICE_AGENT_ONLY } else { 0 };
        let entry = ServiceEntry { id, slots: count as u32, flags };
        let is_written = self.maps.services.set(&address.into(), &entry, sys::ANY).is_ok();
        report.note(is_written, Change::Written);
        if !is_written {
            return self.remove_slots(id, count, report);
        }
        if let Some(old) = installed.services.insert(address, InstalledService { id, slots }) {
            self.remove_slots(old.id, old.slots.slots.len(), report);
        }
    }

    /// Whether all slots could be written; if not, none is left.
    fn put_slots(&self, service: u32, slots: &[SocketAddr], report: &mut SteeringReport) -> bool {
        for (endpoint, slot) in slots.iter().zip(0..) {
            let is_written =
                self.maps.backends.set(&BackendKey { service, slot }, &(*endpoint).into(), sys::ANY).is_ok();
            report.note(is_written, Change::Written);
            if !is_written {
                self.remove_slots(service, slot as usize, report);
                return false;
            }
        }
        true
    }

    fn remove_slots(&self, service: u32, slots: usize, report: &mut SteeringReport) {
        for slot in 0..slots as u32 {
            report.note(self.maps.backends.remove(&BackendKey { service, slot }).is_ok(), Change::Removed);
        }
    }
}

#[derive(Clone, Copy)]
enum Change {
    Written,
    Removed,
}

impl SteeringReport {
    const fn add(&mut self, other: Self) {
        self.written += other.written;
        self.removed += other.removed;
        self.failed += other.failed;
    }

    const fn note(&mut self, is_done: bool, change: Change) {
        match change {
            _ if !is_done => self.failed += 1,
            Change::Written => self.written += 1,
            Change::Removed => self.removed += 1,
        }
    }
}
