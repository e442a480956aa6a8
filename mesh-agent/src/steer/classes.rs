//! Numbers for sets of workloads that the kernel need not tell apart: the same identity, selected by the same policies, all
//! reachable or none.
//! A number never gets a second meaning while the pins live: what was compiled for the old one may still be in the maps.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use mesh_api::Identity;

use crate::view::{PolicyName, Workload};

/// The class of each enrolled pod, by its number; what the kernel was told last.
pub type SharedClasses = Arc<ArcSwap<HashMap<u32, u32>>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Class {
    identity: Identity,
    /// Beside those of the mesh and of the namespace, which the identity implies.
    policies: BTreeSet<PolicyName>,
    /// The agent refuses connections to it, whatever the policies say.
    is_unsupported: bool,
}

/// The numbers given so far.
#[derive(Debug)]
pub struct Classes {
    known: HashMap<Class, u32>,
    last: u32,
}

impl Classes {
    /// `last`: the highest number that the kernel's maps may hold from before.
    pub fn after(last: u32) -> Self {
        Self { known: HashMap::new(), last }
    }

    /// The workload's class.
    pub(super) fn class_of(&mut self, workload: &Workload) -> u32 {
        let class = Class {
            identity: workload.identity.clone(),
            policies: workload.policies.iter().cloned().collect(),
            is_unsupported: workload.unsupported.is_some(),
        };
        *self.known.entry(class).or_insert_with(|| {
            self.last += 1;
            self.last
        })
    }

    /// Forgets classes without a member; their numbers are not given again.
    pub(super) fn keep(&mut self, used: &BTreeSet<u32>) {
        self.known.retain(|_, number| used.contains(number));
    }
}
