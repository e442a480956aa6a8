//! What manifests come to. Policies are judged here by a slow reading of wire.md §3, so that the cases speak of who may
//! connect rather than of messages.

use std::net::IpAddr;

use mesh_api::proto::{
    security::{Action, Authorization, Match, Scope, StringMatch, string_match::MatchType},
    workload::Workload,
};

use super::{Foundation, Resources, compile};
use crate::testing::TempFolder;

fn foundation() -> Foundation {
    Foundation { trust_domain: "cluster.local".into(), trust_bundle: vec!["root".into()] }
}

/// Compiles manifests without a mistake.
fn compiled(text: &str) -> Resources {
    let folder = TempFolder::new();
    folder.write("a.yaml", text);
    let desired = folder.source().read().expect("read");
    assert_eq!(desired.problem_count(), 0, "{text}\n{:#?}", desired.reports);
    compile(&desired.objects, &foundation())
}

/// Compiles what is in force of manifests with mistakes.
fn compiled_with_mistakes(text: &str) -> Resources {
    let folder = TempFolder::new();
    folder.write("a.yaml", text);
    folder.write("pods.yaml", PODS);
    let desired = folder.source().read().expect("read");
    assert_ne!(desired.problem_count(), 0);
    compile(&desired.objects, &foundation())
}

fn pod(text: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\n{text}\n---\n")
}

/// A server in `shop` and one in `other`, as the policies below see them.
const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: other, labels: {app: web}}
status: {podIP: 10.0.0.3}
---
";

/// One connection: the source's identity (`namespace/account`), its address, the destination pod and port.
#[derive(Clone, Copy, Debug)]
struct Call {
    from: Option<&'static str>,
    address: &'static str,
    to: &'static str,
    port: u32,
}

const fn call(from: &'static str, to: &'static str, port: u32) -> Call {
    Call { from: Some(from), address: "10.1.0.1", to, port }
}

const fn plaintext(to: &'static str, port: u32) -> Call {
    Call { from: None, address: "10.1.0.1", to, port }
}

/// Whether a call is allowed, by wire.md §3.
fn allows(resources: &Resources, call: Call) -> bool {
    let uid = format!("Kubernetes//Pod/{}", call.to);
    let workload = &resources.workloads[&uid];
    let holds = |authorization: &&Authorization| match authorization.scope() {
        Scope::Global => true,
        Scope::Namespace => authorization.namespace == workload.namespace,
        Scope::WorkloadSelector => {
            workload.authorization_policies.contains(&format!("{}/{}", authorization.namespace, authorization.name))
        }
    };
    for name in &workload.authorization_policies {
        assert!(resources.authorizations.contains_key(name), "{name} is named and not there");
    }
    let all: Vec<_> = resources.authorizations.values().filter(holds).filter(|policy| !policy.dry_run).collect();
    let matches = |policy: &&&Authorization| is_matched(policy, workload, call);
    let (deny, allow): (Vec<_>, Vec<_>) = all.iter().partition(|policy| policy.action() == Action::Deny);
    !deny.iter().any(|policy| matches(&policy)) && (allow.is_empty() || allow.iter().any(|policy| matches(&policy)))
}

fn is_matched(policy: &Authorization, workload: &Workload, call: Call) -> bool {
    policy.rules.iter().any(|rule| {
        rule.clauses.iter().all(|clause| {
            clause.matches.is_empty() || clause.matches.iter().any(|group| is_group_matched(group, workload, call))
        })
    })
}

fn is_group_matched(group: &Match, workload: &Workload, call: Call) -> bool {
    if *group == Match::default() {
        return false;
    }
    let (namespace, account) = call.from.and_then(|from| from.split_once('/')).unwrap_or_default();
    let principal = call.from.map(|_| format!("cluster.local/ns/{namespace}/sa/{account}")).unwrap_or_default();
    let text = |list: &[StringMatch], value: &str| list.iter().any(|pattern| is_text_matched(pattern, value));
    let in_range = |list: &[mesh_api::proto::security::Address], address: IpAddr| {
        list.iter().any(|range| {
            let prefix = range.length as usize;
            let bits = |bytes: &[u8]| {
                bytes
                    .iter()
                    .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
                    .take(prefix)
                    .collect::<Vec<_>>()
            };
            let address = super::bytes(address);
            range.address.len() == address.len() && bits(&range.address) == bits(&address)
        })
    };
    let source: IpAddr = call.address.parse().expect("an address");
    let destination = <[u8; 4]>::try_from(workload.addresses[0].as_slice()).map(IpAddr::from).expect("IPv4");
    let is_account = |list: &[mesh_api::proto::security::ServiceAccountMatch]| {
        call.from.is_some() && list.iter().any(|item| item.namespace == namespace && item.service_account == account)
    };
    let checks = [
        (group.namespaces.is_empty(), text(&group.namespaces, namespace), text(&group.not_namespaces, namespace)),
        (group.principals.is_empty(), text(&group.principals, &principal), text(&group.not_principals, &principal)),
        (group.source_ips.is_empty(), in_range(&group.source_ips, source), in_range(&group.not_source_ips, source)),
        (
            group.destination_ips.is_empty(),
            in_range(&group.destination_ips, destination),
            in_range(&group.not_destination_ips, destination),
        ),
        (
            group.destination_ports.is_empty(),
            group.destination_ports.contains(&call.port),
            group.not_destination_ports.contains(&call.port),
        ),
        (
            group.service_accounts.is_empty(),
            is_account(&group.service_accounts),
            is_account(&group.not_service_accounts),
        ),
    ];
    checks.iter().all(|(is_any, is_in, is_out)| (*is_any || *is_in) && !is_out)
}

fn is_text_matched(pattern: &StringMatch, value: &str) -> bool {
    match pattern.match_type.as_ref().expect("a pattern has a type") {
        MatchType::Exact(text) => value == text,
        MatchType::Prefix(text) => !value.is_empty() && value.starts_with(text.as_str()),
        MatchType::Suffix(text) => !value.is_empty() && value.ends_with(text.as_str()),
        MatchType::Presence(_) => !value.is_empty(),
    }
}

mod peers;
mod policies;
mod services;
mod workloads;
