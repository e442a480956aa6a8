//! EndpointSlices: which addresses answer behind a Service, where its selector does not say so.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    fields::Fields,
    metadata::{self, Metadata, Name},
};

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `metadata`.
    pub metadata: Metadata,
    /// The Service it belongs to.
    pub service: Name,
    /// TCP ports by their name in the Service.
    pub ports: BTreeMap<String, u16>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Some endpoint has hints for whom it is.
    pub has_hints: bool,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses: one, as Kubernetes has it.
    pub addresses: Vec<IpAddr>,
    /// False when its condition says so.
    pub is_ready: bool,
    /// The pod that it is, when it is one.
    pub pod: Option<Name>,
    /// The node it is on, when that is said.
    pub node: String,
}

/// Label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Reads an EndpointSlice.
pub fn read(object: &mut Fields<'_>) -> Option<EndpointSlice> {
    let metadata = metadata::read(object, true)?;
    let problems = object.problems();
    if let Some(kind) = object.text("addressType").filter(|kind| kind.value != "IPv4" && kind.value != "IPv6") {
        kind.refuse(problems, format!("{:?} is not supported: IPv4 or IPv6", kind.value));
    }
    let mut ports = BTreeMap::new();
    for mut fields in object.maps("ports") {
        let name = fields.text("name").map(|name| name.value).unwrap_or_default();
        let is_tcp = fields.choice("protocol", &[("TCP", true), ("UDP", false), ("SCTP", false)]).unwrap_or(true);
        let port = fields.port("port");
        fields.accept(&["appProtocol"]);
        fields.finish();
        if let (true, Some(port)) = (is_tcp, port) {
            ports.insert(name, port);
        }
    }
    let endpoints = object.maps("endpoints");
    let has_hints = endpoints.iter().any(|fields| fields.has("hints"));
    let endpoints = endpoints.into_iter().map(|fields| read_endpoint(fields, &metadata.namespace)).collect();
    let Some(service) = metadata.label(SERVICE_NAME) else {
        problems.push(metadata.at, "metadata.labels", format!("the label {SERVICE_NAME} says which Service it is of"));
        return None;
    };
    let service = Name::new(&metadata.namespace, service);
    Some(EndpointSlice { service, ports, endpoints, has_hints, metadata })
}

fn read_endpoint(mut fields: Fields<'_>, namespace: &str) -> Endpoint {
    let mut is_ready = true;
    if let Some(mut conditions) = fields.map("conditions") {
        is_ready = conditions.boolean("ready").unwrap_or(true);
        conditions.accept(&["serving", "terminating"]);
        conditions.finish();
    }
    let mut pod = None;
    if let Some(mut target) = fields.map("targetRef") {
        let is_pod = target.text("kind").is_some_and(|kind| kind.value == "Pod");
        let home = target.text("namespace").map_or_else(|| namespace.to_owned(), |spot| spot.value);
        let name = target.text("name");
        pod = name.filter(|_| is_pod).map(|name| Name::new(home, name.value));
        target.accept(&["apiVersion", "fieldPath", "resourceVersion", "uid"]);
        target.finish();
    }
    let endpoint = Endpoint {
        addresses: fields.addresses("addresses"),
        is_ready,
        pod,
        node: fields.text("nodeName").map(|node| node.value).unwrap_or_default(),
    };
    fields.accept(&["deprecatedTopology", "hints", "hostname", "zone"]);
    fields.finish();
    endpoint
}
