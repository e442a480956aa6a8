//! AuthorizationPolicy to Authorization, with Istio's meaning. Source: istio/istio
//! pilot/pkg/serviceregistry/ambient/authorization.go; the evaluation is wire.md's §3.

use std::collections::BTreeMap;

use ipnet::IpNet;
use mesh_api::{
    UNREADABLE_POLICY,
    proto::{
        security::{
            Action, Address, Authorization, Clause, Empty, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
            string_match::MatchType,
        },
        workload::Extension,
    },
};

use super::{Mesh, bytes, selects};
use crate::objects::{
    RefusedPolicy,
    metadata::Name,
    policy::{self, AuthorizationPolicy},
    terms::{Pattern, Terms},
};

/// Every policy, by `namespace/name`, and for each policy that could not be read one that denies its scope.
pub fn authorizations(mesh: &Mesh<'_>) -> BTreeMap<String, Authorization> {
    let policies = mesh.objects.policies.values().map(|policy| authorization(mesh, policy));
    let refused = mesh.objects.refused.iter().map(|refused| deny_all(mesh, refused));
    policies.chain(refused).map(|authorization| (key(&authorization), authorization)).collect()
}

/// Names of the policies with a selector that matches a workload.
pub fn selected<'a>(
    mesh: &'a Mesh<'_>,
    namespace: &'a str,
    labels: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = String> + 'a {
    let homes = [Some(mesh.root_namespace), Some(namespace).filter(|namespace| *namespace != mesh.root_namespace)];
    let policies = homes.into_iter().flatten().flat_map(|home| {
        let first = Name::new(home, "");
        mesh.objects.policies.range(first..).take_while(move |(name, _)| name.namespace == home)
    });
    let policies = policies.filter(|(_, policy)| !policy.selector.is_empty() && selects(&policy.selector, labels));
    let refused = mesh.objects.refused.iter().filter(move |refused| {
        let is_near = refused.name.namespace == namespace || refused.name.namespace == mesh.root_namespace;
        is_near && !refused.selector.is_empty() && selects(&refused.selector, labels)
    });
    policies.map(|(name, _)| name.to_string()).chain(refused.map(|refused| refused_name(refused).to_string()))
}

/// Resource name of an authorization.
pub fn key(authorization: &Authorization) -> String {
    format!("{}/{}", authorization.namespace, authorization.name)
}

fn authorization(mesh: &Mesh<'_>, policy: &AuthorizationPolicy) -> Authorization {
    let rules = policy.rules.iter().map(rule).collect();
    Authorization {
        name: policy.metadata.name.clone(),
        namespace: policy.metadata.namespace.clone(),
        scope: scope(mesh, &policy.metadata.namespace, &policy.selector).into(),
        action: if policy.is_deny { Action::Deny } else { Action::Allow }.into(),
        rules,
        dry_run: policy.is_dry_run,
        extensions: Vec::new(),
    }
}

fn scope(mesh: &Mesh<'_>, namespace: &str, selector: &BTreeMap<String, String>) -> Scope {
    match selector.is_empty() {
        false => Scope::WorkloadSelector,
        true if namespace == mesh.root_namespace => Scope::Global,
        true => Scope::Namespace,
    }
}

fn refused_name(refused: &RefusedPolicy) -> Name {
    match refused.kind {
        "AuthorizationPolicy" => refused.name.clone(),
        // '_' is in no Kubernetes name, so this one cannot meet a real policy.
        _ => Name::new(&refused.name.namespace, format!("refused_peer_authentication_{}", refused.name.name)),
    }
}

fn deny_all(mesh: &Mesh<'_>, refused: &RefusedPolicy) -> Authorization {
    let name = refused_name(refused);
    Authorization {
        scope: scope(mesh, &name.namespace, &refused.selector).into(),
        name: name.name,
        namespace: name.namespace,
        action: Action::Deny.into(),
        // A rule without clauses matches everything.
        rules: vec![Rule::default()],
        dry_run: false,
        extensions: vec![Extension { name: UNREADABLE_POLICY.to_owned(), config: None }],
    }
}

fn rule(rule: &policy::Rule) -> Rule {
    let clause = |terms: &Vec<Terms>| Clause { matches: terms.iter().map(terms_match).collect() };
    Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn terms_match(terms: &Terms) -> Match {
    let patterns = |list: &[Pattern]| list.iter().map(string_match).collect();
    let accounts = |list: &[(String, String)]| list.iter().map(account_match).collect();
    let ranges = |list: &[IpNet]| list.iter().map(address).collect();
    let ports = |list: &[u16]| list.iter().copied().map(u32::from).collect();
    Match {
        namespaces: patterns(&terms.namespaces),
        not_namespaces: patterns(&terms.not_namespaces),
        principals: patterns(&terms.principals),
        not_principals: patterns(&terms.not_principals),
        source_ips: ranges(&terms.source_ranges),
        not_source_ips: ranges(&terms.not_source_ranges),
        destination_ips: ranges(&terms.destination_ranges),
        not_destination_ips: ranges(&terms.not_destination_ranges),
        destination_ports: ports(&terms.ports),
        not_destination_ports: ports(&terms.not_ports),
        service_accounts: accounts(&terms.service_accounts),
        not_service_accounts: accounts(&terms.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn account_match((namespace, account): &(String, String)) -> ServiceAccountMatch {
    ServiceAccountMatch { namespace: namespace.clone(), service_account: account.clone() }
}

fn address(range: &IpNet) -> Address {
    Address { address: bytes(range.addr()), length: range.prefix_len().into() }
}

fn string_match(pattern: &Pattern) -> StringMatch {
    let match_type = match pattern {
        Pattern::Exact(text) => MatchType::Exact(text.clone()),
        Pattern::Prefix(text) => MatchType::Prefix(text.clone()),
        Pattern::Suffix(text) => MatchType::Suffix(text.clone()),
        Pattern::Presence => MatchType::Presence(Empty {}),
    };
    StringMatch { match_type: Some(match_type) }
}
