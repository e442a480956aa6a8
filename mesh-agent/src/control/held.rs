//! The versions of the resources that are held, and one hash over all of them: two agents that tell the same hash hold the
//! same. Pure.

use std::collections::HashMap;

use crate::digest::sha256;

/// Versions by name.
#[derive(Debug, Default)]
pub(super) struct Held {
    versions: HashMap<String, String>,
    /// Sum of the hashes of all pairs: the order in which they came does not matter, and one that goes is taken off.
    sum: u128,
}

impl Held {
    pub(super) fn insert(&mut self, name: &str, version: &str) {
        self.remove(name);
        self.sum = self.sum.wrapping_add(of_pair(name, version));
        self.versions.insert(name.to_owned(), version.to_owned());
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(version) = self.versions.remove(name) {
            self.sum = self.sum.wrapping_sub(of_pair(name, &version));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.versions.len()
    }

    pub(super) fn versions(&self) -> &HashMap<String, String> {
        &self.versions
    }

    /// 32 hexadecimal digits; zeros when nothing is held.
    pub(super) fn hash(&self) -> String {
        format!("{:032x}", self.sum)
    }
}

fn of_pair(name: &str, version: &str) -> u128 {
    // No name holds a zero byte, so no other pair gives the same bytes.
    let hash = sha256([name.as_bytes(), &[0], version.as_bytes()]);
    let (head, _) = hash.split_first_chunk().expect("SHA-256 has 32 bytes");
    u128::from_be_bytes(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(pairs: &[(&str, &str)]) -> Held {
        let mut held = Held::default();
        pairs.iter().for_each(|(name, version)| held.insert(name, version));
        held
    }

    #[test]
    fn the_hash_is_of_what_is_held_however_that_came_about() {
        let mut winding = held(&[("b", "2"), ("c", "3"), ("a", "0"), ("a", "1")]);
        winding.remove("c");
        winding.remove("never there");
        let straight = held(&[("a", "1"), ("b", "2")]);
        assert_eq!(winding.hash(), straight.hash());
        for other in [held(&[]), held(&[("a", "1")]), held(&[("a", "2"), ("b", "1")]), held(&[("a", "1b"), ("", "2")])]
        {
            assert_ne!(other.hash(), straight.hash());
        }
        assert_eq!(held(&[]).hash(), "0".repeat(32));
    }
}
