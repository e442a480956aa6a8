//! Places at a listener: so many for all, and so many for one address, that whoever takes all it can get leaves some to the
//! others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::Reason;

/// How many may come.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// In all.
    pub all: usize,
    /// From one address.
    pub of_one_address: usize,
}

/// Who is inside.
#[derive(Debug)]
pub struct Gate {
    crowd: Crowd,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Gate {
    /// Nobody is inside.
    pub fn new(crowd: Crowd) -> Arc<Self> {
        Arc::new(Self { crowd, inside: Mutex::default() })
    }

    /// Takes a place; callers without an address (of a Unix socket) are only counted in all.
    ///
    /// # Errors
    /// There is none, and why.
    pub fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Place, Reason> {
        let address = address.map(|address| address.to_canonical());
        let mut inside = self.lock();
        if inside.all >= self.crowd.all {
            return Err(Reason::Crowded);
        }
        if let Some(address) = address {
            let same = inside.by_address.entry(address).or_default();
            if *same >= self.crowd.of_one_address {
                return Err(Reason::CrowdedAddress);
            }
            *same += 1;
        }
        inside.all += 1;
        Ok(Place { gate: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place; free again when dropped.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    address: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        inside.all -= 1;
        let Some(address) = self.address else { return };
        if let Some(same) = inside.by_address.get_mut(&address) {
            *same -= 1;
            if *same == 0 {
                inside.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_and_places_come_back() {
        let gate = Gate::new(Crowd { all: 5, of_one_address: 3 });
        let [one, other, third] = ["10.0.0.1", "::ffff:10.0.0.2", "10.0.0.3"].map(|text| text.parse().ok());
        let mut places: Vec<_> = (0..3).map(|_| gate.enter(one).unwrap()).collect();
        assert_eq!(gate.enter(one).err(), Some(Reason::CrowdedAddress));
        places.extend([gate.enter(other).unwrap(), gate.enter(None).unwrap()]);
        assert_eq!(gate.enter(third).err(), Some(Reason::Crowded));
        places.remove(0);
        assert!(gate.enter(one).is_ok());
        places.clear();
        let inside = gate.lock();
        assert_eq!((inside.all, inside.by_address.len()), (0, 0));
    }
}
