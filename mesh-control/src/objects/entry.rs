//! WorkloadEntry and ServiceEntry: workloads and services that Kubernetes does not run. Whatever would need DNS is
//! refused with that reason, because the mesh does not serve DNS yet.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    fields::{Fields, Problems, Spot},
    metadata::{self, Metadata},
    service::{ServicePort, TargetPort},
};

/// A WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// `metadata`.
    pub metadata: Metadata,
    /// What it says of the workload.
    pub workload: ExternalWorkload,
}

/// A workload with an address: the spec of a WorkloadEntry, or an endpoint of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalWorkload {
    /// Its address.
    pub address: IpAddr,
    /// Numbers of named ports.
    pub ports: BTreeMap<String, u16>,
    /// Labels, added to those of the metadata.
    pub labels: BTreeMap<String, String>,
    /// Its ServiceAccount; empty when it has no identity.
    pub service_account: String,
    /// Region, zone and sub-zone, joined by `/`.
    pub locality: String,
    /// Its share of connections; `None` counts as 1.
    pub weight: Option<u32>,
}

/// A ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// `metadata`.
    pub metadata: Metadata,
    /// Its names.
    pub hosts: Vec<String>,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Endpoints written in the entry itself.
    pub endpoints: Vec<ExternalWorkload>,
    /// Labels of endpoints among the namespace's workloads; empty: none.
    pub selector: BTreeMap<String, String>,
    /// Names that an endpoint's certificate may carry.
    pub subject_alt_names: Vec<String>,
}

const NEEDS_DNS: &str = "needs DNS, which the mesh does not serve yet";

/// Reads a WorkloadEntry.
pub fn read_workload(object: &mut Fields<'_>) -> Option<WorkloadEntry> {
    let metadata = metadata::read(object, true);
    object.accept(&["status"]);
    if !object.has("spec") {
        object.problems().push(object.at(), "spec", "is required");
    }
    let workload = object.map("spec").and_then(read_external);
    Some(WorkloadEntry { metadata: metadata?, workload: workload? })
}

fn read_external(mut fields: Fields<'_>) -> Option<ExternalWorkload> {
    let problems = fields.problems();
    let address = fields.required_text("address").and_then(|spot| literal(&spot, problems));
    let mut ports = BTreeMap::new();
    if let Some(mut named) = fields.map("ports") {
        for name in named.names() {
            ports.extend(named.port(name).map(|port| (name.to_owned(), port)));
        }
        named.finish();
    }
    if let Some(network) = fields.text("network").filter(|network| !network.value.is_empty()) {
        network.refuse(problems, "workloads of other networks are not supported");
    }
    let service_account = match fields.text("serviceAccount") {
        Some(account) if !metadata::is_subdomain(&account.value) => {
            account.refuse(problems, format!("{:?} is not the name of a ServiceAccount", account.value));
            String::new()
        }
        account => account.map(|spot| spot.value).unwrap_or_default(),
    };
    let labels = fields.labels("labels");
    let locality = fields.text("locality").map(|spot| spot.value).unwrap_or_default();
    let weight = fields.integer("weight", 0..=i64::from(u32::MAX)).and_then(|weight| u32::try_from(weight).ok());
    fields.finish();
    Some(ExternalWorkload { address: address?, ports, labels, service_account, locality, weight })
}

fn literal(spot: &Spot<String>, problems: &Problems) -> Option<IpAddr> {
    let address = spot.value.parse::<IpAddr>().ok();
    if address.is_none() {
        let reason = match spot.value.starts_with("unix://") {
            true => "Unix sockets are not supported".to_owned(),
            false => format!("{:?} is not an IP address; a host name {NEEDS_DNS}", spot.value),
        };
        spot.refuse(problems, reason);
    }
    address.map(|address| address.to_canonical())
}

/// Reads a ServiceEntry.
pub fn read_service(object: &mut Fields<'_>) -> Option<ServiceEntry> {
    let metadata = metadata::read(object, true);
    object.accept(&["status"]);
    let problems = object.problems();
    if !object.has("spec") {
        problems.push(object.at(), "spec", "is required");
    }
    let mut spec = object.map("spec")?;
    let hosts = read_hosts(&mut spec);
    let addresses = read_addresses(&mut spec);
    check_resolution(&mut spec);
    // Where the service runs has no bearing at L4: endpoints with an identity are verified, others are not.
    spec.choice("location", &[("MESH_EXTERNAL", ()), ("MESH_INTERNAL", ())]);
    let at = spec.at();
    for scope in spec.texts("exportTo").iter().filter(|scope| scope.value != "*") {
        scope.refuse(problems, "entries are visible in the whole mesh; only \"*\" is supported");
    }
    let mut selector = BTreeMap::new();
    if let Some(mut fields) = spec.map("workloadSelector") {
        selector = fields.labels("labels");
        fields.finish();
    }
    let ports = read_ports(&mut spec);
    let endpoints: Vec<_> = spec.maps("endpoints").into_iter().filter_map(read_external).collect();
    let subject_alt_names = spec.texts("subjectAltNames").into_iter().map(|spot| spot.value).collect();
    if !selector.is_empty() && !endpoints.is_empty() {
        problems.push(
            at,
            "spec.workloadSelector",
            "stands beside endpoints: one of the two says where the service runs",
        );
    }
    spec.finish();
    Some(ServiceEntry { metadata: metadata?, hosts, addresses, ports, endpoints, selector, subject_alt_names })
}

fn read_hosts(spec: &mut Fields<'_>) -> Vec<String> {
    let problems = spec.problems();
    if !spec.has("hosts") {
        problems.push(spec.at(), "spec.hosts", "is required");
    }
    let mut hosts = Vec::new();
    for host in spec.texts("hosts") {
        match metadata::is_subdomain(&host.value) {
            true => hosts.push(host.value),
            false if host.value.starts_with('*') => host.refuse(problems, format!("a wildcard {NEEDS_DNS}")),
            false => host.refuse(problems, format!("{:?} is not a host name", host.value)),
        }
    }
    hosts
}

fn read_addresses(spec: &mut Fields<'_>) -> Vec<IpAddr> {
    let problems = spec.problems();
    if !spec.has("addresses") {
        problems.push(spec.at(), "spec.addresses", format!("is required: an address for the name {NEEDS_DNS}"));
    }
    let mut addresses = Vec::new();
    for spot in spec.texts("addresses") {
        let text = spot.value.strip_suffix("/32").or_else(|| spot.value.strip_suffix("/128")).unwrap_or(&spot.value);
        match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) if text.contains('/') => spot.refuse(problems, "a range is not supported: name each address"),
            Err(_) => spot.refuse(problems, format!("{text:?} is not an IP address")),
        }
    }
    addresses
}

fn check_resolution(spec: &mut Fields<'_>) {
    let problems = spec.problems();
    let Some(resolution) = spec.text("resolution") else {
        problems.push(spec.at(), "spec.resolution", "STATIC is required: NONE, the default, is not supported");
        return;
    };
    match resolution.value.as_str() {
        "STATIC" => {}
        "NONE" => resolution.refuse(problems, "NONE is not supported: list the endpoints and write STATIC"),
        "DNS" | "DNS_ROUND_ROBIN" | "DYNAMIC_DNS" => {
            resolution.refuse(problems, format!("{} {NEEDS_DNS}", resolution.value))
        }
        other => resolution.refuse(problems, format!("{other:?} is not one of STATIC")),
    }
}

fn read_ports(spec: &mut Fields<'_>) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for mut fields in spec.maps("ports") {
        let problems = fields.problems();
        let at = fields.at();
        if !fields.has("number") {
            problems.push(at, fields.path_of("number"), "is required");
        }
        let number = fields.port("number");
        let name = fields.required_text("name").map(|name| name.value).unwrap_or_default();
        let protocol = fields.text("protocol");
        if let Some(protocol) = protocol.as_ref().filter(|protocol| protocol.value.eq_ignore_ascii_case("UDP")) {
            protocol.refuse(problems, "UDP is not carried by the mesh");
        }
        let target = fields.port("targetPort");
        fields.finish();
        if let Some(port) = number {
            ports.push(ServicePort {
                name,
                port,
                target: TargetPort::Number(target.unwrap_or(port)),
                node_port: 0,
                app_protocol: protocol.map(|protocol| protocol.value.to_ascii_lowercase()).unwrap_or_default(),
            });
        }
    }
    ports
}
