//! The resources that are in force, as control sent them. Kept beside the View by whoever takes answers in, so that they can
//! be written as they came.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE,
    proto::{
        discovery::{DeltaDiscoveryResponse, Resource},
        wellknown::Any,
    },
};

use crate::{control::is_alias, view::Refusal};

use super::Owner;

/// What the file says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Contents {
    /// Name of the node that it was written on.
    #[prost(string, tag = "1")]
    pub node: String,
    /// Address of the control daemon that the resources are from.
    #[prost(string, tag = "2")]
    pub control: String,
    /// Seconds since 1970.
    #[prost(uint64, tag = "3")]
    pub saved_at: u64,
    /// One for each type that control has answered for.
    #[prost(message, repeated, tag = "4")]
    pub kinds: Vec<Kind>,
}

/// All resources of one type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Kind {
    /// Its type URL.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// By name.
    #[prost(message, repeated, tag = "2")]
    pub held: Vec<Held>,
}

/// One resource.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Held {
    /// Its name on the stream.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Empty: it was refused, and is kept so that it goes on denying.
    #[prost(string, tag = "2")]
    pub version: String,
    /// As it came.
    #[prost(bytes = "vec", tag = "3")]
    pub value: Vec<u8>,
}

impl Contents {
    /// When it was written.
    pub fn saved(&self) -> SystemTime {
        // A number that no clock can show is far away all the same.
        UNIX_EPOCH.checked_add(Duration::from_secs(self.saved_at)).unwrap_or(UNIX_EPOCH)
    }
}

impl Kind {
    /// As control would send it.
    pub fn answer(&self) -> DeltaDiscoveryResponse {
        let resource = |held: &Held| Resource {
            name: held.name.clone(),
            version: held.version.clone(),
            resource: Some(Any { type_url: self.type_url.clone(), value: held.value.clone() }),
        };
        DeltaDiscoveryResponse {
            type_url: self.type_url.clone(),
            resources: self.held.iter().map(resource).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}

#[derive(Debug)]
struct Kept {
    version: Box<str>,
    value: Box<[u8]>,
}

/// What was taken of each type, by name.
#[derive(Debug, Default)]
pub struct Resources {
    kinds: HashMap<&'static str, HashMap<Box<str>, Kept>>,
    changes: u64,
}

/// Written where answers are taken in, read by the saver; both on the control thread.
pub type SharedResources = Arc<Mutex<Resources>>;

impl Resources {
    /// Takes an answer in of which `refused` was not taken. What was good before stays, as in the View. A policy that was
    /// never good stays too, without a version: the View denies what it selects.
    pub fn take(&mut self, answer: DeltaDiscoveryResponse, refused: &[Refusal]) {
        let types = [ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE];
        let Some(type_url) = types.into_iter().find(|known| *known == answer.type_url) else { return };
        let is_first = !self.kinds.contains_key(type_url);
        let kept = self.kinds.entry(type_url).or_default();
        let mut is_changed = is_first;
        for name in &answer.removed_resources {
            is_changed |= kept.remove(name.as_str()).is_some();
        }
        for resource in answer.resources {
            // An answer to a question for an address: an alias of what has a name of its own.
            let Some(any) = resource.resource.filter(|_| !is_alias(&resource.name)) else { continue };
            let is_refused = refused.iter().any(|refusal| refusal.name == resource.name);
            let version = match is_refused {
                false => resource.version,
                true if type_url == AUTHORIZATION_TYPE && any.type_url == type_url => String::new(),
                true => continue,
            };
            let was_good = kept.get(resource.name.as_str()).is_some_and(|kept| !kept.version.is_empty());
            if !(is_refused && was_good) {
                kept.insert(resource.name.into(), Kept { version: version.into(), value: any.value.into() });
                is_changed = true;
            }
        }
        self.changes += u64::from(is_changed);
    }

    /// Counts changes: the same number, the same resources.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// A copy for the disk. O(all).
    pub fn contents(&self, owner: &Owner, now: SystemTime) -> Contents {
        let mut kinds: Vec<Kind> = self.kinds.iter().map(|(type_url, kept)| kind(type_url, kept)).collect();
        kinds.sort_by(|one, other| one.type_url.cmp(&other.type_url));
        let saved_at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Contents { node: owner.node.clone(), control: owner.control.clone(), saved_at, kinds }
    }
}

fn kind(type_url: &str, kept: &HashMap<Box<str>, Kept>) -> Kind {
    let held = kept.iter().map(|(name, kept)| Held {
        name: name.to_string(),
        version: kept.version.to_string(),
        value: kept.value.to_vec(),
    });
    let mut held: Vec<Held> = held.collect();
    held.sort_by(|one, other| one.name.cmp(&other.name));
    Kind { type_url: type_url.to_owned(), held }
}
