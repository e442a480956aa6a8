//! Which port of which workload answers behind a service.

use std::collections::BTreeMap;

use mesh_api::proto::{
    mesh::ServiceTraffic,
    workload::{AppProtocol, IpFamilies, Service, load_balancing},
};
use prost::Message;

use super::*;

/// Two pods of `web` whose port `http` differs.
const WEB: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: shop, labels: {app: web, tier: front}}
spec: {nodeName: n1, containers: [{ports: [{name: http, containerPort: 8081}]}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, containers: [{ports: [{name: http, containerPort: 8082}, {name: dns, containerPort: 53, protocol: UDP}]}]}
status: {podIP: 10.0.0.2}
---
";

fn service(metadata: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop{metadata}}}\nspec: {spec}\n---\n")
}

/// Endpoints of a service by the last part of their uid, with target ports by service port.
fn behind(resources: &Resources, host: &str) -> BTreeMap<String, Vec<(u32, u32)>> {
    let key = format!("shop/{host}");
    let ports = |workload: &Workload| {
        workload
            .services
            .get(&key)
            .map(|list| list.ports.iter().map(|port| (port.service_port, port.target_port)).collect())
    };
    let short = |uid: &str| uid.rsplit('/').next().unwrap_or_default().to_owned();
    resources.workloads.iter().filter_map(|(uid, workload)| Some((short(uid), ports(workload)?))).collect()
}

fn endpoints(list: &[(&str, &[(u32, u32)])]) -> BTreeMap<String, Vec<(u32, u32)>> {
    list.iter().map(|(name, ports)| ((*name).to_owned(), ports.to_vec())).collect()
}

const HOST: &str = "web.shop.svc.cluster.local";

fn the_service(resources: &Resources) -> &Service {
    &resources.services[&format!("shop/{HOST}")]
}

#[test]
fn a_named_port_is_each_pods_own() {
    let spec = "{selector: {app: web}, clusterIP: 10.96.0.1, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 90, targetPort: 9000}, {name: c, port: 53, targetPort: dns}]}";
    let resources = compiled(&format!("{WEB}{}", service("", spec)));
    let expected = endpoints(&[("one", &[(80, 8081), (90, 9000)]), ("two", &[(80, 8082), (90, 9000)])]);
    assert_eq!(behind(&resources, HOST), expected, "a port that a pod does not have, or not for TCP, is not behind it");
    let ports: Vec<_> =
        the_service(&resources).ports.iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(80, 0), (90, 9000), (53, 0)]);
}

#[test]
fn a_selector_wants_all_of_its_labels_in_its_own_namespace() {
    let both = compiled(&format!("{WEB}{}", service("", "{selector: {app: web, tier: front}, ports: [{port: 80}]}")));
    assert_eq!(behind(&both, HOST), endpoints(&[("one", &[(80, 80)])]));
    let elsewhere = WEB.replace("namespace: shop", "namespace: other");
    let none = compiled(&format!("{elsewhere}{}", service("", "{selector: {app: web}, ports: [{port: 80}]}")));
    assert_eq!(behind(&none, HOST), endpoints(&[]));
}

#[test]
fn addresses_of_every_sort_are_the_services() {
    let spec = "{type: LoadBalancer, clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], externalIPs: [192.0.2.1], ports: [{port: 80, appProtocol: kubernetes.io/h2c}]}\nstatus: {loadBalancer: {ingress: [{ip: 192.0.2.2}, {ip: 192.0.2.3, ipMode: Proxy}, {hostname: x.example}]}}";
    let resources = compiled(&service("", spec));
    let found = the_service(&resources);
    let addresses: Vec<_> = found.addresses.iter().map(|address| address.address.clone()).collect();
    let expected = ["10.96.0.1", "fd00::1", "192.0.2.1", "192.0.2.2"];
    assert_eq!(addresses, expected.map(|text| crate::compile::bytes(text.parse().expect("an address"))));
    assert_eq!((found.ip_families(), found.hostname.as_str(), found.canonical), (IpFamilies::Dual, HOST, true));
    assert_eq!(found.ports[0].app_protocol(), AppProtocol::Http2);
    assert!(found.extensions.is_empty() && found.load_balancing.is_none());
}

#[test]
fn a_headless_service_has_endpoints_and_no_address() {
    let resources = compiled(&format!(
        "{WEB}{}",
        service("", "{clusterIP: None, clusterIPs: [None], selector: {app: web}, ports: [{port: 80}]}")
    ));
    assert!(the_service(&resources).addresses.is_empty());
    assert_eq!(behind(&resources, HOST).len(), 2);
}

#[test]
fn node_ports_are_a_service_at_the_nodes_addresses() {
    let nodes = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: 172.18.0.2}]}\n---\n";
    let spec = "{type: NodePort, clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: a, port: 80, targetPort: http, nodePort: 30080}, {name: b, port: 81}]}";
    let resources = compiled(&format!("{nodes}{WEB}{}", service("", spec)));
    let twin = &resources.services[&format!("shop/node-ports.{HOST}")];
    assert_eq!(twin.addresses.iter().map(|address| address.address.as_slice()).collect::<Vec<_>>(), [[172, 18, 0, 2]]);
    assert_eq!(
        behind(&resources, &format!("node-ports.{HOST}")),
        endpoints(&[("one", &[(30080, 8081)]), ("two", &[(30080, 8082)])])
    );
    assert_eq!(behind(&resources, HOST)["one"], [(80, 8081), (81, 81)]);
    assert_eq!(resources.mesh.node_addresses, [[172, 18, 0, 2]]);
}

#[test]
fn what_kubernetes_asks_beyond_istio_is_in_the_extension() {
    let traffic = |spec: &str| {
        let resources = compiled(&service("", spec));
        let extension = the_service(&resources).extensions[0].config.clone().expect("a body");
        ServiceTraffic::decode(&*extension.value).expect("ours")
    };
    let sticky = traffic("{sessionAffinity: ClientIP, ports: [{port: 80}]}");
    assert_eq!((sticky.client_ip_affinity_seconds, sticky.only_local_endpoints), (10_800, false));
    let short = traffic(
        "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, internalTrafficPolicy: Local, ports: [{port: 80}]}",
    );
    assert_eq!((short.client_ip_affinity_seconds, short.only_local_endpoints), (60, true));
}

#[test]
fn distribution_and_early_endpoints_are_load_balancing() {
    use load_balancing::{HealthPolicy, Mode, Scope};
    let balancing = |spec: &str| the_service(&compiled(&service("", spec))).load_balancing.clone().expect("some");
    let near = balancing("{trafficDistribution: PreferClose, ports: [{port: 80}]}");
    assert_eq!(near.mode(), Mode::Failover);
    assert_eq!(near.routing_preference().collect::<Vec<_>>(), [Scope::Network, Scope::Region, Scope::Zone]);
    let nearest = balancing("{trafficDistribution: PreferSameNode, ports: [{port: 80}]}");
    assert_eq!(nearest.routing_preference().next_back(), Some(Scope::Node));
    assert_eq!(
        balancing("{publishNotReadyAddresses: true, ports: [{port: 80}]}").health_policy(),
        HealthPolicy::AllowAll
    );
}

#[test]
fn slices_come_before_the_selector() {
    let slice = |name: &str, body: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n{body}\n---\n"
        )
    };
    let body = "ports: [{name: a, port: 7000}]\nendpoints:\n- {addresses: [10.0.0.2], targetRef: {kind: Pod, name: two}}\n- {addresses: [10.0.0.1], conditions: {ready: false}}\n- {addresses: [192.0.2.7], nodeName: n9}";
    let spec = "{selector: {app: web}, ports: [{name: a, port: 80}, {name: b, port: 81}]}";
    let resources = compiled(&format!("{WEB}{}{}", service("", spec), slice("s", body)));
    assert_eq!(behind(&resources, HOST), endpoints(&[("192.0.2.7", &[(80, 7000)]), ("two", &[(80, 7000)])]));
    let bare = &resources.workloads["Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/192.0.2.7"];
    assert_eq!((bare.node.as_str(), bare.tunnel_protocol), ("n9", 0));
    let orphan = compiled(&slice("s", body));
    assert!(orphan.warnings[0].contains("there is no Service shop/web"), "{:?}", orphan.warnings);
}

#[test]
fn a_service_entry_has_endpoints_of_its_own_or_selects_them() {
    let entry = |spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: db, namespace: shop}}\nspec: {{hosts: [db.example], addresses: [10.9.9.9/32], resolution: STATIC, ports: [{{number: 5432, name: pg, protocol: TCP, targetPort: 5433}}], {spec}}}\n---\n"
        )
    };
    let own = compiled(&entry("endpoints: [{address: 192.0.2.1}, {address: 192.0.2.2, ports: {pg: 6000}}]"));
    assert_eq!(
        behind(&own, "db.example"),
        endpoints(&[("192.0.2.1", &[(5432, 5433)]), ("192.0.2.2", &[(5432, 6000)])])
    );
    assert_eq!(own.services["shop/db.example"].addresses[0].address, [10, 9, 9, 9]);
    let selected = compiled(&format!("{WEB}{}", entry("workloadSelector: {labels: {tier: front}}")));
    assert_eq!(behind(&selected, "db.example"), endpoints(&[("one", &[(5432, 5433)])]));
}

#[test]
fn a_service_selects_workload_entries_too() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 10.9.0.1, labels: {app: web}, ports: {http: 9999}}\n---\n";
    let resources = compiled(&format!(
        "{entry}{}",
        service("", "{selector: {app: web}, ports: [{name: x, port: 80, targetPort: http}]}")
    ));
    assert_eq!(behind(&resources, HOST), endpoints(&[("vm", &[(80, 9999)])]));
}

#[test]
fn ranges_come_from_nodes_and_settings() {
    let text = "\
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.0.0/24}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: k}
spec: {cidrs: [10.96.0.0/16]}
---
apiVersion: mesh.dev/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
spec: {podRanges: ['fd00::/64', 10.244.0.0/24], serviceRanges: [10.97.0.0/16], trustDomain: example.org, sameNode: encrypt, nodePortRange: 31000-31999}
";
    let mesh = compiled(text).mesh;
    assert_eq!(mesh.pod_ranges, ["10.244.0.0/24", "fd00::/64"]);
    assert_eq!(mesh.service_ranges, ["10.96.0.0/16", "10.97.0.0/16"]);
    assert_eq!(
        (mesh.trust_domain.as_str(), mesh.encrypt_same_node, mesh.allow_fail_open),
        ("example.org", true, false)
    );
    assert_eq!(
        (mesh.node_port_first, mesh.node_port_last, mesh.trust_bundle),
        (31_000, 31_999, vec!["root".to_owned()])
    );
}

#[test]
fn the_same_objects_compile_to_the_same_bytes() {
    let text = format!("{WEB}{}", service("", "{selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80}]}"));
    let (first, second) = (compiled(&text), compiled(&text));
    assert_eq!(first, second);
    let bytes = |resources: &Resources| resources.workloads.values().map(Message::encode_to_vec).collect::<Vec<_>>();
    assert_eq!(bytes(&first), bytes(&second));
}

#[test]
fn a_wish_that_is_not_heard_is_told() {
    let labels = |value: &str| format!(", labels: {{istio.io/use-waypoint: {value}}}");
    let wished = compiled(&service(&labels("gateway"), "{ports: [{port: 80}]}"));
    assert_eq!(
        wished.warnings,
        ["Service shop/web: istio.io/use-waypoint has no effect: traffic does not go through a waypoint"]
    );
    assert!(compiled(&service(&labels("none"), "{ports: [{port: 80}]}")).warnings.is_empty());
}

#[test]
fn fields_of_kubernetes_that_are_not_heard_are_told() {
    let told = |text: &str| compiled(text).warnings;
    let timeout = "sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}";
    let sticky = told(&service("", &format!("{{sessionAffinity: ClientIP, {timeout}, ports: [{{port: 80}}]}}")));
    assert_eq!(sticky.len(), 1);
    assert!(
        sticky[0].starts_with("Service shop/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds has no effect: ")
    );
    let outside = told(&service("", "{externalTrafficPolicy: Local, ports: [{port: 80}]}"));
    assert_eq!(outside.len(), 1);
    assert!(outside[0].starts_with("Service shop/web: spec.externalTrafficPolicy: Local has no effect: "));
    for heard in ["externalTrafficPolicy: Cluster", "sessionAffinity: ClientIP", "sessionAffinity: None", timeout] {
        assert_eq!(told(&service("", &format!("{{{heard}, ports: [{{port: 80}}]}}"))), [""; 0], "{heard}");
    }
}

#[test]
fn hints_of_a_slice_are_told_unless_the_service_asks_for_the_same() {
    let slice = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.0.0.9], hints: {forZones: [{name: a}]}}]
---
";
    let told = |spec: &str| compiled(&format!("{slice}{}", service("", spec))).warnings;
    let hints = |warnings: Vec<String>| warnings.into_iter().filter(|told| told.contains("hints")).collect::<Vec<_>>();
    assert_eq!(
        hints(told("{ports: [{port: 80}]}")),
        ["EndpointSlice shop/web-1: endpoints.hints has no effect: write spec.trafficDistribution of the Service"]
    );
    assert_eq!(hints(told("{trafficDistribution: PreferClose, ports: [{port: 80}]}")), [""; 0]);
}
