//! Services and ServiceEntries: names and addresses, and which port of which workload answers behind each of their
//! ports. EndpointSlices say so where a service has some; selectors do elsewhere.
//!
//! Node ports are a service of their own, `node-ports.NAME.NAMESPACE.svc.cluster.local`, because every service shares
//! the nodes' addresses: whoever looks one of those up has to compare the port too.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use mesh_api::{
    SERVICE_TRAFFIC_EXTENSION,
    proto::{
        mesh::ServiceTraffic,
        workload::{
            AppProtocol, Extension, IpFamilies, LoadBalancing, NetworkAddress, Port, PortList, Service, TunnelProtocol,
            WorkloadType,
            load_balancing::{HealthPolicy, Mode, Scope},
        },
    },
};
use prost::Message;

use super::{
    CLUSTER, Mesh, Resources, bytes,
    workloads::{Candidate, Candidates, external_workload, named, node_locality},
};
use crate::objects::{
    entry::ServiceEntry,
    metadata::Name,
    service::{self, Distribution, ServicePort, TargetPort},
    slice::{Endpoint, EndpointSlice},
};

/// Compiles all services and writes into each workload which of their ports it answers on.
pub fn attach(mesh: &Mesh<'_>, candidates: &mut Candidates, resources: &mut Resources) {
    let mut slices: HashMap<&Name, Vec<&EndpointSlice>> = HashMap::new();
    for slice in mesh.objects.slices.values() {
        slices.entry(&slice.service).or_default().push(slice);
    }
    for (name, service) in &mesh.objects.services {
        let compiled = Compiled::of(mesh, service);
        match slices.remove(name) {
            Some(slices) => slices.iter().for_each(|slice| compiled.attach_slice(mesh, candidates, slice)),
            None if service.selector.is_empty() => {}
            None => {
                for index in candidates.selected(&name.namespace, &service.selector) {
                    compiled.attach_selected(candidates.at(index));
                }
            }
        }
        resources.services.extend(compiled.into_resources());
    }
    for (name, slices) in slices {
        let files: Vec<_> = slices.iter().map(|slice| slice.metadata.name.as_str()).collect();
        resources.warnings.push(format!(
            "EndpointSlice {} of {}: there is no Service {name}",
            files.join(", "),
            name.namespace
        ));
    }
    resources.warnings.sort();
    for entry in mesh.objects.service_entries.values() {
        attach_entry(mesh, entry, candidates, resources);
    }
}

/// A service and, where it has node ports, its twin at the nodes' addresses.
struct Compiled<'a> {
    service: &'a service::Service,
    faces: Vec<Face<'a>>,
}

/// One resource of a service: its key and which of the service's ports it shows under which number.
struct Face<'a> {
    key: String,
    resource: Service,
    ports: Vec<(&'a ServicePort, u16)>,
}

impl<'a> Compiled<'a> {
    fn of(mesh: &Mesh<'_>, service: &'a service::Service) -> Compiled<'a> {
        let metadata = &service.metadata;
        let host = format!("{}.{}.svc.cluster.local", metadata.name, metadata.namespace);
        let addresses = service.cluster_addresses.iter().chain(&service.external_addresses);
        let shared = resource(service);
        let mut faces = vec![Face::of(
            &shared,
            host.clone(),
            addresses,
            service.ports.iter().map(|port| (port, port.port)).collect(),
        )];
        let node_ports: Vec<_> =
            service.ports.iter().filter(|port| port.node_port > 0).map(|port| (port, port.node_port)).collect();
        if !node_ports.is_empty() {
            let nodes = mesh.objects.nodes.values().flat_map(|node| &node.addresses);
            faces.push(Face::of(&shared, format!("node-ports.{host}"), nodes, node_ports));
        }
        Compiled { service, faces }
    }

    fn attach_selected(&self, candidate: &mut Candidate) {
        let (named, is_override) = (candidate.ports.clone(), candidate.names_service_ports);
        self.attach(candidate, |port| {
            let own = named.get(&port.name).copied().filter(|_| is_override);
            own.or_else(|| match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Named(name) => named.get(name).copied(),
            })
        });
    }

    fn attach_slice(&self, mesh: &Mesh<'_>, candidates: &mut Candidates, slice: &EndpointSlice) {
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.is_ready || self.service.publish_not_ready) {
            for address in &endpoint.addresses {
                let pod = endpoint.pod.as_ref().and_then(|pod| candidates.pod(pod));
                let known = pod.or_else(|| candidates.address(*address));
                let index = known.unwrap_or_else(|| candidates.push(bare(mesh, slice, endpoint, *address)));
                self.attach(candidates.at(index), |port| slice.ports.get(&port.name).copied());
            }
        }
    }

    fn attach(&self, candidate: &mut Candidate, target: impl Fn(&ServicePort) -> Option<u16>) {
        for face in &self.faces {
            let ports = face.ports.iter().filter_map(|(port, number)| {
                let target = target(port)?;
                Some(Port {
                    service_port: (*number).into(),
                    target_port: target.into(),
                    app_protocol: app_protocol(port).into(),
                })
            });
            candidate.workload.services.insert(face.key.clone(), PortList { ports: ports.collect() });
        }
    }

    fn into_resources(self) -> impl Iterator<Item = (String, Service)> {
        self.faces.into_iter().map(|face| (face.key, face.resource))
    }
}

impl<'a> Face<'a> {
    fn of<'b>(
        shared: &Service,
        hostname: String,
        addresses: impl Iterator<Item = &'b IpAddr>,
        ports: Vec<(&'a ServicePort, u16)>,
    ) -> Face<'a> {
        let list = ports.iter().map(|(port, number)| Port {
            service_port: (*number).into(),
            // A named port differs from pod to pod: each workload says its own.
            target_port: match port.target {
                TargetPort::Number(target) => target.into(),
                TargetPort::Named(_) => 0,
            },
            app_protocol: app_protocol(port).into(),
        });
        let resource =
            Service { ports: list.collect(), addresses: network_addresses(addresses), hostname, ..shared.clone() };
        Face { key: format!("{}/{}", resource.namespace, resource.hostname), resource, ports }
    }
}

/// What a service and its twin have in common.
fn resource(service: &service::Service) -> Service {
    let traffic = ServiceTraffic {
        client_ip_affinity_seconds: service.affinity_seconds,
        only_local_endpoints: service.only_local,
    };
    let extension = Extension {
        name: SERVICE_TRAFFIC_EXTENSION.to_owned(),
        config: Some(prost_types::Any {
            type_url: "type.googleapis.com/mesh.v1.ServiceTraffic".to_owned(),
            value: traffic.encode_to_vec(),
        }),
    };
    let families = service.cluster_addresses.iter().map(IpAddr::is_ipv4);
    Service {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        load_balancing: load_balancing(service),
        ip_families: ip_families(families).into(),
        extensions: if traffic == ServiceTraffic::default() { Vec::new() } else { vec![extension] },
        canonical: true,
        ..Service::default()
    }
}

fn ip_families(is_ipv4: impl Iterator<Item = bool>) -> IpFamilies {
    match is_ipv4.fold((false, false), |(v4, v6), is_ipv4| (v4 || is_ipv4, v6 || !is_ipv4)) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

/// Istio's reading of `trafficDistribution` and `publishNotReadyAddresses`.
fn load_balancing(service: &service::Service) -> Option<LoadBalancing> {
    let same_zone = [Scope::Network, Scope::Region, Scope::Zone];
    let same_node = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];
    let (scopes, mode): (&[Scope], Mode) = match service.distribution {
        Distribution::Even => (&[], Mode::UnspecifiedMode),
        Distribution::SameZone => (&same_zone, Mode::Failover),
        Distribution::SameNode => (&same_node, Mode::Failover),
    };
    let health = if service.publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let balancing = LoadBalancing {
        routing_preference: scopes.iter().map(|scope| (*scope).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    };
    (balancing != LoadBalancing::default()).then_some(balancing)
}

/// `appProtocol`, or the port's name up to the first `-`, as Istio reads them.
fn app_protocol(port: &ServicePort) -> AppProtocol {
    let name =
        if port.app_protocol.is_empty() { port.name.split('-').next().unwrap_or_default() } else { &port.app_protocol };
    match name {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn network_addresses<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> Vec<NetworkAddress> {
    let mut found: Vec<NetworkAddress> = Vec::new();
    for address in addresses {
        let address = NetworkAddress { network: String::new(), address: bytes(*address), length: None };
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// An endpoint that is no workload we know.
fn bare(mesh: &Mesh<'_>, slice: &EndpointSlice, endpoint: &Endpoint, address: IpAddr) -> Candidate {
    let (namespace, name) = (&slice.metadata.namespace, &slice.metadata.name);
    let mut workload = named(mesh, namespace, name, &slice.metadata.labels, name);
    workload.uid = format!("{CLUSTER}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}");
    workload.addresses = vec![bytes(address)];
    workload.node.clone_from(&endpoint.node);
    workload.locality = node_locality(mesh, &endpoint.node);
    workload.workload_type = WorkloadType::Pod.into();
    workload.workload_name.clone_from(name);
    workload.tunnel_protocol = TunnelProtocol::None.into();
    Candidate { workload, labels: BTreeMap::new(), ports: BTreeMap::new(), names_service_ports: false }
}

fn attach_entry(mesh: &Mesh<'_>, entry: &ServiceEntry, candidates: &mut Candidates, resources: &mut Resources) {
    let (namespace, name) = (&entry.metadata.namespace, &entry.metadata.name);
    let indices = entry_endpoints(mesh, entry, candidates);
    for host in &entry.hosts {
        let shared = Service {
            name: name.clone(),
            namespace: namespace.clone(),
            subject_alt_names: entry.subject_alt_names.clone(),
            ip_families: ip_families(entry.addresses.iter().map(IpAddr::is_ipv4)).into(),
            ..Service::default()
        };
        let ports: Vec<_> = entry.ports.iter().map(|port| (port, port.port)).collect();
        let face = Face::of(&shared, host.clone(), entry.addresses.iter(), ports);
        if resources.services.contains_key(&face.key) {
            resources
                .warnings
                .push(format!("ServiceEntry {namespace}/{name}: {host} is the name of another service there"));
            continue;
        }
        for index in &indices {
            let candidate = candidates.at(*index);
            let ports = face.ports.iter().map(|(port, number)| Port {
                service_port: (*number).into(),
                target_port: entry_target(candidate, port).into(),
                app_protocol: app_protocol(port).into(),
            });
            let list = PortList { ports: ports.collect() };
            candidate.workload.services.insert(face.key.clone(), list);
        }
        resources.services.insert(face.key, face.resource);
    }
}

/// The workloads that an entry selects, and those written into it.
fn entry_endpoints(mesh: &Mesh<'_>, entry: &ServiceEntry, candidates: &mut Candidates) -> Vec<usize> {
    let (namespace, name) = (&entry.metadata.namespace, &entry.metadata.name);
    if !entry.selector.is_empty() {
        return candidates.selected(namespace, &entry.selector);
    }
    let own = entry.endpoints.iter().map(|endpoint| {
        let mut workload = external_workload(mesh, endpoint, namespace, name, &endpoint.labels);
        workload.uid = format!("{CLUSTER}/networking.istio.io/ServiceEntry/{namespace}/{name}/{}", endpoint.address);
        // No agent is said to serve it, so no tunnel ends there and no certificate is issued for it.
        workload.service_account.clone_from(&endpoint.service_account);
        let ports = endpoint.ports.clone();
        candidates.push(Candidate { workload, labels: BTreeMap::new(), ports, names_service_ports: true })
    });
    own.collect()
}

/// An endpoint's own number for a named port comes first.
fn entry_target(candidate: &Candidate, port: &ServicePort) -> u16 {
    let own = candidate.ports.get(&port.name).copied().filter(|_| candidate.names_service_ports);
    own.unwrap_or(match port.target {
        TargetPort::Number(number) => number,
        TargetPort::Named(_) => port.port,
    })
}
