//! Pods that go from one class to another, and what POLICY must hold until all have arrived. Never opens a pair: what is
//! direct on the way was direct before or is so in the end.

use std::collections::{BTreeSet, HashMap};

use mesh_common::abi::{PolicyKey, PolicyValue};

use super::policy::{PolicyTable, look_up};

/// From which classes pods go to which.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// The classes that the pods of a class will have; only of those that a pod leaves.
    left: HashMap<u32, BTreeSet<u32>>,
    /// Every class that a pod has.
    held: BTreeSet<u32>,
    /// Every class that a pod will have.
    used: BTreeSet<u32>,
}

impl Moves {
    /// From the class of now and the next one of each pod.
    pub(crate) fn new(pods: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut moves = Self::default();
        for (now, then) in pods {
            moves.used.insert(then);
            // Class 0 has no entries.
            if now != 0 {
                moves.held.insert(now);
                moves.left.entry(now).or_default().insert(then);
            }
        }
        moves.left.retain(|now, then| then.len() != 1 || !then.contains(now));
        moves
    }

    /// Whether no pod goes anywhere.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// The table for the time in which pods go, first as destinations and then as sources: pairs with a class that is left
    /// are judged as those that its pods come to. Where its pods part and the verdict with them, what is direct now is so
    /// for all until they have parted, and nothing else is.
    pub(crate) fn table(&self, installed: &PolicyTable, wanted: &PolicyTable) -> PolicyTable {
        let is_touched =
            |key: &PolicyKey| [key.source(), key.destination()].iter().any(|at| self.left.contains_key(at));
        let mut table: PolicyTable =
            wanted.iter().filter(|(key, _)| !is_touched(key)).map(|(key, value)| (*key, *value)).collect();
        let mut ports: HashMap<(u32, u32), BTreeSet<u16>> = HashMap::new();
        for key in installed.keys().chain(wanted.keys()) {
            ports.entry((key.source(), key.destination())).or_default().insert(key.port());
        }
        // Destinations are gone from their old classes before a source has a new one.
        for source in self.held.union(&self.used) {
            let before = if self.held.contains(source) { &self.held } else { &self.used };
            for destination in before.union(&self.used) {
                if is_touched(&PolicyKey::new(*source, *destination, 0)) {
                    let pair = self.pair(installed, wanted, *source, *destination);
                    pair.write(&ports, &mut table);
                }
            }
        }
        table
    }

    fn pair<'a>(&self, installed: &'a PolicyTable, wanted: &'a PolicyTable, source: u32, destination: u32) -> Pair<'a> {
        let (from, to) = (self.successors(source), self.successors(destination));
        let judged = from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))).collect();
        let arriving =
            from.iter().map(|from| (*from, destination)).filter(|_| self.used.contains(&destination)).collect();
        Pair { installed, wanted, classes: (source, destination), judged, arriving }
    }

    /// The classes in which the pods that are in a class, before or after the move, end.
    fn successors(&self, class: u32) -> BTreeSet<u32> {
        let mut classes = self.left.get(&class).cloned().unwrap_or_default();
        if self.used.contains(&class) {
            classes.insert(class);
        }
        classes
    }
}

struct Pair<'a> {
    installed: &'a PolicyTable,
    wanted: &'a PolicyTable,
    classes: (u32, u32),
    /// The pairs that its pods are in at the end.
    judged: Vec<(u32, u32)>,
    /// Of these those of destinations that come to it before its sources, or its other destinations, have left.
    arriving: Vec<(u32, u32)>,
}

impl Pair<'_> {
    fn write(&self, ports: &HashMap<(u32, u32), BTreeSet<u16>>, table: &mut PolicyTable) {
        let (source, destination) = self.classes;
        let any = self.verdict(0);
        if let Some(value) = any {
            table.insert(PolicyKey::new(source, destination, 0), value);
        }
        let of_pairs = self.judged.iter().chain([&self.classes]).filter_map(|pair| ports.get(pair)).flatten();
        for port in of_pairs.copied().filter(|port| *port != 0) {
            let value = match self.verdict(port) {
                None if any == Some(PolicyValue::Direct) => PolicyValue::Deny,
                None => continue,
                Some(value) => value,
            };
            table.insert(PolicyKey::new(source, destination, port), value);
        }
    }

    fn verdict(&self, port: u16) -> Option<PolicyValue> {
        let of = |table, (source, destination)| look_up(table, source, destination, port);
        let first = of(self.wanted, *self.judged.first()?);
        if self.judged.iter().all(|pair| of(self.wanted, *pair) == first) {
            return first;
        }
        let ends_direct = |pair: &(u32, u32)| of(self.wanted, *pair) == Some(PolicyValue::Direct);
        let is_open = self.arriving.iter().all(ends_direct);
        let was_direct = of(self.installed, self.classes) == Some(PolicyValue::Direct);
        (was_direct && is_open && self.judged.iter().any(ends_direct)).then_some(PolicyValue::Direct)
    }
}

#[cfg(test)]
#[path = "moves_tests.rs"]
mod tests;
