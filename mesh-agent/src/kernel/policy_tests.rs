//! Every step of a change of POLICY, on a map that can be full.

use proptest::prelude::*;

use super::*;

const PAIRS: [(u32, u32); 2] = [(1, 2), (2, 1)];
/// The last one has no entry of its own.
const PORTS: [u16; 4] = [22, 80, 443, 9000];

fn value() -> impl Strategy<Value = Option<PolicyValue>> {
    prop::sample::select(vec![None, Some(PolicyValue::Direct), Some(PolicyValue::Deny)])
}

fn table() -> impl Strategy<Value = PolicyTable> {
    let keys = || PAIRS.into_iter().flat_map(|(from, to)| [0, 22, 80, 443].map(|port| PolicyKey::new(from, to, port)));
    prop::collection::vec(value(), keys().count())
        .prop_map(move |values| keys().zip(values).filter_map(|(key, value)| Some((key, value?))).collect())
}

/// The verdicts of all pairs and ports.
fn verdicts(table: &PolicyTable) -> Vec<Option<PolicyValue>> {
    let verdict = |((from, to), port): ((u32, u32), u16)| look_up(table, from, to, port);
    PAIRS.into_iter().flat_map(|pair| PORTS.map(|port| (pair, port))).map(verdict).collect()
}

/// Changes a map of so many entries; what it holds after each step.
fn change(before: &PolicyTable, after: &PolicyTable, capacity: usize) -> (Vec<PolicyTable>, SteeringReport) {
    let mut map = before.clone();
    let mut steps = Vec::new();
    let mut installed = before.clone();
    let report = bring(&mut installed, after, |key, value| {
        match value {
            Some(_) if map.len() >= capacity && !map.contains_key(key) => return false,
            Some(value) => drop(map.insert(*key, value)),
            None => drop(map.remove(key)),
        }
        steps.push(map.clone());
        true
    });
    assert_eq!(installed, map);
    (steps, report)
}

const DIRECT: Option<PolicyValue> = Some(PolicyValue::Direct);

proptest! {
    #[test]
    fn what_is_direct_in_neither_state_never_is_and_what_is_in_both_stays_so(before in table(), after in table()) {
        let (steps, report) = change(&before, &after, usize::MAX);
        prop_assert_eq!(report.failed, 0);
        prop_assert_eq!(steps.last().unwrap_or(&before), &after);
        for step in steps {
            for ((was, now), shall) in verdicts(&before).into_iter().zip(verdicts(&step)).zip(verdicts(&after)) {
                prop_assert!(now != DIRECT || was == DIRECT || shall == DIRECT, "opened in {step:?}");
                prop_assert!(now == DIRECT || was != DIRECT || shall != DIRECT, "closed in {step:?}");
            }
        }
    }

    #[test]
    fn what_is_refused_is_refused_before_anything_is_opened(before in table(), after in table()) {
        let mut has_opened = false;
        for step in change(&before, &after, usize::MAX).0 {
            let rows = verdicts(&before).into_iter().zip(verdicts(&step)).zip(verdicts(&after));
            has_opened |= rows.clone().any(|((was, now), _)| was != DIRECT && now == DIRECT);
            let is_left = rows.clone().any(|((_, now), shall)| now == DIRECT && shall != DIRECT);
            prop_assert!(!has_opened || !is_left, "{step:?}");
        }
    }

    #[test]
    fn in_a_full_map_a_pair_asks_the_agent(before in table(), after in table(), room in 0..12_usize) {
        let (steps, report) = change(&before, &after, before.len().max(room));
        let last = steps.last().unwrap_or(&before);
        for (now, shall) in verdicts(last).into_iter().zip(verdicts(&after)) {
            prop_assert!(now.is_none() || now == shall, "{last:?}");
        }
        prop_assert_eq!(report.failed == 0, *last == after);
        for step in steps {
            for ((was, now), shall) in verdicts(&before).into_iter().zip(verdicts(&step)).zip(verdicts(&after)) {
                prop_assert!(now != DIRECT || was == DIRECT || shall == DIRECT, "opened in {step:?}");
            }
        }
    }
}
