//! Services: names and virtual addresses for sets of workloads. What the mesh cannot carry (ExternalName) is refused;
//! ports that are not TCP are left to the node.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    fields::{Fields, Problems, Spot},
    metadata::{self, Metadata},
};
use crate::source::document::Value;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `metadata`.
    pub metadata: Metadata,
    /// Labels its endpoints carry; empty when endpoints are given by EndpointSlices only.
    pub selector: BTreeMap<String, String>,
    /// Cluster addresses; empty for a headless service.
    pub cluster_addresses: Vec<IpAddr>,
    /// `externalIPs` and the addresses of the load balancer.
    pub external_addresses: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// Seconds that a client address stays on its endpoint; 0 is no affinity.
    pub affinity_seconds: u32,
    /// `internalTrafficPolicy: Local`.
    pub only_local: bool,
    /// Endpoints count before they are ready.
    pub publish_not_ready: bool,
    /// `trafficDistribution`.
    pub distribution: Distribution,
    /// Fields that are written and not heard, each with what holds instead.
    pub unheard: Vec<(&'static str, &'static str)>,
}

/// Which endpoints a caller prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// All the same.
    Even,
    /// Those of the caller's zone.
    SameZone,
    /// Those of the caller's node, then of its zone.
    SameNode,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the service has one port without a name.
    pub name: String,
    /// Port at the service's address.
    pub port: u16,
    /// Port at the endpoint.
    pub target: TargetPort,
    /// Port at every node's address, 0 when there is none.
    pub node_port: u16,
    /// `appProtocol` as written.
    pub app_protocol: String,
}

/// Port of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The number.
    Number(u16),
    /// The name of a container's port: each pod may have another number.
    Named(String),
}

/// ServiceSpec of Kubernetes 1.34 without the fields read below.
const SPEC: [&str; 7] = [
    "allocateLoadBalancerNodePorts",
    "healthCheckNodePort",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "topologyKeys",
];

/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds` in Kubernetes.
const AFFINITY_SECONDS: u32 = 10_800;

const TIMEOUT: (&str, &str) = (
    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    "a client address stays on its endpoint for as long as that can be chosen",
);
const EXTERNAL_POLICY: (&str, &str) = (
    "spec.externalTrafficPolicy: Local",
    "the mesh carries callers inside the cluster, who reach the endpoints of all nodes",
);

/// Reads a Service.
pub fn read(object: &mut Fields<'_>) -> Option<Service> {
    let metadata = metadata::read(object, true);
    let external = read_status(object);
    let mut spec = required_spec(object)?;
    let problems = spec.problems();
    check_type(&mut spec);
    refuse_source_ranges(&mut spec);
    let (affinity_seconds, has_timeout) = affinity(&mut spec);
    let is_local = spec.choice("externalTrafficPolicy", &[("Cluster", false), ("Local", true)]).unwrap_or(false);
    let mut external_addresses = spec.addresses("externalIPs");
    external_addresses.extend(external);
    let service = Service {
        selector: spec.labels("selector"),
        cluster_addresses: cluster_addresses(&mut spec),
        external_addresses,
        ports: read_ports(&mut spec),
        affinity_seconds,
        unheard: [(has_timeout, TIMEOUT), (is_local, EXTERNAL_POLICY)]
            .into_iter()
            .filter_map(|(is_written, field)| is_written.then_some(field))
            .collect(),
        only_local: spec.choice("internalTrafficPolicy", &[("Cluster", false), ("Local", true)]).unwrap_or(false),
        publish_not_ready: spec.boolean("publishNotReadyAddresses").unwrap_or(false),
        distribution: spec
            .choice(
                "trafficDistribution",
                &[
                    ("PreferClose", Distribution::SameZone),
                    ("PreferSameZone", Distribution::SameZone),
                    ("PreferSameNode", Distribution::SameNode),
                ],
            )
            .unwrap_or(Distribution::Even),
        metadata: Metadata::default(),
    };
    spec.accept(&SPEC);
    spec.finish();
    let metadata = metadata?;
    if !metadata::is_label(&metadata.name) {
        problems.push(metadata.at, "metadata.name", "the name of a Service has no dots: it is a DNS label");
    }
    Some(Service { metadata, ..service })
}

fn check_type(spec: &mut Fields<'_>) {
    const NEEDS_DNS: &str = "ExternalName needs DNS, which the mesh does not serve yet";
    let kind = spec.text("type");
    if let Some(kind) = kind.filter(|kind| !["ClusterIP", "NodePort", "LoadBalancer"].contains(&kind.value.as_str())) {
        let reason = match kind.value.as_str() {
            "ExternalName" => NEEDS_DNS.to_owned(),
            other => format!("{other:?} is not one of ClusterIP, NodePort, LoadBalancer"),
        };
        kind.refuse(spec.problems(), reason);
    }
    spec.refuse("externalName", NEEDS_DNS);
}

/// Addresses of the load balancer are published to every caller: who wants to keep some out must not believe it is done.
fn refuse_source_ranges(spec: &mut Fields<'_>) {
    const NAME: &str = "loadBalancerSourceRanges";
    if let Some(first) = spec.list(NAME).first() {
        let reason = "is not supported: restrict callers by ipBlocks of an AuthorizationPolicy";
        spec.problems().push(first.at, spec.path_of(NAME), reason);
    }
}

fn required_spec<'a>(object: &mut Fields<'a>) -> Option<Fields<'a>> {
    if !object.has("spec") {
        object.problems().push(object.at(), "spec", "is required");
    }
    object.map("spec")
}

fn read_status(object: &mut Fields<'_>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let Some(mut status) = object.map("status") else { return found };
    if let Some(mut balancer) = status.map("loadBalancer") {
        for mut ingress in balancer.maps("ingress") {
            // With `Proxy` the balancer wants to see the connection; the address is not the service's inside the cluster.
            let is_service = ingress.choice("ipMode", &[("VIP", true), ("Proxy", false)]).unwrap_or(true);
            found.extend(ingress.address("ip").filter(|_| is_service));
            ingress.accept(&["hostname", "ports"]);
            ingress.finish();
        }
        balancer.finish();
    }
    status.accept(&["conditions"]);
    status.finish();
    found
}

fn cluster_addresses(spec: &mut Fields<'_>) -> Vec<IpAddr> {
    let problems = spec.problems();
    let mut texts = spec.texts("clusterIPs");
    if let Some(first) = spec.text("clusterIP").filter(|first| texts.iter().all(|text| text.value != first.value)) {
        texts.insert(0, first);
    }
    texts
        .iter()
        .filter(|text| text.value != "None" && !text.value.is_empty())
        .filter_map(|text| super::fields::address(text, problems))
        .collect()
}

/// Seconds, 0 without affinity, and whether they are others than Kubernetes' default, which an API server writes in.
fn affinity(spec: &mut Fields<'_>) -> (u32, bool) {
    let has_affinity = spec.choice("sessionAffinity", &[("None", false), ("ClientIP", true)]).unwrap_or(false);
    let mut written = None;
    if let Some(mut config) = spec.map("sessionAffinityConfig") {
        if let Some(mut client) = config.map("clientIP") {
            written = client.integer("timeoutSeconds", 1..=86_400).and_then(|seconds| u32::try_from(seconds).ok());
            client.finish();
        }
        config.finish();
    }
    let seconds = written.unwrap_or(AFFINITY_SECONDS);
    if has_affinity { (seconds, seconds != AFFINITY_SECONDS) } else { (0, false) }
}

fn read_ports(spec: &mut Fields<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for mut fields in spec.maps("ports") {
        let problems = fields.problems();
        let at = fields.at();
        let name = fields.text("name").map(|name| name.value).unwrap_or_default();
        let is_tcp = fields.choice("protocol", &[("TCP", true), ("UDP", false), ("SCTP", false)]).unwrap_or(true);
        if !fields.has("port") {
            problems.push(at, fields.path_of("port"), "is required");
        }
        let port = fields.port("port");
        let target = fields.take("targetPort").and_then(|spot| target_port(&spot, problems));
        let node_port = fields.port("nodePort").unwrap_or(0);
        let app_protocol = fields.text("appProtocol").map(|text| text.value).unwrap_or_default();
        let path = fields.path_of("port");
        fields.finish();
        let Some(port) = port.filter(|_| is_tcp) else { continue };
        if ports.iter().any(|other| other.port == port) {
            problems.push(at, path, format!("port {port} is there twice"));
        }
        ports.push(ServicePort {
            name,
            port,
            target: target.unwrap_or(TargetPort::Number(port)),
            node_port,
            app_protocol,
        });
    }
    ports
}

fn target_port(spot: &Spot<&crate::source::document::Node>, problems: &Problems) -> Option<TargetPort> {
    match &spot.value.value {
        Value::Integer(number) => match u16::try_from(*number) {
            Ok(number) if number > 0 => Some(TargetPort::Number(number)),
            _ => {
                spot.refuse(problems, format!("{number} is not a port"));
                None
            }
        },
        Value::Text(name) if !name.is_empty() => Some(TargetPort::Named(name.clone())),
        other => {
            spot.refuse(problems, format!("expected a port or the name of one, found {}", other.kind()));
            None
        }
    }
}
