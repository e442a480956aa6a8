//! POLICY from one state to the next, in an order in which no moment is wider than both: what is refused first, then what
//! is allowed, then what nobody asks for any more goes. Never decides what is allowed.

use std::collections::{HashMap, HashSet};

use mesh_common::abi::{PolicyKey, PolicyValue};

use super::SteeringReport;

/// A table as the hooks read it.
pub(crate) type PolicyTable = HashMap<PolicyKey, PolicyValue>;

/// As the hooks look: the exact port wins over any.
pub(crate) fn look_up(table: &PolicyTable, source: u32, destination: u32, port: u16) -> Option<PolicyValue> {
    let exact = table.get(&PolicyKey::new(source, destination, port));
    exact.or_else(|| table.get(&PolicyKey::new(source, destination, 0))).copied()
}

/// Brings a table to the wanted state by `put`, which writes an entry, or removes it, and says whether it could. What is
/// not direct in either state is direct at no moment, what is direct in both is so at every moment. A pair of which an
/// exact port cannot be written gets no entry for "any" either: it would decide for the port that is missing.
pub(crate) fn bring(
    installed: &mut PolicyTable,
    wanted: &PolicyTable,
    put: impl FnMut(&PolicyKey, Option<PolicyValue>) -> bool,
) -> SteeringReport {
    let mut change = Change { installed, wanted, put, report: SteeringReport::default(), lacking: HashSet::new() };
    change.run();
    if change.differing() > 0 && change.report.removed > 0 {
        // There is room now.
        change.lacking.clear();
        change.run();
    }
    change.report.failed = change.differing();
    change.report
}

struct Change<'a, Put> {
    installed: &'a mut PolicyTable,
    wanted: &'a PolicyTable,
    put: Put,
    report: SteeringReport,
    /// Pairs of which an exact port could not be written.
    lacking: HashSet<(u32, u32)>,
}

impl<Put: FnMut(&PolicyKey, Option<PolicyValue>) -> bool> Change<'_, Put> {
    fn run(&mut self) {
        self.write_exact(|now, value| value == PolicyValue::Deny || now == Some(PolicyValue::Direct));
        self.tighten();
        self.write_exact(|_, _| true);
        self.write_any();
        self.remove_unwanted();
    }

    /// Writes those exact ports that pass the filter, which is asked with the verdict of now.
    fn write_exact(&mut self, filter: impl Fn(Option<PolicyValue>, PolicyValue) -> bool) {
        for (key, value) in self.wanted.iter().filter(|(key, _)| key.port() != 0) {
            let now = look_up(self.installed, key.source(), key.destination(), key.port());
            if filter(now, *value) && !self.write(key, *value) {
                self.lacking.insert(pair(key));
            }
        }
    }

    /// Takes back what was direct and is not any more. "Any" goes first: an exact port that goes leaves its port to it.
    fn tighten(&mut self) {
        let is_loose = |(key, value): &(&PolicyKey, &PolicyValue)| {
            let then = look_up(self.wanted, key.source(), key.destination(), key.port());
            **value == PolicyValue::Direct && then != Some(PolicyValue::Direct)
        };
        let mut loose: Vec<PolicyKey> = self.installed.iter().filter(is_loose).map(|(key, _)| *key).collect();
        let is_lacking = |key: &&PolicyKey| key.port() == 0 && self.lacking.contains(&pair(key));
        loose.extend(self.installed.keys().filter(is_lacking));
        loose.sort_by_key(PolicyKey::port);
        for key in loose {
            match self.wanted.get(&key) {
                Some(value) if !self.lacking.contains(&pair(&key)) => {
                    self.write(&key, *value);
                }
                _ => self.remove(&key),
            }
        }
    }

    fn write_any(&mut self) {
        for (key, value) in self.wanted.iter().filter(|(key, _)| key.port() == 0) {
            if self.lacking.contains(&pair(key)) {
                self.remove(key);
            } else {
                self.write(key, *value);
            }
        }
    }

    fn remove_unwanted(&mut self) {
        let mut unwanted: Vec<PolicyKey> =
            self.installed.keys().filter(|key| !self.wanted.contains_key(*key)).copied().collect();
        unwanted.sort_by_key(PolicyKey::port);
        for key in unwanted {
            self.remove(&key);
        }
    }

    /// Whether the entry is there now. If not, nothing is: not what was there before either.
    fn write(&mut self, key: &PolicyKey, value: PolicyValue) -> bool {
        if self.installed.get(key) == Some(&value) {
            return true;
        }
        let is_written = (self.put)(key, Some(value));
        if is_written {
            self.installed.insert(*key, value);
            self.report.written += 1;
        } else {
            self.remove(key);
        }
        is_written
    }

    fn remove(&mut self, key: &PolicyKey) {
        if self.installed.contains_key(key) && (self.put)(key, None) {
            self.installed.remove(key);
            self.report.removed += 1;
        }
    }

    fn differing(&self) -> u64 {
        let missing = self.wanted.iter().filter(|(key, value)| self.installed.get(key) != Some(value)).count();
        let left = self.installed.keys().filter(|key| !self.wanted.contains_key(*key)).count();
        (missing + left) as u64
    }
}

fn pair(key: &PolicyKey) -> (u32, u32) {
    (key.source(), key.destination())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
