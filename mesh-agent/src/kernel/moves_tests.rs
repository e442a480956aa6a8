//! Pods that change classes, step by step: entries, then classes as destinations, then as sources, then entries again.

use proptest::prelude::*;

use super::*;
use crate::kernel::policy::bring;

const PORTS: [u16; 3] = [22, 80, 9000];
const PODS: usize = 4;
const DIRECT: Option<PolicyValue> = Some(PolicyValue::Direct);

/// The classes of the pods.
type Classes = [u32; PODS];

/// What pods may do, by kind: 0 to 2.
type Rules = Vec<Option<PolicyValue>>;

fn rules() -> impl Strategy<Value = Rules> {
    let value = prop::sample::select(vec![None, DIRECT, Some(PolicyValue::Deny)]);
    prop::collection::vec(value, 3 * 3 * 3)
}

/// The table of classes `first` and on, one for each kind.
fn table(rules: &Rules, first: u32, kinds: [u32; PODS]) -> PolicyTable {
    let mut table = PolicyTable::new();
    for source in kinds {
        for destination in kinds {
            for (port, at) in [0, 22, 80].into_iter().zip(0..) {
                let value = rules[((source * 3 + destination) * 3 + at) as usize];
                let key = PolicyKey::new(first + source, first + destination, port);
                table.extend(value.map(|value| (key, value)));
            }
        }
    }
    table
}

/// What each pod may do to each other one.
fn verdicts(table: &PolicyTable, sources: Classes, destinations: Classes) -> Vec<Option<PolicyValue>> {
    let pairs = sources.into_iter().flat_map(|from| destinations.map(|to| (from, to)));
    pairs.flat_map(|(from, to)| PORTS.map(|port| look_up(table, from, to, port))).collect()
}

struct Change {
    before: Vec<Option<PolicyValue>>,
    after: Vec<Option<PolicyValue>>,
    steps: Vec<Vec<Option<PolicyValue>>>,
}

/// Goes from one state to another as [`super::super::Kernel::apply_steering`] does.
fn change(before: (&PolicyTable, Classes), after: (&PolicyTable, Classes)) -> Change {
    let (mut table, (mut sources, mut destinations)) = (before.0.clone(), (before.1, before.1));
    let mut steps = Vec::new();
    let mut map = table.clone();
    let mut write = |table: &mut PolicyTable, wanted: &PolicyTable, sources, destinations| {
        let mut steps = Vec::new();
        bring(table, wanted, |key, value| {
            match value {
                Some(value) => map.insert(*key, value),
                None => map.remove(key),
            };
            steps.push(verdicts(&map, sources, destinations));
            true
        });
        steps
    };
    let moves = Moves::new(before.1.into_iter().zip(after.1));
    let on_the_way = moves.table(&table, after.0);
    steps.extend(write(&mut table, &on_the_way, sources, destinations));
    for pod in 0..PODS {
        destinations[pod] = after.1[pod];
        steps.push(verdicts(&table, sources, destinations));
    }
    for pod in 0..PODS {
        sources[pod] = after.1[pod];
        steps.push(verdicts(&table, sources, destinations));
    }
    steps.extend(write(&mut table, after.0, sources, destinations));
    Change { before: verdicts(before.0, before.1, before.1), after: verdicts(after.0, after.1, after.1), steps }
}

fn numbered(first: u32, kinds: [u32; PODS]) -> Classes {
    kinds.map(|kind| first + kind)
}

proptest! {
    /// After a restart: all get new numbers, and rules may have changed.
    #[test]
    fn pods_that_keep_together_keep_what_they_may(old in rules(), new in rules(), kinds in [0..3_u32, 0..3, 0..3, 0..3]) {
        let (before, after) = (table(&old, 1, kinds), table(&new, 11, kinds));
        let change = change((&before, numbered(1, kinds)), (&after, numbered(11, kinds)));
        for step in &change.steps {
            for ((was, now), shall) in change.before.iter().zip(step).zip(&change.after) {
                prop_assert!(*now != DIRECT || *was == DIRECT || *shall == DIRECT, "opened");
                prop_assert!(*now == DIRECT || *was != DIRECT || *shall != DIRECT, "closed");
            }
        }
        prop_assert_eq!(change.steps.last().expect("there are steps"), &change.after);
    }

    /// Pods part and come together, within the same numbers or new ones.
    #[test]
    fn pods_that_part_are_never_let_through_by_the_way(
        rules in (rules(), rules()),
        kinds in ([0..3_u32, 0..3, 0..3, 0..3], [0..3_u32, 0..3, 0..3, 0..3]),
        first in prop::sample::select(vec![1_u32, 2, 11]),
    ) {
        let (before, after) = (table(&rules.0, 1, kinds.0), table(&rules.1, first, kinds.1));
        let change = change((&before, numbered(1, kinds.0)), (&after, numbered(first, kinds.1)));
        for step in &change.steps {
            for ((was, now), shall) in change.before.iter().zip(step).zip(&change.after) {
                prop_assert!(*now != DIRECT || *was == DIRECT || *shall == DIRECT, "opened");
            }
        }
        prop_assert_eq!(change.steps.last().expect("there are steps"), &change.after);
    }
}

#[test]
fn a_move_to_the_same_class_is_none() {
    assert!(Moves::new([(0, 1), (2, 2)]).is_empty());
    assert!(!Moves::new([(1, 1), (1, 2)]).is_empty());
}
