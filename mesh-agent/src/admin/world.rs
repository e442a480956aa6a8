//! The View as rows: workloads, services, policies; enrolled pods that the View does not know yet are listed too.

use mesh_api::proto::admin::{PolicyRow, ServiceRow, WorkloadRow};

use crate::{
    enrol::Pod,
    view::{Action, Policy, Protocol, Scope, Service, View, Workload},
};

use super::Node;

/// By namespace and name; the enrolled ones that the View does not know yet are `pending`.
pub(super) fn workloads(node: &Node) -> Vec<WorkloadRow> {
    let pods = node.pods.load();
    let view = node.view.load_full().unwrap_or_default();
    let mut rows: Vec<WorkloadRow> = view
        .workloads()
        .map(|workload| {
            let pod = workload.addresses.iter().find_map(|address| pods.by_address.get(address));
            let is_enrolled = pod.and_then(|pod| pod.workload(&view)).is_some_and(|known| known.uid == workload.uid);
            workload_row(node, workload, is_enrolled)
        })
        .collect();
    rows.extend(pods.by_uid.values().filter(|pod| pod.workload(&view).is_none()).map(|pod| pending_row(node, pod)));
    rows.sort_by(|one, other| (&one.namespace, &one.name, &one.uid).cmp(&(&other.namespace, &other.name, &other.uid)));
    rows
}

fn workload_row(node: &Node, workload: &Workload, is_enrolled: bool) -> WorkloadRow {
    let state = match is_enrolled {
        true => "enrolled".to_owned(),
        false if workload.node == node.config.node => not_enrolled(node, workload),
        false => "remote".to_owned(),
    };
    WorkloadRow {
        uid: workload.uid.to_string(),
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        addresses: workload.addresses.iter().map(ToString::to_string).collect(),
        node: workload.node.to_string(),
        identity: workload.identity.to_string(),
        protocol: match workload.protocol {
            Protocol::Hbone => "HBONE".into(),
            Protocol::Plaintext => "TCP".into(),
        },
        state,
        healthy: workload.is_healthy,
        services: workload.services.keys().map(|name| format!("{}/{}", name.namespace, name.hostname)).collect(),
        policies: workload.policies.iter().map(ToString::to_string).collect(),
    }
}

fn not_enrolled(node: &Node, workload: &Workload) -> String {
    let name = (workload.namespace.to_string(), workload.name.to_string());
    match node.outside.load().get(&name) {
        Some(reason) => format!("not enrolled: {reason}"),
        None => "not enrolled".to_owned(),
    }
}

fn pending_row(node: &Node, pod: &Pod) -> WorkloadRow {
    WorkloadRow {
        uid: pod.uid.to_string(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        node: node.config.node.clone(),
        state: "pending".into(),
        ..WorkloadRow::default()
    }
}

/// By namespace and host name.
pub(super) fn services(node: &Node) -> Vec<ServiceRow> {
    let view = node.view.load_full().unwrap_or_default();
    let mut rows: Vec<ServiceRow> = view.services().map(|service| service_row(&view, service)).collect();
    rows.sort_by(|one, other| (&one.namespace, &one.hostname).cmp(&(&other.namespace, &other.hostname)));
    rows
}

fn service_row(view: &View, service: &Service) -> ServiceRow {
    let endpoint = |workload: &Workload| {
        let health = if workload.is_healthy { "" } else { " (unhealthy)" };
        format!("{}/{}{health}", workload.namespace, workload.name)
    };
    ServiceRow {
        namespace: service.name.namespace.to_string(),
        hostname: service.name.hostname.to_string(),
        addresses: service.addresses.iter().map(ToString::to_string).collect(),
        ports: service.ports.iter().map(|port| format!("{}->{}", port.service_port, port.target_port)).collect(),
        endpoints: view.endpoints(&service.name).iter().map(|workload| endpoint(workload)).collect(),
    }
}

/// By namespace and name.
pub(super) fn policies(node: &Node) -> Vec<PolicyRow> {
    let view = node.view.load_full().unwrap_or_default();
    let mut rows: Vec<PolicyRow> = view.policies().map(|policy| policy_row(&view, policy)).collect();
    rows.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    rows
}

fn policy_row(view: &View, policy: &Policy) -> PolicyRow {
    let (scope, workloads) = match policy.scope {
        Scope::Global => ("mesh", vec!["*".to_owned()]),
        Scope::Namespace => ("namespace", vec![format!("{}/*", policy.name.namespace)]),
        Scope::Selector => ("workload selector", selected(view, policy)),
    };
    PolicyRow {
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
        scope: scope.into(),
        action: match (policy.action, policy.is_stand_in) {
            (Action::Allow, false) => "ALLOW",
            (Action::Deny, false) => "DENY",
            (_, true) => "UNREADABLE",
        }
        .into(),
        dry_run: policy.is_dry_run,
        rules: policy.rules.len() as u32,
        workloads,
    }
}

fn selected(view: &View, policy: &Policy) -> Vec<String> {
    let named = view.workloads().filter(|workload| workload.policies.contains(&policy.name));
    let mut names: Vec<String> = named.map(|workload| format!("{}/{}", workload.namespace, workload.name)).collect();
    names.sort();
    names
}
