//! Pods in the maps: PODS, PODIP, CGROUPS and PROBES entries and the `sk_lookup` link of the pod's namespace. Never opens a
//! listener: those go into LISTEN before a pod is enrolled.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::PoisonError;

use mesh_common::abi::{AddressEntry, CgroupMark, Ip16, POD_FAIL_OPEN, PodEntry, ProbeKey, Settings};

use super::cgroup::PodCgroup;
use super::link::{self, Change, Hook, LinkInfo};
use super::{Kernel, KernelError, pins, sys};

/// The agent's number for a pod, unique among the enrolled pods of this node and never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u32);

/// How a pod is steered.
#[derive(Clone, Debug)]
pub struct PodSteering<'a> {
    /// The agent's number for it.
    pub pod: PodId,
    /// Its network namespace.
    pub namespace: BorrowedFd<'a>,
    /// The namespace's cookie ([`super::NetworkNamespace::cookie`]): the key of the pod everywhere.
    pub cookie: u64,
    /// Where IPv4 connections are redirected to; its listeners are bound to it.
    pub v4: Option<Ipv4Addr>,
    /// Where IPv6 connections are redirected to; its listeners are bound to it.
    pub v6: Option<Ipv6Addr>,
    /// Other global addresses of the same interface. Never loopback or link-local. They have no class: who dials one asks
    /// the agent.
    pub other_addresses: Vec<IpAddr>,
    /// The pod's cgroup ([`PodCgroup::find`]).
    pub cgroups: Vec<PodCgroup>,
    /// Policy class, 0: none (everything asks the agent).
    pub class: u32,
    /// Ports declared for the kubelet's probes.
    pub probe_ports: Vec<u16>,
    /// Outbound goes direct and in the clear while the agent is away.
    pub fail_open: bool,
}

/// A pod that the pinned maps hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptedPod {
    /// Its number.
    pub pod: PodId,
    /// Its namespace's cookie.
    pub cookie: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its policy class.
    pub class: u32,
    /// Whether it fails open.
    pub fail_open: bool,
}

impl PodSteering<'_> {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6));
        own.chain(self.other_addresses.iter().copied())
    }

    fn check(&self) -> Result<(), KernelError> {
        let wrong = |name, reason: String| Err(KernelError::Setting { name, reason });
        if self.pod.0 == 0 {
            return wrong("pod", "0 is no pod".into());
        }
        if self.v4.is_none() && self.v6.is_none() {
            return wrong("addresses", "a pod needs at least one".into());
        }
        if let Some(address) = self.addresses().find(|address| !is_global(*address)) {
            return wrong("addresses", format!("{address} is loopback, link-local, multicast or unspecified"));
        }
        match self.cgroups.iter().find(|cgroup| cgroup.level >= u32::BITS) {
            Some(cgroup) => wrong("cgroups", format!("level {} is too deep", cgroup.level)),
            None => Ok(()),
        }
    }

    fn entry(&self) -> PodEntry {
        PodEntry {
            pod: self.pod.0,
            class: self.class,
            flags: if self.fail_open { POD_FAIL_OPEN } else { 0 },
            reserved: 0,
            v4: self.v4.map_or(Ip16::NONE, |v4| IpAddr::V4(v4).into()),
            v6: self.v6.map_or(Ip16::NONE, |v6| IpAddr::V6(v6).into()),
        }
    }
}

/// Whether other pods may dial the address.
pub(super) fn is_global(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_link_local)
}

pub(super) fn writing(map: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| match sys::is_full(&source) {
        true => KernelError::Full { map },
        false => KernelError::system(format!("writing {map}"), source),
    }
}

pub(super) fn reading(map: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError::system(format!("reading {map}"), source)
}

impl Kernel {
    /// Puts steering in force for a pod: inbound first, outbound last. Insert its listeners before, or its connections are
    /// refused until they are there. A pod that is enrolled already (same number and cookie) is brought to the given state.
    ///
    /// # Errors
    /// An address or the namespace belongs to another pod; a map is full. What was written for a new pod is taken back.
    pub fn enrol(&self, pod: &PodSteering<'_>) -> Result<(), KernelError> {
        pod.check()?;
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = self.check_owners(pod)?;
        let written = self.write(pod, &mut settings);
        if written.is_err()
            && is_new
            && let Err(error) = self.remove(pod.pod)
        {
            tracing::error!(%error, pod = pod.pod.0, "a failed enrolment could not be taken back");
        }
        written
    }

    /// Refuses what another pod holds; whether the pod is new.
    fn check_owners(&self, pod: &PodSteering<'_>) -> Result<bool, KernelError> {
        let held = self.maps.pods.get(&pod.cookie).map_err(reading("PODS"))?;
        if let Some(other) = held.filter(|other| other.pod != pod.pod.0) {
            return Err(KernelError::NamespaceTaken { cookie: pod.cookie, pod: other.pod });
        }
        for address in pod.addresses() {
            let held = self.maps.addresses.get(&address.into()).map_err(reading("PODIP"))?;
            if let Some(other) = held.filter(|other| other.namespace != pod.cookie) {
                return Err(KernelError::AddressTaken { address, pod: other.pod });
            }
        }
        Ok(held.is_none())
    }

    fn write(&self, pod: &PodSteering<'_>, settings: &mut Settings) -> Result<(), KernelError> {
        self.mark_cgroups(pod, settings)?;
        let probes: HashSet<_> = pod.probe_ports.iter().map(|port| ProbeKey::new(pod.pod.0, *port)).collect();
        for key in &probes {
            self.maps.probes.set(key, &1, sys::ANY).map_err(writing("PROBES"))?;
        }
        let addresses: HashSet<Ip16> = pod.addresses().map(Into::into).collect();
        for address in &addresses {
            let class = if pod.entry().is_enrolled_with(address) { pod.class } else { 0 };
            let entry = AddressEntry { pod: pod.pod.0, class, namespace: pod.cookie };
            self.maps.addresses.set(address, &entry, sys::ANY).map_err(writing("PODIP"))?;
        }
        let mut change = Change::default();
        let pin = self.pins.lookup(pod.cookie);
        let is_attached = |link: &LinkInfo| link.namespace_inode() != 0;
        let program = self.programs.of(Hook::Lookup)?;
        match self.is_attached() {
            true => change.put(Hook::Lookup, program, pod.namespace, &pin, is_attached)?,
            // Another agent's may be there: it is updated in its turn.
            false => change.put_if_none(Hook::Lookup, program, pod.namespace, &pin, is_attached)?,
        }
        self.maps.pods.set(&pod.cookie, &pod.entry(), sys::ANY).map_err(writing("PODS"))?;
        change.keep();
        // Of an earlier state of the same pod.
        self.remove_probes(pod.pod, &probes)?;
        self.remove_addresses(pod.pod, &addresses)?;
        let cgroups: HashSet<u64> = pod.cgroups.iter().map(|cgroup| cgroup.id).collect();
        self.remove_cgroups(pod.pod, &cgroups)
    }

    /// CGROUPS entries of a pod and of what is above all pods, and the levels at which the hooks look.
    fn mark_cgroups(&self, pod: &PodSteering<'_>, settings: &mut Settings) -> Result<(), KernelError> {
        let above = self.root.above_pods()?.into_iter().map(|cgroup| (cgroup, 0));
        let own = pod.cgroups.iter().map(|cgroup| (*cgroup, pod.pod.0));
        let marks: Vec<_> = above.chain(own).collect();
        self.write_marks(&marks, settings)
    }

    fn write_marks(&self, marks: &[(PodCgroup, u32)], settings: &mut Settings) -> Result<(), KernelError> {
        for (cgroup, pod) in marks {
            let mark = CgroupMark { pod: *pod, level: cgroup.level };
            self.maps.cgroups.set(&cgroup.id, &mark, sys::ANY).map_err(writing("CGROUPS"))?;
            settings.cgroup_levels |= cgroup.levels();
        }
        if !self.is_attached() {
            return Ok(());
        }
        self.maps.settings.set(&0, settings, sys::ANY).map_err(writing("SETTINGS"))
    }

    /// At start: the levels of the pods of before.
    pub(super) fn adopt_cgroup_levels(&self) -> Result<(), KernelError> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, mark) in self.maps.cgroups.entries().map_err(reading("CGROUPS"))? {
            settings.cgroup_levels |= 1_u32.checked_shl(mark.level).unwrap_or(0);
        }
        let above: Vec<_> = self.root.above_pods()?.into_iter().map(|cgroup| (cgroup, 0)).collect();
        self.write_marks(&above, &mut settings)
    }

    /// Ends steering of a pod: outbound first, then the `sk_lookup` link, its addresses, probes, cgroups and LISTEN entries.
    /// No error when it is not enrolled.
    ///
    /// # Errors
    /// A map entry or pin that could not be removed; the others are removed all the same.
    pub fn withdraw(&self, pod: PodId) -> Result<(), KernelError> {
        let _settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove(pod)
    }

    fn remove(&self, pod: PodId) -> Result<(), KernelError> {
        let outbound = self.remove_outbound(pod);
        let listeners = self.remove_listeners(pod);
        let addresses = self.remove_addresses(pod, &HashSet::new());
        let probes = self.remove_probes(pod, &HashSet::new());
        let cgroups = self.remove_cgroups(pod, &HashSet::new());
        outbound.and(listeners).and(addresses).and(probes).and(cgroups)
    }

    fn remove_outbound(&self, pod: PodId) -> Result<(), KernelError> {
        let mut cookies: HashSet<u64> = HashSet::new();
        for (cookie, entry) in self.maps.pods.entries().map_err(reading("PODS"))? {
            if entry.pod == pod.0 {
                self.maps.pods.remove(&cookie).map_err(writing("PODS"))?;
                cookies.insert(cookie);
            }
        }
        // A failed enrolment has addresses but is not in PODS yet.
        let addresses = self.maps.addresses.entries().map_err(reading("PODIP"))?;
        cookies.extend(addresses.iter().filter(|(_, entry)| entry.pod == pod.0).map(|(_, entry)| entry.namespace));
        cookies.iter().try_for_each(|cookie| pins::detach(&self.pins.lookup(*cookie)))
    }

    fn remove_addresses(&self, pod: PodId, but: &HashSet<Ip16>) -> Result<(), KernelError> {
        for (address, entry) in self.maps.addresses.entries().map_err(reading("PODIP"))? {
            if entry.pod == pod.0 && !but.contains(&address) {
                self.maps.addresses.remove(&address).map_err(writing("PODIP"))?;
            }
        }
        Ok(())
    }

    fn remove_probes(&self, pod: PodId, but: &HashSet<ProbeKey>) -> Result<(), KernelError> {
        for (key, _) in self.maps.probes.entries().map_err(reading("PROBES"))? {
            if key.pod() == pod.0 && !but.contains(&key) {
                self.maps.probes.remove(&key).map_err(writing("PROBES"))?;
            }
        }
        Ok(())
    }

    fn remove_cgroups(&self, pod: PodId, but: &HashSet<u64>) -> Result<(), KernelError> {
        for (id, mark) in self.maps.cgroups.entries().map_err(reading("CGROUPS"))? {
            if mark.pod == pod.0 && !but.contains(&id) {
                self.maps.cgroups.remove(&id).map_err(writing("CGROUPS"))?;
            }
        }
        Ok(())
    }

    /// Whether a pod's namespace is proven to be gone: the link that was attached to it says so. A link that is not there
    /// proves nothing.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn is_namespace_gone(&self, cookie: u64) -> Result<bool, KernelError> {
        let pin = self.pins.lookup(cookie);
        let failed = |source| KernelError::system(format!("reading link {}", pin.display()), source);
        match sys::open_pinned(&pin) {
            Ok(link) => Ok(link::info(link.as_fd()).map_err(failed)?.namespace_inode() == 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// The pods that the maps hold: after a restart, those of the agent before.
    ///
    /// # Errors
    /// The maps could not be read.
    pub fn pods(&self) -> Result<Vec<AdoptedPod>, KernelError> {
        let addresses = self.maps.addresses.entries().map_err(reading("PODIP"))?;
        let pods = self.maps.pods.entries().map_err(reading("PODS"))?;
        let adopted = |(cookie, entry): (u64, PodEntry)| AdoptedPod {
            pod: PodId(entry.pod),
            cookie,
            addresses: addresses.iter().filter(|(_, at)| at.pod == entry.pod).map(|(ip, _)| (*ip).into()).collect(),
            class: entry.class,
            fail_open: entry.flags & POD_FAIL_OPEN != 0,
        };
        Ok(pods.into_iter().map(adopted).collect())
    }
}
