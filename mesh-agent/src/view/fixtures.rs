//! Views for tests, built by the real `Store` from real messages.

use std::{net::IpAddr, sync::Arc};

use mesh_api::proto::{
    security::{self, Authorization},
    workload::{self as wire, Address, address::Type},
};

use super::{Store, View};

pub(crate) fn bytes(address: &str) -> Vec<u8> {
    match address.parse().expect("an address") {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A healthy HBONE pod of namespace `default` whose service account has its name.
pub(crate) fn pod(name: &str, addresses: &[&str]) -> wire::Workload {
    wire::Workload {
        uid: format!("Kubernetes//Pod/default/{name}"),
        name: name.into(),
        namespace: "default".into(),
        service_account: name.into(),
        addresses: addresses.iter().map(|address| bytes(address)).collect(),
        node: "node-a".into(),
        tunnel_protocol: wire::TunnelProtocol::Hbone as i32,
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        workload_name: name.into(),
        cluster_id: "Kubernetes".into(),
        ..Default::default()
    }
}

/// The same pod as an endpoint of `default/HOST`, `service_port` reaching its `target_port`.
pub(crate) fn behind(mut pod: wire::Workload, host: &str, service_port: u32, target_port: u32) -> wire::Workload {
    let port = wire::Port { service_port, target_port, app_protocol: 0 };
    pod.services.entry(format!("default/{host}")).or_default().ports.push(port);
    pod
}

/// A service of namespace `default` with ports that go to the same port of the endpoint.
pub(crate) fn service(host: &str, addresses: &[&str], ports: &[u32]) -> wire::Service {
    wire::Service {
        name: host.split('.').next().unwrap_or_default().into(),
        namespace: "default".into(),
        hostname: host.into(),
        addresses: addresses
            .iter()
            .map(|address| wire::NetworkAddress { address: bytes(address), ..Default::default() })
            .collect(),
        ports: ports
            .iter()
            .map(|port| wire::Port { service_port: *port, target_port: *port, app_protocol: 0 })
            .collect(),
        ..Default::default()
    }
}

pub(crate) fn exact(text: &str) -> security::StringMatch {
    security::StringMatch { match_type: Some(security::string_match::MatchType::Exact(text.into())) }
}

pub(crate) fn presence() -> security::StringMatch {
    security::StringMatch { match_type: Some(security::string_match::MatchType::Presence(security::Empty {})) }
}

/// A policy of namespace `default` over all of it, with one rule of one clause.
pub(crate) fn policy(name: &str, action: security::Action, matches: Vec<security::Match>) -> Authorization {
    Authorization {
        name: name.into(),
        namespace: "default".into(),
        scope: security::Scope::Namespace as i32,
        action: action as i32,
        rules: vec![security::Rule { clauses: vec![security::Clause { matches }] }],
        ..Default::default()
    }
}

pub(crate) fn named_workload(workload: wire::Workload) -> (String, Address) {
    (workload.uid.clone(), Address { r#type: Some(Type::Workload(workload)) })
}

pub(crate) fn named_service(service: wire::Service) -> (String, Address) {
    (format!("{}/{}", service.namespace, service.hostname), Address { r#type: Some(Type::Service(service)) })
}

pub(crate) fn named_policy(policy: Authorization) -> (String, Authorization) {
    (format!("{}/{}", policy.namespace, policy.name), policy)
}

/// The View of these; every one of them must be accepted.
pub(crate) fn view(
    workloads: impl IntoIterator<Item = wire::Workload>,
    services: impl IntoIterator<Item = wire::Service>,
    policies: impl IntoIterator<Item = Authorization>,
) -> Arc<View> {
    let mut store = Store::default();
    let addresses: Vec<_> =
        services.into_iter().map(named_service).chain(workloads.into_iter().map(named_workload)).collect();
    assert_eq!(store.apply_addresses(&addresses, &[]), []);
    let policies: Vec<_> = policies.into_iter().map(named_policy).collect();
    assert_eq!(store.apply_policies(&policies, &[]), []);
    store.publish()
}
