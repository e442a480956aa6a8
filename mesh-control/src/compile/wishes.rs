//! Labels and annotations of Istio, and fields of Kubernetes, that ask for what this mesh does not do. They do not stop an object from being used,
//! because they stand on objects that mean much else; but whoever wrote them is told.

use crate::objects::{
    Objects,
    metadata::Metadata,
    service::{Distribution, Service},
    slice::EndpointSlice,
};

/// Names, where they stand, and what is not done.
const LABELS: [(&str, &str); 2] = [
    ("istio.io/use-waypoint", "traffic does not go through a waypoint"),
    ("istio.io/ingress-use-waypoint", "traffic does not go through a waypoint"),
];
const ANNOTATIONS: [(&str, &str); 3] = [
    ("ambient.istio.io/bypass-inbound-capture", "inbound connections are captured"),
    ("ambient.istio.io/dns-capture", "DNS is not captured"),
    ("networking.istio.io/traffic-distribution", "write spec.trafficDistribution"),
];

/// One sentence for each wish that is not heard.
pub fn unheard(objects: &Objects) -> Vec<String> {
    let namespaces = objects.namespaces.values().map(|object| ("Namespace", &object.metadata));
    let pods = objects.pods.values().map(|object| ("Pod", &object.metadata));
    let services = objects.services.values().map(|object| ("Service", &object.metadata));
    let entries = objects.service_entries.values().map(|object| ("ServiceEntry", &object.metadata));
    let workloads = objects.workload_entries.values().map(|object| ("WorkloadEntry", &object.metadata));
    let all = namespaces.chain(pods).chain(services).chain(entries).chain(workloads);
    let fields = objects.services.values().flat_map(|service| of_service(service));
    let hints = objects.slices.values().filter_map(|slice| of_slice(objects, slice));
    all.flat_map(|(kind, metadata)| of(kind, metadata)).chain(fields).chain(hints).collect()
}

fn of_service(service: &Service) -> impl Iterator<Item = String> {
    let told = |(field, effect)| format!("Service {}: {field} has no effect: {effect}", service.metadata.key());
    service.unheard.iter().copied().map(told)
}

/// Hints that follow from a distribution that the mesh heeds itself are no wish of their own.
fn of_slice(objects: &Objects, slice: &EndpointSlice) -> Option<String> {
    let is_heeded =
        objects.services.get(&slice.service).is_some_and(|service| service.distribution != Distribution::Even);
    (slice.has_hints && !is_heeded).then(|| {
        let key = slice.metadata.key();
        format!("EndpointSlice {key}: endpoints.hints has no effect: write spec.trafficDistribution of the Service")
    })
}

fn of(kind: &str, metadata: &Metadata) -> Vec<String> {
    let labels = LABELS.iter().filter_map(|wish| Some((wish, metadata.labels.get(wish.0)?)));
    let annotations = ANNOTATIONS.iter().filter_map(|wish| Some((wish, metadata.annotations.get(wish.0)?)));
    let wishes = labels.chain(annotations).filter(|(_, value)| !matches!(value.as_str(), "none" | "false"));
    wishes.map(|((name, effect), _)| format!("{kind} {}: {name} has no effect: {effect}", metadata.key())).collect()
}
