//! From the messages of the wire to the types of the View, field by field. Refuses what it does not understand; never
//! repairs a value.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use mesh_api::{
    Identity, SERVICE_TRAFFIC_EXTENSION,
    proto::{
        mesh::{MeshConfig, ServiceTraffic},
        workload as wire,
    },
};
use prost::Message;

use super::{
    LoadBalancing, Locality, MeshSettings, PolicyName, Port, Protocol, RoutingScope, Service, ServiceName, Traffic,
    Workload,
};

/// A field that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(super) struct FieldError {
    field: String,
    problem: String,
}

pub(super) fn wrong(field: impl Into<String>, problem: impl Into<String>) -> FieldError {
    FieldError { field: field.into(), problem: problem.into() }
}

/// Istio leaves the defaults out of its messages. Source: istio/istio pkg/workloadapi/workload.proto.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// A 4 or 16 byte address; v4-mapped becomes IPv4.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let address: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(address.to_canonical())
}

fn addresses(all: &[impl AsRef<[u8]>]) -> Result<Vec<IpAddr>, FieldError> {
    let read = |(i, bytes): (usize, &_)| {
        address(AsRef::as_ref(bytes)).ok_or_else(|| wrong(format!("addresses[{i}]"), "neither 4 nor 16 bytes"))
    };
    all.iter().enumerate().map(read).collect()
}

pub(super) fn port(field: &str, value: u32) -> Result<u16, FieldError> {
    u16::try_from(value).ok().filter(|port| *port != 0).ok_or_else(|| wrong(field, format!("{value} is no port")))
}

fn nonempty<'a>(field: &str, text: &'a str) -> Result<&'a str, FieldError> {
    if text.is_empty() { Err(wrong(field, "empty")) } else { Ok(text) }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// `namespace/hostname` or `namespace/name`; exactly one slash.
pub(super) fn namespaced(text: &str) -> Option<(Arc<str>, Arc<str>)> {
    let (namespace, name) = text.split_once('/')?;
    let is_valid = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
    is_valid.then(|| (namespace.into(), name.into()))
}

pub(super) fn workload(from: &wire::Workload) -> Result<Workload, FieldError> {
    let identity = Identity::new(
        or(&from.trust_domain, DEFAULT_TRUST_DOMAIN),
        nonempty("namespace", &from.namespace)?,
        or(&from.service_account, DEFAULT_SERVICE_ACCOUNT),
    )
    .map_err(|error| wrong("identity", error.to_string()))?;
    let tunnel = wire::TunnelProtocol::try_from(from.tunnel_protocol)
        .map_err(|_| wrong("tunnel_protocol", format!("{} is unknown", from.tunnel_protocol)))?;
    let kind = wire::WorkloadType::try_from(from.workload_type)
        .map_err(|_| wrong("workload_type", format!("{} is unknown", from.workload_type)))?;
    let network_mode = wire::NetworkMode::try_from(from.network_mode)
        .map_err(|_| wrong("network_mode", format!("{} is unknown", from.network_mode)))?;
    let locality = from.locality.clone().unwrap_or_default();
    let speaks_hbone = from.native_tunnel || tunnel == wire::TunnelProtocol::Hbone;
    Ok(Workload {
        uid: nonempty("uid", &from.uid)?.into(),
        name: nonempty("name", &from.name)?.into(),
        namespace: from.namespace.clone(),
        identity,
        addresses: addresses(&from.addresses)?,
        node: from.node.clone(),
        network: from.network.clone(),
        cluster: from.cluster_id.clone(),
        protocol: if speaks_hbone { Protocol::Hbone } else { Protocol::Plaintext },
        is_host_network: network_mode == wire::NetworkMode::HostNetwork,
        // A status that is not known yet is no promise of health.
        is_healthy: from.status == wire::WorkloadStatus::Healthy as i32,
        weight: from.capacity.map_or(1, |capacity| capacity).max(1),
        locality: Locality { region: locality.region, zone: locality.zone, subzone: locality.subzone },
        workload_name: or(&from.workload_name, &from.name).into(),
        workload_type: workload_type(kind),
        canonical_name: from.canonical_name.clone(),
        canonical_revision: from.canonical_revision.clone(),
        services: workload_services(from)?,
        policies: workload_policies(from)?,
        unsupported: workload_unsupported(from, tunnel),
    })
}

fn workload_type(kind: wire::WorkloadType) -> &'static str {
    match kind {
        wire::WorkloadType::Deployment => "deployment",
        wire::WorkloadType::Cronjob => "cronjob",
        wire::WorkloadType::Pod => "pod",
        wire::WorkloadType::Job => "job",
    }
}

fn workload_unsupported(from: &wire::Workload, tunnel: wire::TunnelProtocol) -> Option<&'static str> {
    let app_tunnel = from.application_tunnel.as_ref().is_some_and(|tunnel| tunnel.protocol != 0);
    if from.waypoint.is_some() {
        Some("the workload has a waypoint")
    } else if app_tunnel {
        Some("the workload has an application tunnel")
    } else if tunnel == wire::TunnelProtocol::LegacyIstioMtls {
        Some("the workload speaks legacy Istio mutual TLS")
    } else if from.addresses.is_empty() && from.network_gateway.is_some() {
        Some("the workload is behind a network gateway")
    } else if from.addresses.is_empty() && !from.hostname.is_empty() {
        Some("the workload has a host name and no address")
    } else {
        None
    }
}

fn workload_services(from: &wire::Workload) -> Result<BTreeMap<ServiceName, BTreeMap<u16, u16>>, FieldError> {
    let mut services = BTreeMap::new();
    for (name, list) in &from.services {
        let (namespace, hostname) =
            namespaced(name).ok_or_else(|| wrong(format!("services[{name}]"), "not namespace/hostname"))?;
        let mut ports = BTreeMap::new();
        for one in &list.ports {
            let service_port = port(&format!("services[{name}].service_port"), one.service_port)?;
            ports.insert(service_port, port(&format!("services[{name}].target_port"), one.target_port)?);
        }
        services.insert(ServiceName { namespace, hostname }, ports);
    }
    Ok(services)
}

fn workload_policies(from: &wire::Workload) -> Result<Vec<PolicyName>, FieldError> {
    let read = |text: &String| {
        let (namespace, name) =
            namespaced(text).ok_or_else(|| wrong(format!("authorization_policies[{text}]"), "not namespace/name"))?;
        Ok(PolicyName { namespace, name })
    };
    from.authorization_policies.iter().map(read).collect()
}

pub(super) fn service(from: &wire::Service) -> Result<Service, FieldError> {
    let mut virtual_addresses = Vec::with_capacity(from.addresses.len());
    for (i, one) in from.addresses.iter().enumerate() {
        let field = format!("addresses[{i}]");
        let full = one.address.len() * 8;
        if one.length.is_some_and(|length| length as usize != full) {
            return Err(wrong(field, "a range of addresses is not supported"));
        }
        virtual_addresses.push(address(&one.address).ok_or_else(|| wrong(field, "neither 4 nor 16 bytes"))?);
    }
    // 0.0.0.0 and :: stand for "headless" in some versions of Istio; nobody dials them.
    virtual_addresses.retain(|address| !address.is_unspecified());
    let mut ports = Vec::with_capacity(from.ports.len());
    for one in &from.ports {
        let service_port = port("ports.service_port", one.service_port)?;
        // 0: each endpoint has its own (a named target port).
        let target_port = if one.target_port == 0 { service_port } else { port("ports.target_port", one.target_port)? };
        ports.push(Port { service_port, target_port });
    }
    let (load_balancing, unsupported_mode) = load_balancing(from.load_balancing.as_ref())?;
    Ok(Service {
        name: ServiceName {
            namespace: nonempty("namespace", &from.namespace)?.into(),
            hostname: nonempty("hostname", &from.hostname)?.into(),
        },
        short_name: or(&from.name, from.hostname.split('.').next().unwrap_or_default()).into(),
        is_canonical: from.canonical,
        addresses: virtual_addresses,
        ports,
        subject_alt_names: from.subject_alt_names.clone(),
        load_balancing,
        traffic: traffic(&from.extensions)?,
        unsupported: if from.waypoint.is_some() { Some("the service has a waypoint") } else { unsupported_mode },
    })
}

fn load_balancing(from: Option<&wire::LoadBalancing>) -> Result<(LoadBalancing, Option<&'static str>), FieldError> {
    use wire::load_balancing::{HealthPolicy, Mode, Scope};
    let Some(from) = from else { return Ok((LoadBalancing::default(), None)) };
    let scope = |value: &i32| match Scope::try_from(*value) {
        Ok(Scope::Region) => Ok(RoutingScope::Region),
        Ok(Scope::Zone) => Ok(RoutingScope::Zone),
        Ok(Scope::Subzone) => Ok(RoutingScope::Subzone),
        Ok(Scope::Node) => Ok(RoutingScope::Node),
        Ok(Scope::Cluster) => Ok(RoutingScope::Cluster),
        Ok(Scope::Network) => Ok(RoutingScope::Network),
        Ok(Scope::UnspecifiedScope) | Err(_) => {
            Err(wrong("load_balancing.routing_preference", format!("{value} is unknown")))
        }
    };
    let mode = Mode::try_from(from.mode).map_err(|_| wrong("load_balancing.mode", "unknown"))?;
    let health = HealthPolicy::try_from(from.health_policy);
    let balancing = LoadBalancing {
        preference: from.routing_preference.iter().map(scope).collect::<Result<_, _>>()?,
        is_strict: mode == Mode::Strict,
        allows_unhealthy: match health.map_err(|_| wrong("load_balancing.health_policy", "unknown"))? {
            HealthPolicy::OnlyHealthy => false,
            HealthPolicy::AllowAll => true,
        },
    };
    Ok((balancing, (mode == Mode::Passthrough).then_some("load balancing by passthrough is not supported")))
}

fn traffic(extensions: &[wire::Extension]) -> Result<Traffic, FieldError> {
    let mut traffic = Traffic::default();
    for extension in extensions {
        if extension.name != SERVICE_TRAFFIC_EXTENSION {
            return Err(wrong(format!("extensions[{}]", extension.name), "unknown"));
        }
        let config = extension.config.as_ref().map_or(&[][..], |any| any.value.as_slice());
        let read = ServiceTraffic::decode(config)
            .map_err(|error| wrong(format!("extensions[{SERVICE_TRAFFIC_EXTENSION}]"), error.to_string()))?;
        let affinity = Duration::from_secs(read.client_ip_affinity_seconds.into());
        traffic = Traffic {
            client_ip_affinity: (!affinity.is_zero()).then_some(affinity),
            only_local_endpoints: read.only_local_endpoints,
        };
    }
    Ok(traffic)
}

pub(super) fn mesh(from: &MeshConfig) -> Result<MeshSettings, FieldError> {
    let ranges = |field: &str, texts: &[String]| {
        let read = |text: &String| {
            text.parse::<IpNet>()
                .map(|net| net.trunc())
                .map_err(|_| wrong(field, format!("{text:?} is no address range")))
        };
        texts.iter().map(read).collect::<Result<Vec<_>, _>>()
    };
    let trust_domain = or(&from.trust_domain, DEFAULT_TRUST_DOMAIN).to_owned();
    Identity::new(&trust_domain, "any", "any").map_err(|error| wrong("trust_domain", error.to_string()))?;
    let node_ports = if (from.node_port_first, from.node_port_last) == (0, 0) {
        MeshSettings::default().node_ports
    } else {
        let (first, last) =
            (port("node_port_first", from.node_port_first)?, port("node_port_last", from.node_port_last)?);
        if first > last {
            return Err(wrong("node_port_last", "below node_port_first"));
        }
        first..=last
    };
    let node_addresses = addresses(&from.node_addresses)
        .map_err(|error| FieldError { field: format!("node_{}", error.field), ..error })?;
    Ok(MeshSettings {
        trust_domain,
        pod_ranges: ranges("pod_ranges", &from.pod_ranges)?,
        service_ranges: ranges("service_ranges", &from.service_ranges)?,
        node_addresses,
        node_ports,
        allow_fail_open: from.allow_fail_open,
        encrypt_same_node: from.encrypt_same_node,
    })
}
