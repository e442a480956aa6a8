//! The policy class of each pod, in PODS (as a source) and for each of its addresses in PODIP (as a destination). Never gives
//! a pod a class: what the classes mean is in POLICY.

use std::collections::HashMap;
use std::sync::PoisonError;

use mesh_common::abi::{AddressEntry, Ip16, PodEntry};

use super::pods::{reading, writing};
use super::{Kernel, KernelError, PodId, sys};

impl Kernel {
    /// Changes a pod's policy class. A class number must never get another meaning while the programs run: for a moment the
    /// old one is in force at one end and the new one at the other.
    ///
    /// # Errors
    /// The pod is not enrolled.
    pub fn set_class(&self, pod: PodId, class: u32) -> Result<(), KernelError> {
        let pods = self.maps.pods.entries().map_err(reading("PODS"))?;
        if !pods.iter().any(|(_, entry)| entry.pod == pod.0) {
            return Err(KernelError::UnknownPod { pod: pod.0 });
        }
        match self.set_classes(&HashMap::from([(pod, class)]))? {
            0 => Ok(()),
            _ => Err(writing("PODS and PODIP")(std::io::Error::other("a class was not written"))),
        }
    }

    /// The highest class number in any map. An agent that was killed on the way may have left one that no pod has as a source:
    /// it must not get another meaning.
    ///
    /// # Errors
    /// The maps could not be read.
    pub fn last_class(&self) -> Result<u32, KernelError> {
        let pods = self.maps.pods.entries().map_err(reading("PODS"))?;
        let addresses = self.maps.addresses.entries().map_err(reading("PODIP"))?;
        let policy = self.maps.policy.entries().map_err(reading("POLICY"))?;
        let of_pods = pods.iter().map(|(_, pod)| pod.class).chain(addresses.iter().map(|(_, at)| at.class));
        let of_pairs = policy.iter().flat_map(|(key, _)| [key.source(), key.destination()]);
        Ok(of_pods.chain(of_pairs).max().unwrap_or_default())
    }

    /// The class of now and the wanted one of each pod that has both.
    pub(super) fn class_changes(&self, wanted: &HashMap<PodId, u32>) -> Result<Vec<(u32, u32)>, KernelError> {
        let pods = self.maps.pods.entries().map_err(reading("PODS"))?;
        Ok(pods.iter().filter_map(|(_, pod)| Some((pod.class, *wanted.get(&PodId(pod.pod))?))).collect())
    }

    /// Puts pods into classes: all as destinations, then all as sources. How many entries could not be written. A pod that
    /// is not enrolled is left out: it is coming or going, and both end with a change of the pods.
    pub(super) fn set_classes(&self, classes: &HashMap<PodId, u32>) -> Result<u64, KernelError> {
        let _settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = 0;
        let pods = self.maps.pods.entries().map_err(reading("PODS"))?;
        let is_enrolled_with = |address: &Ip16, pod: u32| {
            pods.iter().any(|(_, entry)| entry.pod == pod && entry.is_enrolled_with(address))
        };
        for (address, entry) in self.maps.addresses.entries().map_err(reading("PODIP"))? {
            let class = classes.get(&PodId(entry.pod)).copied().filter(|class| *class != entry.class);
            let Some(class) = class else { continue };
            if is_enrolled_with(&address, entry.pod) {
                let entry = AddressEntry { class, ..entry };
                failed += u64::from(self.maps.addresses.set(&address, &entry, sys::ANY).is_err());
            }
        }
        for (cookie, entry) in pods {
            if let Some(class) = classes.get(&PodId(entry.pod)).copied().filter(|class| *class != entry.class) {
                let entry = PodEntry { class, ..entry };
                failed += u64::from(self.maps.pods.set(&cookie, &entry, sys::ANY).is_err());
            }
        }
        Ok(failed)
    }
}
