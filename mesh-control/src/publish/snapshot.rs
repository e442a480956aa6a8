//! One state: encoded resources by name, each with the hash of its bytes as version, and the ways to find them. Never
//! changes once made; the next state shares what is equal.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use aws_lc_rs::digest;
use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_NAME, MESH_CONFIG_TYPE,
    proto::workload::{Address, NetworkMode, Service, Workload, address},
};
use prost::Message;

use crate::{compile::Resources, objects::metadata::Name};

/// How many changes are remembered. A subscriber that is further behind is compared with the whole state.
const REMEMBERED: usize = 256;

/// The types of resources, in the order in which a state is told: what restricts comes before what it restricts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `mesh.v1.MeshConfig`
    Mesh,
    /// `istio.security.Authorization`
    Authorization,
    /// `istio.workload.Address`
    Address,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Mesh, Kind::Authorization, Kind::Address];

    /// The kind with a type URL.
    pub fn of_url(url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// Its type URL.
    pub fn url(self) -> &'static str {
        match self {
            Kind::Mesh => MESH_CONFIG_TYPE,
            Kind::Authorization => AUTHORIZATION_TYPE,
            Kind::Address => ADDRESS_TYPE,
        }
    }
}

/// A resource as it goes on the wire.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: Arc<str>,
    /// The first 16 bytes of the SHA-256 of `bytes`.
    pub version: Version,
    /// The encoded message.
    pub bytes: Arc<[u8]>,
}

/// A content hash; 32 hexadecimal digits on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(u128);

impl Version {
    fn of(bytes: &[u8]) -> Version {
        let digest = digest::digest(&digest::SHA256, bytes);
        let (head, _) = digest.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
        Version(u128::from_be_bytes(*head))
    }

    /// Reads a version that we once wrote; another's text is no version of ours.
    pub fn parse(text: &str) -> Option<Version> {
        let number = u128::from_str_radix(text, 16).ok()?;
        (text.len() == 32).then_some(Version(number))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

type Entries = BTreeMap<Arc<str>, Arc<Entry>>;

/// One state.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts the states of this process; 0 is the one before the first.
    pub generation: u64,
    entries: [Entries; 3],
    by_address: HashMap<IpAddr, Vec<Arc<str>>>,
    by_node: HashMap<String, Vec<Arc<str>>>,
    by_service: HashMap<String, Vec<Arc<str>>>,
    accounts: BTreeMap<String, BTreeSet<Name>>,
    entry_accounts: BTreeMap<String, BTreeSet<Name>>,
    /// Trust domain of the certificates that are issued.
    pub trust_domain: String,
    changes: VecDeque<Arc<Change>>,
}

/// Names whose resource came, changed or went with one generation.
#[derive(Debug)]
struct Change {
    generation: u64,
    names: [Vec<Arc<str>>; 3],
}

impl Snapshot {
    /// The state after this one, or `None` when nothing is different.
    pub fn next(&self, resources: &Resources) -> Option<Snapshot> {
        let mut next = Snapshot {
            generation: self.generation + 1,
            accounts: resources.accounts.clone(),
            entry_accounts: resources.entry_accounts.clone(),
            trust_domain: resources.mesh.trust_domain.clone(),
            ..Snapshot::default()
        };
        self.carry(&mut next, Kind::Mesh, MESH_CONFIG_NAME, resources.mesh.encode_to_vec());
        for (name, authorization) in &resources.authorizations {
            self.carry(&mut next, Kind::Authorization, name, authorization.encode_to_vec());
        }
        for (name, service) in &resources.services {
            let message = Address { r#type: Some(address::Type::Service(service.clone())) };
            let name = self.carry(&mut next, Kind::Address, name, message.encode_to_vec());
            next.index_service(&name, service);
        }
        for (name, workload) in &resources.workloads {
            let message = Address { r#type: Some(address::Type::Workload(workload.clone())) };
            let name = self.carry(&mut next, Kind::Address, name, message.encode_to_vec());
            next.index_workload(&name, workload);
        }
        let names = Kind::ALL.map(|kind| self.changed(&next, kind));
        let has_same_accounts = self.accounts == next.accounts && self.entry_accounts == next.entry_accounts;
        let is_same = names.iter().all(Vec::is_empty) && has_same_accounts && self.generation > 0;
        if is_same {
            return None;
        }
        next.changes.clone_from(&self.changes);
        next.changes.push_back(Arc::new(Change { generation: next.generation, names }));
        if next.changes.len() > REMEMBERED {
            next.changes.pop_front();
        }
        Some(next)
    }

    /// Puts a resource into the next state; equal bytes are shared.
    fn carry(&self, next: &mut Snapshot, kind: Kind, name: &str, bytes: Vec<u8>) -> Arc<str> {
        let old = self.entries[kind as usize].get(name).filter(|old| *old.bytes == *bytes).cloned();
        let entry = old.unwrap_or_else(|| {
            let version = Version::of(&bytes);
            Arc::new(Entry { name: name.into(), version, bytes: bytes.into() })
        });
        let name = entry.name.clone();
        next.entries[kind as usize].insert(name.clone(), entry);
        name
    }

    fn index_service(&mut self, name: &Arc<str>, service: &Service) {
        for address in service.addresses.iter().filter_map(|address| ip(&address.address)) {
            self.by_address.entry(address).or_default().push(name.clone());
        }
    }

    fn index_workload(&mut self, name: &Arc<str>, workload: &Workload) {
        self.by_node.entry(workload.node.clone()).or_default().push(name.clone());
        for service in workload.services.keys() {
            self.by_service.entry(service.clone()).or_default().push(name.clone());
        }
        // Workloads on the host's network share its address, which therefore names none of them.
        if workload.network_mode() == NetworkMode::Standard {
            for address in workload.addresses.iter().filter_map(|address| ip(address)) {
                self.by_address.entry(address).or_default().insert(0, name.clone());
            }
        }
    }

    fn changed(&self, next: &Snapshot, kind: Kind) -> Vec<Arc<str>> {
        let (old, new) = (&self.entries[kind as usize], &next.entries[kind as usize]);
        let gone = old.keys().filter(|name| !new.contains_key(*name));
        let fresh = new.iter().filter(|(name, entry)| old.get(*name).is_none_or(|old| old.version != entry.version));
        gone.chain(fresh.map(|(name, _)| name)).cloned().collect()
    }

    /// A resource by its own name.
    pub fn entry(&self, kind: Kind, name: &str) -> Option<&Arc<Entry>> {
        self.entries[kind as usize].get(name)
    }

    /// All resources of a kind by name.
    pub fn entries(&self, kind: Kind) -> &Entries {
        &self.entries[kind as usize]
    }

    /// Names that changed after `generation`; `None` when that is too long ago.
    pub fn changed_since(&self, kind: Kind, generation: u64) -> Option<BTreeSet<Arc<str>>> {
        if generation == self.generation {
            return Some(BTreeSet::new());
        }
        let oldest = self.changes.front()?.generation;
        let later = self.changes.iter().filter(|change| change.generation > generation);
        (oldest <= generation + 1)
            .then(|| later.flat_map(|change| change.names[kind as usize].iter().cloned()).collect())
    }

    /// Workloads of a node.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.named(self.by_node.get(node).filter(|_| !node.is_empty()))
    }

    /// Workloads behind a service, by its `namespace/hostname`.
    pub fn behind(&self, service: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.named(self.by_service.get(service))
    }

    /// Workloads, then services, with the address in `network/IP`; only the one network without a name is known.
    pub fn with_address(&self, name: &str) -> impl Iterator<Item = &Arc<Entry>> {
        let address = name.strip_prefix('/').and_then(|address| address.parse::<IpAddr>().ok());
        self.named(address.and_then(|address| self.by_address.get(&address.to_canonical())))
    }

    fn named<'a>(&'a self, names: Option<&'a Vec<Arc<str>>>) -> impl Iterator<Item = &'a Arc<Entry>> {
        names.into_iter().flatten().filter_map(|name| self.entry(Kind::Address, name))
    }

    /// True when a workload of the ServiceAccount runs on the node.
    pub fn runs(&self, node: &str, account: &Name) -> bool {
        self.accounts.get(node).is_some_and(|accounts| accounts.contains(account)) || self.has_entry(node, account)
    }

    /// True when a WorkloadEntry of the ServiceAccount names the node.
    pub fn has_entry(&self, node: &str, account: &Name) -> bool {
        self.entry_accounts.get(node).is_some_and(|accounts| accounts.contains(account))
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}
