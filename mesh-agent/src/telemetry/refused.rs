//! The connections that were refused lately, for `meshctl sockets --why-denied`: they have no socket any more that could be
//! asked. A connection that was let in never comes here. Every thread that refuses keeps its own list; nothing here locks.

use std::{collections::VecDeque, time::Duration};

use super::ConnectionRecord;
use crate::path::Flag;

/// Refusals that are kept by one thread; older ones go.
const KEPT: usize = 256;
/// For how long.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// The last refusals of one thread.
#[derive(Debug, Default)]
pub struct Refused(VecDeque<ConnectionRecord>);

impl Refused {
    /// Keeps it, if it is a refusal.
    pub fn add(&mut self, record: &ConnectionRecord) {
        if matches!(record.flag, Flag::None | Flag::Reset | Flag::Withdrawn | Flag::Draining) {
            return;
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(record.clone());
    }

    /// All that are not too old, oldest first.
    pub fn list(&self) -> Vec<ConnectionRecord> {
        let is_recent = |record: &&ConnectionRecord| record.started.elapsed().is_ok_and(|age| age < KEPT_FOR);
        self.0.iter().filter(is_recent).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_are_kept_and_only_the_last() {
        let mut refused = Refused::default();
        for number in 0..=KEPT as u64 {
            let flag = if number % 2 == 0 { Flag::Deny } else { Flag::Starting };
            refused.add(&ConnectionRecord { flag, to_source: number, ..ConnectionRecord::new("outbound") });
            refused.add(&ConnectionRecord { flag: Flag::Reset, ..ConnectionRecord::new("outbound") });
        }
        let kept = refused.list();
        assert_eq!(kept.len(), KEPT);
        assert_eq!((kept[0].to_source, kept[KEPT - 1].to_source), (1, KEPT as u64));
    }
}
