//! POLICY: for each pair of classes and each port, what `path::judge` says, if it says the same for all connections that
//! the kernel cannot tell apart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use mesh_common::abi::{PolicyKey, PolicyValue};

use crate::{
    path::{Source, judge},
    view::{Match, Policy, View, Workload},
};

use super::Member;

/// More ports than this in the policies of one destination: its pairs ask the agent.
const PORT_LIMIT: usize = 256;

/// Compiles the table.
pub(super) fn compile(view: &View, members: &[Member]) -> HashMap<PolicyKey, PolicyValue> {
    // Members of one class are judged alike: one speaks for all.
    let speakers: BTreeMap<u32, &Member> = members.iter().map(|member| (member.class, member)).collect();
    let mut table = HashMap::new();
    // Connections to what the agent does not support are refused by it, with the reason.
    for destination in speakers.values().filter(|member| member.workload.unsupported.is_none()) {
        let Some(ports) = distinguishing_ports(view, &destination.workload) else { continue };
        for source in speakers.values() {
            let pair = (source.class, destination.class);
            let verdicts = ports.iter().map(|port| (port.key, is_allowed(view, source, destination, port.asked)));
            insert(&mut table, pair, &verdicts.collect::<Vec<_>>(), view.mesh.encrypt_same_node);
        }
    }
    table
}

/// Where same-node traffic is encrypted, an allowed port has no entry; then there must be none for port 0 either, or the
/// allowed port would be denied by it.
fn insert(
    table: &mut HashMap<PolicyKey, PolicyValue>,
    (source, destination): (u32, u32),
    verdicts: &[(u16, bool)],
    is_encrypting: bool,
) {
    let any_allowed = verdicts.iter().any(|(_, is_allowed)| *is_allowed);
    for (port, is_allowed) in verdicts {
        let value = match (is_allowed, is_encrypting) {
            (true, false) => PolicyValue::Direct,
            (true, true) => continue,
            (false, true) if *port == 0 && any_allowed => continue,
            (false, _) => PolicyValue::Deny,
        };
        table.insert(PolicyKey::new(source, destination, *port), value);
    }
}

/// A port of the table, and the one that `judge` is asked about.
struct Port {
    /// 0: any other.
    key: u16,
    asked: u16,
}

/// The ports that policies of this workload may judge differently, and one for all others. `None`: they look at more than
/// identity and port, or must be told of connections (dry run), so the agent has to see them.
fn distinguishing_ports(view: &View, workload: &Workload) -> Option<Vec<Port>> {
    let mut ports = BTreeSet::new();
    for policy in selecting(view, workload) {
        if policy.is_dry_run {
            return None;
        }
        for term in terms(policy) {
            if uses_addresses(term) {
                return None;
            }
            ports.extend(term.destination_ports.iter().chain(&term.not_destination_ports));
        }
    }
    if ports.len() > PORT_LIMIT {
        return None;
    }
    ports.remove(&0);
    let other = (1..=u16::MAX).find(|port| !ports.contains(port))?;
    let exact = ports.into_iter().map(|port| Port { key: port, asked: port });
    Some(exact.chain([Port { key: 0, asked: other }]).collect())
}

/// The policies that `judge` would look at; a name that the View does not hold makes it deny, at every port.
fn selecting<'a>(view: &'a View, workload: &'a Workload) -> impl Iterator<Item = &'a Policy> {
    let named = workload.policies.iter().filter_map(|name| view.policy(name));
    view.policies_over(&workload.namespace).chain(named).map(AsRef::as_ref)
}

fn terms(policy: &Policy) -> impl Iterator<Item = &Match> {
    policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches)
}

fn uses_addresses(term: &Match) -> bool {
    let ranges = [&term.source_ranges, &term.not_source_ranges, &term.destination_ranges, &term.not_destination_ranges];
    ranges.into_iter().any(|ranges| !ranges.is_empty())
}

fn is_allowed(view: &View, source: &Member, destination: &Member, port: u16) -> bool {
    let first = |member: &Member| -> Option<IpAddr> { member.pod.addresses.first().copied() };
    let (Some(from), Some(to)) = (first(source), first(destination)) else { return false };
    let source = Source { identity: Some(source.workload.identity.clone()), address: from };
    judge(view, &source, &destination.workload, to, port).verdict.is_allowed()
}
