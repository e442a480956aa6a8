//! Resources as lines that a person can compare: one for each service, workload, policy and account, and what is wrong.
//! What has its usual value is left out.

use mesh_api::proto::{
    mesh::ServiceTraffic,
    security::{Action, Authorization, Clause, Match, Scope, StringMatch, string_match::MatchType},
    workload::{
        AppProtocol, NetworkMode, Port, PortList, Service, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
        load_balancing::{HealthPolicy, Mode},
    },
};
use prost::Message;

use super::shown;
use crate::{compile::Resources, source::folder::Desired};

/// What a source says and what it comes to. The API server's own Service is not of the case.
pub fn lines(desired: &Desired, resources: &Resources) -> String {
    let mesh = &resources.mesh;
    let nodes = mesh.node_addresses.iter().map(|address| shown(address)).collect::<Vec<_>>().join(" ");
    let ranges = format!("pods={} services={}", mesh.pod_ranges.join(" "), mesh.service_ranges.join(" "));
    let mut lines = Vec::new();
    lines.extend(resources.services.values().map(service));
    lines.extend(resources.workloads.values().map(workload));
    let authorizations = resources.authorizations.values();
    // The one behind STRICT is always there; workloads that it holds for name it.
    lines.extend(authorizations.filter(|policy| policy.name != "istio_converted_static_strict").map(authorization));
    for (word, accounts) in [("account", &resources.accounts), ("entry-account", &resources.entry_accounts)] {
        lines.extend(
            accounts.iter().flat_map(|(node, names)| names.iter().map(move |name| format!("{word} {node} {name}"))),
        );
    }
    if ranges != "pods= services=10.96.0.0/16 fd00:96::/108" || !nodes.is_empty() {
        lines.push(format!("mesh {ranges} nodes={nodes}"));
    }
    if mesh.trust_domain != "cluster.local"
        || mesh.allow_fail_open
        || mesh.encrypt_same_node
        || mesh.node_port_first != 30_000
    {
        let ports = format!("{}-{}", mesh.node_port_first, mesh.node_port_last);
        lines.push(format!(
            "mesh domain={} open={} encrypt={} ports={ports}",
            mesh.trust_domain, mesh.allow_fail_open, mesh.encrypt_same_node
        ));
    }
    lines.extend(resources.warnings.iter().map(|warning| format!("warning {warning}")));
    for report in &desired.reports {
        lines.extend(
            report
                .problems
                .iter()
                .map(|problem| format!("refused {} {}: {}", report.file, problem.field, problem.reason)),
        );
    }
    lines.retain(|line| !line.contains("default/kubernetes"));
    lines.join("\n")
}

fn service(service: &Service) -> String {
    let addresses: Vec<_> = service.addresses.iter().map(|address| shown(&address.address)).collect();
    let mut line = format!("service {}/{} [{}]", service.namespace, service.hostname, addresses.join(" "));
    line += &ports(&service.ports);
    if let Some(balancing) = &service.load_balancing {
        let scopes: Vec<_> = balancing.routing_preference().map(|scope| format!("{scope:?}").to_lowercase()).collect();
        if balancing.mode() == Mode::Failover {
            line += &format!(" prefers {}", scopes.join(","));
        }
        if balancing.health_policy() == HealthPolicy::AllowAll {
            line += " unready-too";
        }
    }
    for extension in &service.extensions {
        let body = extension.config.as_ref().map(|config| ServiceTraffic::decode(&*config.value).expect("ours"));
        let traffic = body.unwrap_or_default();
        if traffic.client_ip_affinity_seconds > 0 {
            line += &format!(" affinity={}", traffic.client_ip_affinity_seconds);
        }
        if traffic.only_local_endpoints {
            line += " only-local";
        }
    }
    if !service.subject_alt_names.is_empty() {
        line += &format!(" names={}", service.subject_alt_names.join(","));
    }
    line
}

fn ports(ports: &[Port]) -> String {
    let protocol = |port: &Port| match port.app_protocol() {
        AppProtocol::Unknown => String::new(),
        known => format!("/{known:?}").to_lowercase(),
    };
    ports.iter().map(|port| format!(" {}>{}{}", port.service_port, port.target_port, protocol(port))).collect()
}

fn workload(workload: &Workload) -> String {
    let addresses: Vec<_> = workload.addresses.iter().map(|address| shown(address)).collect();
    let uid = workload.uid.trim_start_matches("Kubernetes/");
    let mut line = format!("workload {uid} [{}]", addresses.join(" "));
    let mut say = |is_said: bool, text: String| line += &if is_said { format!(" {text}") } else { String::new() };
    say(!workload.node.is_empty(), format!("on {}", workload.node));
    say(!matches!(workload.service_account.as_str(), "" | "default"), format!("as {}", workload.service_account));
    say(workload.tunnel_protocol() == TunnelProtocol::Hbone, "hbone".to_owned());
    say(workload.status() != WorkloadStatus::Healthy, "unhealthy".to_owned());
    say(workload.network_mode() == NetworkMode::HostNetwork, "host-network".to_owned());
    let kind = workload.workload_type();
    say(
        kind != WorkloadType::Pod || workload.workload_name != workload.name,
        format!("of {kind:?} {}", workload.workload_name),
    );
    if let Some(locality) = &workload.locality {
        say(true, format!("at {}/{}/{}", locality.region, locality.zone, locality.subzone));
    }
    say(workload.capacity.is_some(), format!("weight={}", workload.capacity.unwrap_or_default()));
    let is_named = workload.canonical_name != workload.workload_name || workload.canonical_revision != "latest";
    say(is_named, format!("called {}:{}", workload.canonical_name, workload.canonical_revision));
    let mut services: Vec<_> = workload.services.iter().collect();
    services.sort_by_key(|(name, _)| (*name).clone());
    for (name, PortList { ports: list }) in services {
        line += &format!("\n  behind {name}{}", ports(list));
    }
    for policy in &workload.authorization_policies {
        line += &format!("\n  under {policy}");
    }
    line
}

fn authorization(policy: &Authorization) -> String {
    let action = if policy.action() == Action::Deny { "deny" } else { "allow" };
    let scope = match policy.scope() {
        Scope::Global => "mesh",
        Scope::Namespace => "namespace",
        Scope::WorkloadSelector => "selected",
    };
    let mut line = format!("policy {}/{} {action} {scope}", policy.namespace, policy.name);
    line += if policy.dry_run { " dry-run" } else { "" };
    for rule in &policy.rules {
        let clauses: Vec<_> = rule.clauses.iter().map(clause).collect();
        line += &format!("\n  if {}", if clauses.is_empty() { "anything".to_owned() } else { clauses.join(" and ") });
    }
    line
}

fn clause(clause: &Clause) -> String {
    clause.matches.iter().map(group).collect::<Vec<_>>().join(" or ")
}

fn group(group: &Match) -> String {
    let text = |list: &[StringMatch]| list.iter().map(pattern).collect::<Vec<_>>().join(",");
    let range = |list: &[mesh_api::proto::security::Address]| {
        list.iter().map(|range| format!("{}/{}", shown(&range.address), range.length)).collect::<Vec<_>>().join(",")
    };
    let numbers = |list: &[u32]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let accounts = |list: &[mesh_api::proto::security::ServiceAccountMatch]| {
        list.iter().map(|item| format!("{}/{}", item.namespace, item.service_account)).collect::<Vec<_>>().join(",")
    };
    let parts = [
        ("principal", text(&group.principals)),
        ("not-principal", text(&group.not_principals)),
        ("namespace", text(&group.namespaces)),
        ("not-namespace", text(&group.not_namespaces)),
        ("account", accounts(&group.service_accounts)),
        ("not-account", accounts(&group.not_service_accounts)),
        ("source", range(&group.source_ips)),
        ("not-source", range(&group.not_source_ips)),
        ("destination", range(&group.destination_ips)),
        ("not-destination", range(&group.not_destination_ips)),
        ("port", numbers(&group.destination_ports)),
        ("not-port", numbers(&group.not_destination_ports)),
    ];
    let said: Vec<_> = parts
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!("({})", said.join(" "))
}

fn pattern(pattern: &StringMatch) -> String {
    match pattern.match_type.as_ref().expect("a pattern has a type") {
        MatchType::Exact(text) => text.clone(),
        MatchType::Prefix(text) => format!("{text}*"),
        MatchType::Suffix(text) => format!("*{text}"),
        MatchType::Presence(_) => "*".to_owned(),
    }
}
