//! Pass or refuse when the agent is there, dead or hung: the one table of fail modes. Nothing else decides it.
//!
//! | | alive | starting or dead | hung |
//! |---|---|---|---|
//! | outbound through the agent | agent | refused | refused once the heartbeat is older than 3 s |
//! | outbound, POLICY says direct | direct | direct while the heartbeat is young enough, then refused | same |
//! | inbound through the agent | agent | refused | refused after 3 s |
//!
//! A pod that fails open goes direct and in the clear where its outbound would be refused for want of an agent; never where
//! POLICY denies.

use crate::HEARTBEAT_MAX_AGE_NS;
use crate::abi::PolicyValue;
use crate::counter::Counter;

/// What becomes of an outbound connection to another workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes to its destination without the agent.
    Direct,
    /// Is redirected to the agent.
    Agent,
    /// Goes in the clear, because there is no agent and the pod fails open.
    FailOpen,
    /// Is refused.
    Refuse(Counter),
}

/// Whether any worker's last beat is young enough to hand it a new connection.
#[inline(always)]
pub const fn is_beating(beat_age_ns: u64) -> bool {
    beat_age_ns < HEARTBEAT_MAX_AGE_NS
}

/// Judges an outbound connection. `beat_age_ns` is the age of the youngest beat of any worker (`u64::MAX`: never);
/// `is_listening` says whether a beating worker has a listener for this pod and is asked only when it matters.
#[inline(always)]
pub fn outbound(
    policy: Option<PolicyValue>,
    beat_age_ns: u64,
    direct_max_age_ns: u64,
    fails_open: bool,
    is_listening: impl FnOnce() -> bool,
) -> Verdict {
    let reason = match policy {
        Some(PolicyValue::Deny) => return Verdict::Refuse(Counter::OutboundDenied),
        Some(PolicyValue::Direct) if beat_age_ns < direct_max_age_ns => return Verdict::Direct,
        Some(PolicyValue::Direct) => Counter::OutboundStale,
        None => Counter::OutboundAway,
    };
    if is_beating(beat_age_ns) && is_listening() {
        return if policy.is_some() { Verdict::Direct } else { Verdict::Agent };
    }
    if fails_open { Verdict::FailOpen } else { Verdict::Refuse(reason) }
}

/// Whether a connection that POLICY says is direct may arrive.
#[inline(always)]
pub fn is_direct_in_force(beat_age_ns: u64, direct_max_age_ns: u64, is_listening: impl FnOnce() -> bool) -> bool {
    beat_age_ns < direct_max_age_ns || (is_beating(beat_age_ns) && is_listening())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const DEAD_LONG: u64 = 61_000 * MS;
    const MAX_AGE: u64 = 60_000 * MS;

    /// (policy, age, listening, fails open) -> verdict, for the default maximum age.
    const TABLE: &[(Option<PolicyValue>, u64, bool, bool, Verdict)] = &[
        // alive
        (None, 500 * MS, true, false, Verdict::Agent),
        (None, 500 * MS, true, true, Verdict::Agent),
        (Some(PolicyValue::Direct), 500 * MS, true, false, Verdict::Direct),
        (Some(PolicyValue::Deny), 500 * MS, true, false, Verdict::Refuse(Counter::OutboundDenied)),
        // just died, or starting: no listeners
        (None, 500 * MS, false, false, Verdict::Refuse(Counter::OutboundAway)),
        (None, 500 * MS, false, true, Verdict::FailOpen),
        (Some(PolicyValue::Direct), 500 * MS, false, false, Verdict::Direct),
        (Some(PolicyValue::Deny), 500 * MS, false, true, Verdict::Refuse(Counter::OutboundDenied)),
        // hung: listeners there, beats late
        (None, 3_000 * MS, true, false, Verdict::Refuse(Counter::OutboundAway)),
        (None, 2_999 * MS, true, false, Verdict::Agent),
        (None, 3_000 * MS, true, true, Verdict::FailOpen),
        (Some(PolicyValue::Direct), 59_999 * MS, true, false, Verdict::Direct),
        (Some(PolicyValue::Direct), 60_000 * MS, true, false, Verdict::Refuse(Counter::OutboundStale)),
        // dead for long, or never beat
        (Some(PolicyValue::Direct), DEAD_LONG, false, false, Verdict::Refuse(Counter::OutboundStale)),
        (Some(PolicyValue::Direct), DEAD_LONG, false, true, Verdict::FailOpen),
        (Some(PolicyValue::Direct), u64::MAX, false, false, Verdict::Refuse(Counter::OutboundStale)),
        (None, u64::MAX, false, false, Verdict::Refuse(Counter::OutboundAway)),
        (Some(PolicyValue::Deny), DEAD_LONG, false, true, Verdict::Refuse(Counter::OutboundDenied)),
    ];

    #[test]
    fn the_table_of_fail_modes() {
        for (row, (policy, age, listening, open, expected)) in TABLE.iter().enumerate() {
            assert_eq!(outbound(*policy, *age, MAX_AGE, *open, || *listening), *expected, "row {row}");
        }
    }

    #[test]
    fn a_maximum_age_of_zero_refuses_at_once_but_not_while_the_agent_lives() {
        let direct = Some(PolicyValue::Direct);
        assert_eq!(outbound(direct, 1, 0, false, || true), Verdict::Direct);
        assert_eq!(outbound(direct, 1, 0, false, || false), Verdict::Refuse(Counter::OutboundStale));
        assert!(is_direct_in_force(1, 0, || true));
        assert!(!is_direct_in_force(1, 0, || false));
    }

    proptest::proptest! {
        #[test]
        fn both_ends_agree_on_direct(age: u64, max: u64, listening: bool) {
            let source = outbound(Some(PolicyValue::Direct), age, max, false, || listening) == Verdict::Direct;
            proptest::prop_assert_eq!(source, is_direct_in_force(age, max, || listening));
        }

        #[test]
        fn only_fail_open_pods_go_in_the_clear(policy in 0_u32..3, age: u64, max: u64, listening: bool) {
            let policy = PolicyValue::from_word(policy);
            proptest::prop_assert_ne!(outbound(policy, age, max, false, || listening), Verdict::FailOpen);
        }

        #[test]
        fn what_policy_denies_is_refused_in_every_state(age: u64, max: u64, open: bool, listening: bool) {
            let verdict = outbound(Some(PolicyValue::Deny), age, max, open, || listening);
            proptest::prop_assert_eq!(verdict, Verdict::Refuse(Counter::OutboundDenied));
        }
    }
}
