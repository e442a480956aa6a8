//! From the wire's authorization policies to those of the View. A policy that cannot be read in full is never taken in
//! part: [`refused`] stands in its place and lets nobody through.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_api::{
    UNREADABLE_POLICY,
    proto::{security as wire, workload as wire_workload},
};

use super::{
    Action, AddressRange, Clause, Match, Policy, PolicyName, Rule, Scope, ServiceAccount, TextMatch,
    convert::{FieldError, address, port, wrong},
};

pub(super) fn policy(name: PolicyName, from: &wire::Authorization) -> Result<Policy, FieldError> {
    if *name.namespace != *from.namespace || *name.name != *from.name {
        return Err(wrong("name", format!("the resource is named {name}")));
    }
    let is_known =
        |extension: &wire_workload::Extension| extension.name == UNREADABLE_POLICY && extension.config.is_none();
    if !from.extensions.iter().all(is_known) {
        return Err(wrong("extensions", "not supported"));
    }
    let is_stand_in = !from.extensions.is_empty();
    let scope = scope(from).ok_or_else(|| wrong("scope", format!("{} is unknown", from.scope)))?;
    let action = action(from).ok_or_else(|| wrong("action", format!("{} is unknown", from.action)))?;
    let rules = from.rules.iter().map(rule).collect::<Result<_, _>>()?;
    Ok(Policy { name, scope, action, is_dry_run: from.dry_run, rules, is_stand_in })
}

/// What stands for a policy that was refused and never good: it selects whom the policy selects (its namespace, when not
/// even that can be read) and matches nothing as ALLOW, everything as DENY or as what it does not say.
pub(super) fn refused(name: PolicyName, from: &wire::Authorization) -> Policy {
    let scope = scope(from).unwrap_or(Scope::Namespace);
    match action(from) {
        Some(Action::Allow) => Policy {
            name,
            scope,
            action: Action::Allow,
            is_dry_run: from.dry_run,
            rules: Vec::new(),
            is_stand_in: true,
        },
        Some(Action::Deny) | None => {
            let everything = Rule { clauses: vec![Clause { matches: Vec::new() }] };
            Policy {
                name,
                scope,
                action: Action::Deny,
                is_dry_run: from.dry_run,
                rules: vec![everything],
                is_stand_in: true,
            }
        }
    }
}

fn scope(from: &wire::Authorization) -> Option<Scope> {
    match wire::Scope::try_from(from.scope).ok()? {
        wire::Scope::Global => Some(Scope::Global),
        wire::Scope::Namespace => Some(Scope::Namespace),
        wire::Scope::WorkloadSelector => Some(Scope::Selector),
    }
}

fn action(from: &wire::Authorization) -> Option<Action> {
    match wire::Action::try_from(from.action).ok()? {
        wire::Action::Allow => Some(Action::Allow),
        wire::Action::Deny => Some(Action::Deny),
    }
}

fn rule(from: &wire::Rule) -> Result<Rule, FieldError> {
    let clause = |clause: &wire::Clause| {
        Ok(Clause { matches: clause.matches.iter().map(one_match).collect::<Result<_, FieldError>>()? })
    };
    Ok(Rule { clauses: from.clauses.iter().map(clause).collect::<Result<_, FieldError>>()? })
}

fn one_match(from: &wire::Match) -> Result<Match, FieldError> {
    if !from.extensions.is_empty() {
        return Err(wrong("match.extensions", "not supported"));
    }
    Ok(Match {
        namespaces: texts("namespaces", &from.namespaces)?,
        not_namespaces: texts("not_namespaces", &from.not_namespaces)?,
        principals: texts("principals", &from.principals)?,
        not_principals: texts("not_principals", &from.not_principals)?,
        service_accounts: service_accounts(&from.service_accounts)?,
        not_service_accounts: service_accounts(&from.not_service_accounts)?,
        source_ranges: ranges("source_ips", &from.source_ips)?,
        not_source_ranges: ranges("not_source_ips", &from.not_source_ips)?,
        destination_ranges: ranges("destination_ips", &from.destination_ips)?,
        not_destination_ranges: ranges("not_destination_ips", &from.not_destination_ips)?,
        destination_ports: ports("destination_ports", &from.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &from.not_destination_ports)?,
    })
}

fn texts(field: &str, all: &[wire::StringMatch]) -> Result<Vec<TextMatch>, FieldError> {
    use wire::string_match::MatchType;
    let read = |one: &wire::StringMatch| match one.match_type.clone() {
        Some(MatchType::Exact(text)) => Ok(TextMatch::Exact(text)),
        Some(MatchType::Prefix(text)) => Ok(TextMatch::Prefix(text)),
        Some(MatchType::Suffix(text)) => Ok(TextMatch::Suffix(text)),
        Some(MatchType::Presence(_)) => Ok(TextMatch::Presence),
        None => Err(wrong(field, "a match of an unknown kind")),
    };
    all.iter().map(read).collect()
}

fn service_accounts(all: &[wire::ServiceAccountMatch]) -> Result<Vec<ServiceAccount>, FieldError> {
    let read = |one: &wire::ServiceAccountMatch| {
        if one.namespace.is_empty() || one.service_account.is_empty() {
            return Err(wrong("service_accounts", "a namespace or a name is empty"));
        }
        Ok(ServiceAccount { namespace: one.namespace.clone(), name: one.service_account.clone() })
    };
    all.iter().map(read).collect()
}

fn ranges(field: &str, all: &[wire::Address]) -> Result<Vec<AddressRange>, FieldError> {
    all.iter().map(|one| range(one).ok_or_else(|| wrong(field, "no address range"))).collect()
}

/// A v4-mapped range of at least the mapping's 96 bits becomes the IPv4 range.
fn range(from: &wire::Address) -> Option<AddressRange> {
    let bits = u8::try_from(from.length).ok()?;
    let address = address(&from.address)?;
    let bits = match (address, from.address.len()) {
        (IpAddr::V4(_), 16) => bits.checked_sub(96)?,
        _ => bits,
    };
    Some(AddressRange(IpNet::new(address, bits).ok()?.trunc()))
}

fn ports(field: &str, all: &[u32]) -> Result<Vec<u16>, FieldError> {
    all.iter().map(|value| port(field, *value)).collect()
}
